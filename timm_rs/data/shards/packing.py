"""Any dataset as shards."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from timm_rs.data.samples import Samples
from timm_rs.data.shards.encoding import FRAMES, IMAGES, KINDS, OF_IMAGES, RAW, Encoded, Encoder
from timm_rs.data.shards.index import (
    BLOCK,
    Index,
    index_path,
    join_indices,
    load_index,
    packed_keys,
    save_index,
    scan_shard,
    shard_index,
)
from timm_rs.data.shards.manifest import manifest_path, packed_splits, read_info, read_manifest
from timm_rs.data.shards.raw_size import raw_size, within
from timm_rs.data.shards.reading import keys_of
from timm_rs.data.workers import end_with
from timm_rs.errors import UserError
from timm_rs.files import atomic_write, sha256_of, write_csv
from timm_rs.progress import track

# 8192 photos of 288 px are about 270 MB, and 2048 of ImageNet's originals are about as much.
SAMPLES_PER_SHARD, ORIGINALS_PER_SHARD, VIDEOS_PER_SHARD = 8192, 2048, 256
READ_AHEAD = 16  # samples that travel together from a packing process


class Packed(NamedTuple):
    """What a split holds now."""

    num_samples: int
    num_shards: int
    num_bytes: int
    num_bad: int


def pack(samples: Samples, destination: str | Path, split: str, short_side: int = 288, quality: int = 90,
         num_shards: int | None = None, seed: int = 0, workers: int = 0, source: str = '', kind: str = IMAGES
         ) -> Packed:
    """Write `samples` as the shards SPLIT-000000.tar … of `destination`, with a manifest, and `_info.json` for timm.

    Images are shrunk to `short_side` pixels (antialiased bicubic) and encoded as RGB JPEG with `quality` and halved
    chroma, which most photos have and which decodes fastest; baseline JPEGs that are small enough keep their bytes.
    With `short_side` 0 all JPEG, PNG and WebP files keep their bytes, and others become PNG. As in timm, EXIF rotation
    is not applied. The order is shuffled once by `seed`: training reads shards from front to back, and would otherwise
    see class after class. The bytes written do not depend on the number of processes, `workers` (0: this one).

    Of the other `KINDS`, raw are images whose pixels are stored as they are, shrunk likewise unless `short_side` is 0:
    several times the bytes, of which training reads only the rows of its crop. Videos are files that keep their bytes,
    and frames are videos as JPEGs made like images, all of a video in one member. Folders of frames become such members
    in both, in the former with their bytes.

    Started again after it was stopped, it goes on with the first shard that is not there. Images that cannot be read
    are left out and listed in `bad_samples.csv`. Raises UserError when the folder holds something else, was packed
    with other settings, or cannot be written, and when most of a shard's images are bad.
    """
    destination = Path(destination)
    keys = keys_of(samples)
    if num_shards is None:
        num_shards = _usual_shards(samples, short_side, kind)
    _check_settings(samples, split, short_side, quality, num_shards, kind)
    settings = dict(
        short_side=short_side, quality=quality, num_shards=num_shards, seed=seed, num_samples=len(samples),
        names_sha256=hashlib.sha256('\n'.join(keys).encode(errors='surrogateescape')).hexdigest())
    if kind != IMAGES:
        settings['kind'] = kind
    member_keys = packed_keys(are_videos=kind not in OF_IMAGES)
    classes = {str(name): int(index) for name, index in samples.classes.items()}
    with _write_errors(destination), _one_packer(destination):
        manifest = _start_manifest(destination, split, settings, classes, source)
        parts = _write_shards(samples, keys, destination, split, manifest, workers)
        old = load_index(index_path(destination, split))
        if parts or old is None or old.shards.tolist() != list(manifest['shards']):
            save_index(index_path(destination, split), join_indices([
                parts.get(shard) or scan_shard(destination, shard, member_keys, '')
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
    entries = {shard: entry for split in packed_splits(destination)
               for shard, entry in read_manifest(destination, split)['shards'].items()}
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


def _usual_shards(samples: Samples, short_side: int, kind: str) -> int:
    if kind == RAW:
        return raw_size(samples, short_side).num_shards
    each = VIDEOS_PER_SHARD if kind not in OF_IMAGES else SAMPLES_PER_SHARD if short_side else ORIGINALS_PER_SHARD
    return within(math.ceil(len(samples) / each), len(samples))


def _check_settings(samples: Samples, split: str, short_side: int, quality: int, num_shards: int, kind: str) -> None:
    if not len(samples):
        raise UserError(f'split {split} has no images to pack')
    if not re.fullmatch(r'[\w-]+', split) or 'tar' in split:  # timm takes such a split for a file name
        raise UserError(f"split '{split}' cannot name shards: use letters, digits, - and _, and not the word tar")
    if short_side < 0:
        raise UserError(f'short side {short_side}: give pixels, or 0 to keep all images as they are')
    if kind not in KINDS or kind == FRAMES and not short_side:
        raise UserError(f'{kind} with short side {short_side}: {", ".join(KINDS)} are packed, and frames need pixels')
    if not 1 <= quality <= 100:
        raise UserError(f'JPEG quality {quality}: give 1 to 100')
    if not 1 <= num_shards <= len(samples):
        raise UserError(f'{num_shards} shards for {len(samples)} images: give 1 to {len(samples)}')


@contextlib.contextmanager
def _one_packer(destination: Path) -> Iterator[None]:
    """Hold the folder for this process."""
    path = destination / '.packing'
    destination.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
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


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path, encoding='utf-8') as file:
        json.dump(content, file, indent=1)
        file.write('\n')


def _start_manifest(destination: Path, split: str, settings: dict[str, Any], classes: dict[str, int],
                    source: str) -> dict[str, Any]:
    """A new manifest, or the one that is there, with the shards that are still as it says."""
    for temporary in destination.glob(f'.{split}-*.tmp'):  # left by a process that was killed
        temporary.unlink()
    for other in set(packed_splits(destination)) - {split}:
        if read_manifest(destination, other)['classes'] != classes:
            raise UserError(f'the classes of {split} are not those of {other} in {destination}; choose another folder, '
                            'or pack all splits from one folder that holds them, so that labels mean the same')
    if not manifest_path(destination, split).exists():
        if any(destination.glob(f'{split}-*.tar')) or split in read_info(destination).get('splits', {}):
            raise UserError(f'{destination} has other shards called {split}; choose another folder')
        manifest: dict[str, Any] = dict(settings=settings, source=source, classes=classes, shards={})
        _write_json(manifest_path(destination, split), manifest)
        return manifest
    manifest = read_manifest(destination, split)
    before, now = (dict(kind=IMAGES) | told | dict(classes=names) for told, names in (
        (manifest['settings'], manifest['classes']), (settings, classes)))
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
        Encoder(samples, settings['short_side'], settings['quality'], settings.get('kind', IMAGES)),
        batch_size=1 if 'kind' in settings else READ_AHEAD, num_workers=workers,
        sampler=np.concatenate(list(todo.values())).tolist(), collate_fn=list,
        worker_init_fn=functools.partial(end_with, os.getpid()))),
        f'packing {split}', total=sum(map(len, todo.values()))))
    parts = {}
    for shard, part in todo.items():
        entry, written = _write_shard(
            destination / shard, [(samples.name(index), keys[index]) for index in part.tolist()], encoded)
        manifest['shards'] = {name: entry if name == shard else manifest['shards'][name]
                              for name in contents if name == shard or name in manifest['shards']}
        _write_json(manifest_path(destination, split), manifest)
        parts[shard] = shard_index(destination / shard, shard, written)
    return parts


def _write_shard(path: Path, names: list[tuple[str, str]], encoded: Iterator[Encoded]
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


def _write_info(destination: Path, split: str, manifest: dict[str, Any]) -> None:
    """Add the split to what timm's reader looks for."""
    info = read_info(destination)
    lengths = [entry['samples'] for entry in manifest['shards'].values()]
    info.setdefault('splits', {})[split] = dict(
        name=split, num_samples=sum(lengths), filenames=list(manifest['shards']), shard_lengths=lengths)
    _write_json(destination / '_info.json', info)


def _write_bad_samples(destination: Path) -> None:
    """List the bad images of all splits; no file when there are none."""
    path = destination / 'bad_samples.csv'
    rows = [dict(name=name, reason=reason) for split in packed_splits(destination)
            for entry in read_manifest(destination, split)['shards'].values() for name, reason in entry['bad']]
    write_csv(path, rows) if rows else path.unlink(missing_ok=True)
