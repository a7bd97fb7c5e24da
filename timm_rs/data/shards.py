"""Images in tar shards as webdataset and timm's `wds/` have them: packing them, and reading them at any index.

A shard is a plain tar with two members per sample, KEY.jpg (or png, webp) and KEY.cls, the class index in digits. An
index of where each image lies is read once from the tar headers and kept beside the shards, so an image costs one read.
"""

import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import tarfile
import warnings
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from timm_rs.data.samples import Order, Samples
from timm_rs.data.workers import end_with
from timm_rs.errors import UserError
from timm_rs.files import atomic_write, sha256_of
from timm_rs.progress import track
from timm_rs.transforms.decode import open_picture

IMAGE_KEYS = 'jpg;jpeg;png;webp'  # timm's, and jpeg
SHUFFLE_BUFFER = 4096  # samples
OPEN_SHARDS = 32  # files kept open per process
BLOCK = tarfile.BLOCKSIZE

# 8192 photos of 288 px are about 270 MB, and 2048 of ImageNet's originals are about as much.
SAMPLES_PER_SHARD, ORIGINALS_PER_SHARD = 8192, 2048
MIN_SHARDS = 8  # or there is little to shuffle, and nothing to share out among the workers of timm's reader
READ_AHEAD = 16  # samples that travel together from a packing process
KEPT_FORMATS = {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp'}

_KEY_AND_EXTENSION = re.compile(r'((?:.*/|)[^.]+)[.]([^/]*)')  # webdataset's rule
_METADATA = re.compile(r'__[^/]*__($|/)')  # members that webdataset skips
_NOT_A_FILE = re.compile(r'pipe:|[A-Za-z][A-Za-z0-9+.-]*:/|.*::|-$')
_COMPRESSED = ('.gz', '.tgz', '.bz2', '.xz', '.zst')


# Reading ------------------------------------------------------------------------------------------------------------

class Index(NamedTuple):
    """Where the images of some shards lie; the first five fields have a row per shard, the others per sample."""

    shards: npt.NDArray[np.str_]  # paths relative to the folder
    sizes: npt.NDArray[np.int64]  # bytes of the file
    mtimes: npt.NDArray[np.int64]  # nanoseconds
    counts: npt.NDArray[np.int64]  # samples
    skipped: npt.NDArray[np.int64]  # samples without an image or a usable label
    offsets: npt.NDArray[np.int64]  # of the image's bytes within the shard
    lengths: npt.NDArray[np.int64]  # of the image in bytes
    targets: npt.NDArray[np.int64]
    name_lengths: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]  # of the images' members, UTF-8, one after the other

    @property
    def is_consistent(self) -> bool:
        per_shard = {len(column) for column in self[:5]}
        per_sample = {len(column) for column in self[5:9]} | {int(self.counts.sum())}
        return len(per_shard) == len(per_sample) == 1 and int(self.name_lengths.sum()) == len(self.names)


class ShardSamples(Samples):
    """The samples of local shards in `root`, in the order of the shards.

    `packed`: the shards were made by `pack`, whose keys keep the dots of the original names as `%2E`. `skipped` counts
    samples that are in the shards but have no image or no usable label.
    """

    def __init__(self, root: Path, index: Index, classes: dict[Any, int] | None = None, packed: bool = False,
                 buffer: int = SHUFFLE_BUFFER):
        self.root, self.index, self.classes, self.packed, self.buffer = root, index, classes or {}, packed, buffer
        self.skipped = int(index.skipped.sum())
        self._ends = np.cumsum(index.counts)
        self._name_ends = np.cumsum(index.name_lengths)
        self._open = functools.lru_cache(OPEN_SHARDS)(_OpenFile)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open=functools.lru_cache(OPEN_SHARDS)(_OpenFile))

    def __len__(self) -> int:
        return len(self.index.offsets)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label. Raises OSError where the shard is gone or ends early."""
        length = int(self.index.lengths[index])
        file = self._open(self.root / self._shard(index))
        content = os.pread(file.descriptor, length, int(self.index.offsets[index]))
        if len(content) != length:
            raise OSError(f'{self.name(index)}: the shard ends after {len(content)} of the image\'s {length} bytes')
        return content, int(self.index.targets[index])

    def name(self, index: int) -> str:
        """SHARD/KEY.jpg, where the last part is what the original file was called if `pack` wrote the shard."""
        end = int(self._name_ends[index])
        start = end - int(self.index.name_lengths[index])
        name = self.index.names[start:end].tobytes().decode(errors='surrogateescape')
        return f'{self._shard(index)}/{_unquote(name) if self.packed else name}'

    def targets(self) -> list[int]:
        return self.index.targets.tolist()

    def epoch_order(self, rng: np.random.Generator) -> Order:
        """Shards shuffled, their samples in sequence, then mixed within `buffer`: reading stays near sequential.

        Every sample lands less than `buffer` places from where the sequence of shards has it.
        """
        shards = rng.permutation(len(self._ends))
        starts = self._ends - self.index.counts
        order = np.concatenate([np.arange(starts[shard], self._ends[shard]) for shard in shards])
        # A sample's place plus less than `buffer` is its sorting key, so it only passes samples that near to it.
        return order[np.argsort(np.arange(len(order)) + rng.uniform(0, self.buffer, len(order)), kind='stable')]

    def _shard(self, index: int) -> str:
        return str(self.index.shards[np.searchsorted(self._ends, index, 'right')])


class _OpenFile:
    """A descriptor, closed with its last reference. `os.pread` has no position that forked processes would share."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


def is_packed(root: str | Path) -> bool:
    """Whether `pack` has written into the folder."""
    return any(Path(root).glob('*-manifest.json'))


def open_shards(root: str | Path, split: str, input_key: str | None = None, target_key: str | None = None
                ) -> ShardSamples | None:
    """The samples of a split, or None for what only a stream can read (remote, piped or compressed shards, labels
    that are more than one number).

    `split` is a name in the manifest of `pack` or in `_info.json`, or a pattern such as `name-{0000..0009}.tar`, as in
    timm, with its `input_key` and `target_key`. The headers of shards without a manifest are read once, and the result
    kept in `root` when that is writable. Raises UserError for shards that are missing, damaged, or not those of the
    manifest.
    """
    root = Path(root)
    if _NOT_A_FILE.match(str(root)) or (target_key and ',' in target_key):
        return None
    if _manifest_path(root, split).exists():
        return _open_packed(root, split)
    shards, label_key = _listed_shards(root, split)
    if any(_NOT_A_FILE.match(shard) or shard.endswith(_COMPRESSED) for shard in shards):
        return None
    image_keys = input_key.split(';') if input_key else IMAGE_KEYS.split(';')
    label_key = target_key or label_key
    identity = json.dumps([shards, image_keys, label_key]).encode()
    try:
        index = _cached_index(root, root / f'.index-{hashlib.sha256(identity).hexdigest()[:12]}.npz',
                              shards, image_keys, label_key)
    except _NotOneNumber:
        return None
    if not index.counts.sum():
        label = f'the key {label_key} in .json' if label_key else '.cls with digits'
        raise UserError(f'no sample of {root}, split {split}, has both an image (.{", .".join(image_keys)}) and a '
                        f'label ({label})')
    return ShardSamples(root, index)


def _open_packed(root: Path, split: str) -> ShardSamples:
    manifest = _read_manifest(root, split)
    missing = manifest['settings']['num_shards'] - len(manifest['shards'])
    if missing:
        raise UserError(f'{root}: packing of {split} is not finished, {missing} shards are missing; '
                        'run the same tools/pack_dataset.py again to continue')
    for shard, entry in manifest['shards'].items():
        _check_size(root / shard, entry['bytes'])
    index = _cached_index(root, _index_path(root, split), list(manifest['shards']), IMAGE_KEYS.split(';'), '',
                          by_time=False)  # a copied pack is as good, and its sizes are those of the manifest
    return ShardSamples(root, index, manifest['classes'], packed=True)


def _check_size(path: Path, expected: int) -> None:
    size = _stat(path).st_size
    if size != expected:
        raise UserError(f'shard {path} has {size:,} bytes, but {expected:,} by its manifest; '
                        'copy it again, or remove it and run the same tools/pack_dataset.py again')


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f'shard {path} cannot be read: {error.strerror}') from None


def _listed_shards(root: Path, split: str) -> tuple[list[str], str]:
    """File names, and the label's key in .json (empty for .cls), by timm's rules."""
    if 'tar' in split or '..' in split:
        pattern = split.partition('|')[0]  # after it comes a count, which timm needs and we know
        if _NOT_A_FILE.match(pattern):
            return [pattern], ''
        try:
            from webdataset.shardlists import expand_urls
        except ImportError:
            raise UserError(f'split {split} needs the package webdataset: pip install webdataset') from None
        return list(expand_urls(pattern)), ''
    info = _read_info(root)
    splits = info.get('splits', {})
    if split not in splits:
        known = sorted({*splits, *_packed_splits(root)})
        raise UserError(f'{root} has no split {split}: ' + (f'there is {", ".join(known)}' if known else (
            'it has no _info.json that lists splits; name the shards, as in shards-{0000..0009}.tar')))
    return list(splits[split]['filenames']), splits[split].get('alt_label', '')


def _read_info(root: Path) -> dict[str, Any]:
    path = next((root / name for name in ('_info.json', 'info.json') if (root / name).exists()), None)
    return _read_json(path) if path else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a JSON object')
    return content


# The index of shards ------------------------------------------------------------------------------------------------

class _NotOneNumber(Exception):
    """A label that is a list."""


def _cached_index(root: Path, path: Path, shards: Sequence[str], image_keys: Sequence[str], label_key: str,
                  by_time: bool = True) -> Index:
    stats = [_stat(root / shard) for shard in shards]
    index = _load_index(path)
    if index is not None and index.shards.tolist() == list(shards) and (
            index.sizes.tolist() == [stat.st_size for stat in stats]) and (
            not by_time or index.mtimes.tolist() == [stat.st_mtime_ns for stat in stats]):
        return index
    index = _join([_scan(root, shard, image_keys, label_key) for shard in track(shards, f'indexing {root.name}')])
    with contextlib.suppress(OSError):  # a folder that is not ours to write is indexed anew each time
        _save_index(path, index)
    return index


def _load_index(path: Path) -> Index | None:
    """What was saved there; None where it is missing or damaged, since it can be made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in Index._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if index.is_consistent else None


def _save_index(path: Path, index: Index) -> None:
    with atomic_write(path, 'wb') as file:
        np.savez(file, **{name: column.astype(np.int32) if name in ('targets', 'name_lengths') else column
                          for name, column in index._asdict().items()})


def _join(parts: Sequence[Index]) -> Index:
    return Index(*map(np.concatenate, zip(*parts, strict=True)))


def _shard_index(path: Path, shard: str, samples: Sequence[tuple[int, int, int, str]], skipped: int = 0) -> Index:
    """The index of one shard from its samples' offsets, lengths, targets and names."""
    stat = _stat(path)
    names = [name.encode(errors='surrogateescape') for *_, name in samples]
    offsets, lengths, targets = np.array([sample[:3] for sample in samples], np.int64).reshape(-1, 3).T
    size, mtime, count, skips = np.array([[stat.st_size], [stat.st_mtime_ns], [len(samples)], [skipped]], np.int64)
    return Index(np.array([shard]), size, mtime, count, skips, offsets, lengths, targets,
                 np.array([len(name) for name in names], np.int64), np.frombuffer(b''.join(names), np.uint8))


def _scan(root: Path, shard: str, image_keys: Sequence[str], label_key: str) -> Index:
    """The index of one shard from its headers and labels. Raises UserError when the tar is damaged."""
    path, samples, total = root / shard, [], 0
    try:
        with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            for _, group in itertools.groupby(_members(tar), lambda member: member[0]):
                total += 1
                members: dict[str, tarfile.TarInfo] = {}
                for _, extension, member in group:
                    members.setdefault(extension, member)
                image = next((members[key] for key in image_keys if key in members), None)
                label = _label(file, members, label_key, shard)
                if image is not None and label is not None:
                    samples.append((image.offset_data, image.size, label, image.name))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f'shard {path} is damaged ({error}); copy or pack it again, or leave it out') from None
    return _shard_index(path, shard, samples, total - len(samples))


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of each file, as webdataset splits names; checks that the archive is all there."""
    end = 0
    for member in tar:
        end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
        match = _KEY_AND_EXTENSION.fullmatch(member.name)
        if member.isreg() and match and not _METADATA.match(member.name):
            yield match[1], match[2].lower(), member
    assert tar.fileobj is not None
    if _pread(tar.fileobj, BLOCK, end) != bytes(BLOCK):  # tarfile takes broken headers for the end
        raise tarfile.ReadError(f'no end of archive after {end:,} bytes')


def _label(file: Any, members: dict[str, tarfile.TarInfo], label_key: str, shard: str) -> int | None:
    """The class index, by timm's rules; None where there is none, or a negative one in .json."""
    member = members.get('json' if label_key else 'cls')
    if label_key and not (member and label_key in (fields := _json_fields(_pread(file, member.size,
                                                                                    member.offset_data)))):
        key = next(iter(members.values())).name
        raise UserError(f'{shard}: {key} has no label under the key {label_key} in a .json beside it; '
                        'choose another --target-key')
    if member is None:
        return None
    value = fields[label_key] if label_key else _pread(file, member.size, member.offset_data)
    if isinstance(value, (list, tuple)):
        raise _NotOneNumber
    try:
        target = int(value)
    except (ValueError, TypeError):
        return None
    return None if label_key and target < 0 else target


def _json_fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _pread(file: Any, length: int, offset: int) -> bytes:
    return os.pread(file.fileno(), length, offset)


# Packing ------------------------------------------------------------------------------------------------------------

class Packed(NamedTuple):
    """What a split holds now."""

    num_samples: int
    num_shards: int
    num_bytes: int
    num_bad: int


def pack(samples: Samples, destination: str | Path, split: str, short_side: int = 288, quality: int = 90,
         num_shards: int | None = None, seed: int = 0, workers: int = 0, source: str = '') -> Packed:
    """Write `samples` as the shards SPLIT-000000.tar … of `destination`, with a manifest, and `_info.json` for timm.

    Images are shrunk to `short_side` pixels (antialiased bicubic) and encoded as RGB JPEG with `quality` and halved
    chroma, which most photos have and which decodes fastest; baseline JPEGs that are small enough keep their bytes.
    With `short_side` 0 all JPEG, PNG and WebP files keep their bytes, and others become PNG. As in timm, EXIF rotation
    is not applied. The order is shuffled once by `seed`: training reads shards from front to back, and would otherwise
    see class after class. The bytes written do not depend on the number of processes, `workers` (0: this one).

    Started again after it was stopped, it goes on with the first shard that is not there. Images that cannot be read
    are left out and listed in `bad_samples.csv`. Raises UserError when the folder holds something else, was packed
    with other settings, or cannot be written, and when most of a shard's images are bad.
    """
    destination = Path(destination)
    keys = _keys(samples)
    if num_shards is None:
        num_shards = min(max(MIN_SHARDS, math.ceil(
            len(samples) / (SAMPLES_PER_SHARD if short_side else ORIGINALS_PER_SHARD))), len(samples))
    _check_settings(samples, split, short_side, quality, num_shards)
    settings = dict(
        short_side=short_side, quality=quality, num_shards=num_shards, seed=seed, num_samples=len(samples),
        names_sha256=hashlib.sha256('\n'.join(keys).encode(errors='surrogateescape')).hexdigest())
    classes = {str(name): int(index) for name, index in samples.classes.items()}
    with _write_errors(destination), _one_packer(destination):
        manifest = _start_manifest(destination, split, settings, classes, source)
        parts = _write_shards(samples, keys, destination, split, manifest, workers)
        old = _load_index(_index_path(destination, split))
        if parts or old is None or old.shards.tolist() != list(manifest['shards']):
            _save_index(_index_path(destination, split), _join([
                parts.get(shard) or _scan(destination, shard, IMAGE_KEYS.split(';'), '')
                for shard in track(manifest['shards'], f'indexing {split}')]))
        _write_info(destination, split, manifest)
        _write_bad_samples(destination)
    entries = list(manifest['shards'].values())
    return Packed(sum(entry['samples'] for entry in entries), num_shards, sum(entry['bytes'] for entry in entries),
                  sum(len(entry['bad']) for entry in entries))


def verify(destination: str | Path) -> tuple[int, int]:
    """Read all shards of a folder that `pack` wrote; their number and bytes.

    Raises UserError that names the shards that are missing or are not what was written, and when there are none.
    """
    destination = Path(destination)
    entries = {shard: entry for split in _packed_splits(destination)
               for shard, entry in _read_manifest(destination, split)['shards'].items()}
    if not entries:
        raise UserError(f'{destination} has no shards with a manifest of tools/pack_dataset.py')
    bad = [shard for shard, entry in track(entries.items(), 'verifying') if _sha256(destination / shard) != (
        entry['sha256'])]
    if bad:
        raise UserError(f'{len(bad)} of {len(entries)} shards in {destination} are missing or damaged: '
                        f'{", ".join(bad)}; copy them again, or remove them and pack again: only they are made anew')
    return len(entries), sum(entry['bytes'] for entry in entries.values())


def _sha256(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return sha256_of(path)
    return None


def _keys(samples: Samples) -> list[str]:
    """The key of each sample: its file's name, behind its number where names repeat."""
    stems = [os.path.splitext(os.path.basename(samples.name(index)))[0] for index in range(len(samples))]
    keys = [stem.replace('%', '%25').replace('.', '%2E') for stem in stems]  # a key ends at its first dot
    if len(set(keys)) == len(keys):
        return keys
    return [f'{number:07}/{key}' for number, key in enumerate(keys)]


def _unquote(name: str) -> str:
    return name.replace('%2E', '.').replace('%25', '%')


def _check_settings(samples: Samples, split: str, short_side: int, quality: int, num_shards: int) -> None:
    if not len(samples):
        raise UserError(f'split {split} has no images to pack')
    if not re.fullmatch(r'[\w-]+', split) or 'tar' in split:  # timm takes such a split for a file name
        raise UserError(f"split '{split}' cannot name shards: use letters, digits, - and _, and not the word tar")
    if short_side < 0:
        raise UserError(f'short side {short_side}: give pixels, or 0 to keep all images as they are')
    if not 1 <= quality <= 100:
        raise UserError(f'JPEG quality {quality}: give 1 to 100')
    if not 1 <= num_shards <= len(samples):
        raise UserError(f'{num_shards} shards for {len(samples)} images: give 1 to {len(samples)}')


@contextlib.contextmanager
def _one_packer(destination: Path) -> Iterator[None]:
    """Hold the folder for this process."""
    path = destination / '.packing'
    destination.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, it is not inherited by workers
        except (BlockingIOError, PermissionError):
            raise UserError(f'{destination}: another process is packing into it') from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f'{destination} cannot be written: {error.strerror or error}; shards that are finished stay, '
                        'and the same command continues after them') from error
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise UserError('a packing process died, perhaps for want of memory; the same command continues, '
                        'with fewer --workers if need be') from error


def _manifest_path(root: Path, split: str) -> Path:
    return root / f'{split}-manifest.json'


def _index_path(root: Path, split: str) -> Path:
    return root / f'{split}-index.npz'


def _packed_splits(root: Path) -> list[str]:
    return sorted(path.name.removesuffix('-manifest.json') for path in root.glob('*-manifest.json'))


def _read_manifest(root: Path, split: str) -> dict[str, Any]:
    path = _manifest_path(root, split)
    manifest = _read_json(path)
    if not {'settings', 'classes', 'shards'} <= manifest.keys():
        raise UserError(f'{path} is not a manifest of tools/pack_dataset.py')
    return manifest


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path, encoding='utf-8') as file:
        json.dump(content, file, indent=1)
        file.write('\n')


def _start_manifest(destination: Path, split: str, settings: dict[str, Any], classes: dict[str, int],
                    source: str) -> dict[str, Any]:
    """A new manifest, or the one that is there, with the shards that are still as it says."""
    for temporary in destination.glob(f'.{split}-*.tmp'):  # left by a process that was killed
        temporary.unlink()
    for other in set(_packed_splits(destination)) - {split}:
        if _read_manifest(destination, other)['classes'] != classes:
            raise UserError(f'the classes of {split} are not those of {other} in {destination}; choose another folder, '
                            'or pack all splits from one folder that holds them, so that labels mean the same')
    if not _manifest_path(destination, split).exists():
        if any(destination.glob(f'{split}-*.tar')) or split in _read_info(destination).get('splits', {}):
            raise UserError(f'{destination} has other shards called {split}; choose another folder')
        manifest: dict[str, Any] = dict(settings=settings, source=source, classes=classes, shards={})
        _write_json(_manifest_path(destination, split), manifest)
        return manifest
    manifest = _read_manifest(destination, split)
    before, now = dict(manifest['settings'], classes=manifest['classes']), dict(settings, classes=classes)
    if changed := [name for name in now if before.get(name) != now[name]]:
        details = ', '.join('other images' if name == 'names_sha256' else 'other classes' if name == 'classes'
                            else f'{name} {now[name]} instead of {before.get(name)}' for name in changed)
        raise UserError(f'{destination} was packed with other settings ({details}); choose another folder, or remove '
                        'this one')
    manifest['shards'] = {shard: entry for shard, entry in manifest['shards'].items() if (
        (path := destination / shard).exists() and path.stat().st_size == entry['bytes'])}
    return manifest


def _write_shards(samples: Samples, keys: list[str], destination: Path, split: str, manifest: dict[str, Any],
                  workers: int) -> dict[str, Index]:
    """Write the shards that `manifest` lacks, adding each to it once it is on disk; their indices."""
    settings = manifest['settings']
    order = np.random.default_rng(settings['seed']).permutation(len(samples))
    contents = {f'{split}-{number:06}.tar': part
                for number, part in enumerate(np.array_split(order, settings['num_shards']))}
    todo = {shard: part for shard, part in contents.items() if shard not in manifest['shards']}
    if not todo:
        return {}
    encoded = iter(track(itertools.chain.from_iterable(DataLoader(
        _Encoder(samples, settings['short_side'], settings['quality']), batch_size=READ_AHEAD, num_workers=workers,
        sampler=np.concatenate(list(todo.values())).tolist(), collate_fn=list,
        worker_init_fn=functools.partial(end_with, os.getpid()))),
        f'packing {split}', total=sum(map(len, todo.values()))))
    parts = {}
    for shard, part in todo.items():
        entry, written = _write_shard(
            destination / shard, [(samples.name(index), keys[index]) for index in part.tolist()], encoded)
        manifest['shards'] = {name: entry if name == shard else manifest['shards'][name]
                              for name in contents if name == shard or name in manifest['shards']}
        _write_json(_manifest_path(destination, split), manifest)
        parts[shard] = _shard_index(destination / shard, shard, written)
    return parts


def _write_shard(path: Path, names: list[tuple[str, str]], encoded: Iterator['_Encoded']
                 ) -> tuple[dict[str, Any], list[tuple[int, int, int, str]]]:
    """Write the next of `encoded` under their names; the manifest's entry, and what the index needs."""
    written, bad = [], []
    with atomic_write(path, 'wb') as file:
        shard = _TarWriter(file)
        for (name, key), image in zip(names, encoded, strict=False):  # names first: it ends there and takes no more
            if image.reason:
                bad.append((name, image.reason))
                continue
            member = f'{key}.{image.extension}'
            written.append((shard.add(member, image.content), len(image.content), image.target, member))
            shard.add(f'{key}.cls', str(image.target).encode())
        if len(bad) > max(10, len(names) // 2):
            raise UserError(f'{len(bad)} of the {len(names)} images for {path.name} cannot be read, the first is '
                            f'{bad[0][0]}: {bad[0][1]}; is the source still there?')
        shard.finish()
    return dict(samples=len(written), bytes=shard.position, sha256=shard.digest.hexdigest(), bad=bad), written


class _TarWriter:
    """A tar with nothing in its headers but names and sizes, so that equal samples give equal bytes."""

    def __init__(self, file: Any):
        self.file, self.position, self.digest = file, 0, hashlib.sha256()

    def add(self, name: str, content: bytes) -> int:
        """Append a member; the offset of its content."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._write(header.tobuf(tarfile.GNU_FORMAT, 'utf-8', 'surrogateescape'))
        offset = self.position
        self._write(content + bytes(-len(content) % BLOCK))
        return offset

    def finish(self) -> None:
        self._write(bytes(2 * BLOCK))

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.position += len(content)


class _Encoded(NamedTuple):
    content: bytes
    extension: str
    target: int
    reason: str  # why the image is bad, or empty


class _Encoder(Dataset[_Encoded]):
    """The images of `samples` as they go into shards; a map-style dataset for torch's DataLoader."""

    def __init__(self, samples: Samples, short_side: int, quality: int):
        self.samples, self.short_side, self.quality = samples, short_side, quality

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _Encoded:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # PIL's, of metadata it does not understand
                source, target = self.samples.read(index)
                content, extension = encode(source, self.short_side, self.quality)
        except UserError:
            raise
        except Exception as error:  # damaged files raise whatever a decoder stumbles over
            return _Encoded(b'', '', -1, _reason(error))
        if not isinstance(target, (int, np.integer)):
            raise UserError(f'{self.samples.name(index)} has the label {target}; shards hold one class index per image')
        return _Encoded(content, extension, int(target), '')


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # PIL's message has an address in memory, which is never the same
        return 'not an image, or of an unknown kind'
    return f'{type(error).__name__}: {error}'


def encode(source: bytes | Image.Image, short_side: int, quality: int) -> tuple[bytes, str]:
    """The bytes and the file extension under which `pack` stores an image; raises what PIL raises for a bad one."""
    image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
    image.load()  # all of it: what is kept as it is must be whole too
    if isinstance(source, bytes):
        is_ready = (image.format == 'JPEG' and not image.info.get('progressive') and image.mode in ('L', 'RGB')
                    and min(image.size) <= short_side)
        if is_ready or (not short_side and image.format in KEPT_FORMATS):
            return source, KEPT_FORMATS[str(image.format)]
    content = io.BytesIO()
    if not short_side:
        (image if image.mode in ('L', 'RGB') else image.convert('RGB')).save(content, 'PNG')
        return content.getvalue(), 'png'
    image = Image.fromarray(open_picture(image).pixels())  # the pixels that training sees, also of 16-bit images
    scale = short_side / min(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    image.save(content, 'JPEG', quality=quality, subsampling='4:2:0', comment=b'')
    return content.getvalue(), 'jpg'


def _write_info(destination: Path, split: str, manifest: dict[str, Any]) -> None:
    """Add the split to what timm's reader looks for."""
    info = _read_info(destination)
    lengths = [entry['samples'] for entry in manifest['shards'].values()]
    info.setdefault('splits', {})[split] = dict(
        name=split, num_samples=sum(lengths), filenames=list(manifest['shards']), shard_lengths=lengths)
    _write_json(destination / '_info.json', info)


def _write_bad_samples(destination: Path) -> None:
    """List the bad images of all splits; no file when there are none."""
    path = destination / 'bad_samples.csv'
    rows = [row for split in _packed_splits(destination)
            for entry in _read_manifest(destination, split)['shards'].values() for row in entry['bad']]
    if not rows:
        return path.unlink(missing_ok=True)
    with atomic_write(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        csv.writer(file, lineterminator='\n').writerows([('name', 'reason'), *rows])
