"""Where each image lies in the tars, kept beside them."""

import contextlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timm_rs.containers.archives import load_arrays
from timm_rs.errors import UserError
from timm_rs.files import atomic_write
from timm_rs.progress import track
from timm_rs.transforms.frames import JOINED, VIDEO_SUFFIXES

IMAGE_KEYS = 'jpg;jpeg;png;webp'  # timm's, and jpeg
RAW_KEY = 'ppm'
VIDEO_KEYS = ';'.join([*(suffix[1:] for suffix in VIDEO_SUFFIXES), JOINED])
BLOCK = tarfile.BLOCKSIZE
MAX_CLASSES = 10_000_000  # what is beyond is no label
MAX_LABEL_BYTES = 1 << 20  # of a .cls or .json

_KEY_AND_EXTENSION = re.compile(r'((?:.*/|)[^.]+)[.]([^/]*)')  # webdataset's rule
_METADATA = re.compile(r'__[^/]*__($|/)')  # members that webdataset skips
UNLABELLED = '-'  # for the key of a label: every image counts, and none has a label
COMPRESSED = ('.gz', '.tgz', '.bz2', '.xz', '.zst')


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
        """Whether it can be true: types, counts, and every image within its shard."""
        numbers = self[1:9]
        if (any(column.ndim != 1 for column in self) or self.shards.dtype.kind != 'U' or self.names.dtype != np.uint8
                or any(column.dtype not in (np.int32, np.int64) for column in numbers)
                or any((column < 0).any() for column in (*numbers[:6], self.name_lengths))
                or (abs(self.targets) >= MAX_CLASSES).any()):
            return False
        per_shard = {len(column) for column in self[:5]}
        per_sample = {len(column) for column in self[5:9]} | {sum(self.counts.tolist())}
        if len(per_shard) > 1 or len(per_sample) > 1 or sum(self.name_lengths.tolist()) != len(self.names):
            return False
        return bool((self.lengths <= np.repeat(self.sizes, self.counts) - self.offsets).all())


def stat_of(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f'shard {path} cannot be read: {error.strerror}') from None


def packed_keys(are_videos: bool) -> list[str]:
    """The extensions under which `pack` stores images, or videos."""
    return (VIDEO_KEYS if are_videos else f'{IMAGE_KEYS};{RAW_KEY}').split(';')


class NotOneNumber(Exception):
    """A label that is a list."""


def cached_index(root: Path, path: Path, shards: Sequence[str], image_keys: Sequence[str], label_key: str,
                 fits: Callable[[Index], bool] = lambda index: True, by_time: bool = True) -> Index:
    """The index at `path` if it is that of the `shards` as they are, and `fits`; otherwise made from them and kept."""
    stats = [stat_of(root / shard) for shard in shards]
    index = load_index(path)
    if index is not None and fits(index) and index.shards.tolist() == list(shards) and (
            index.sizes.tolist() == [stat.st_size for stat in stats]) and (
            not by_time or index.mtimes.tolist() == [stat.st_mtime_ns for stat in stats]):
        return index
    index = join_indices([
        scan_shard(root, shard, image_keys, label_key) for shard in track(shards, f'indexing {root.name}')])
    with contextlib.suppress(OSError):  # a folder that is not ours to write is indexed anew each time
        save_index(path, index)
    return index


def load_index(path: Path) -> Index | None:
    """What was saved there; None where it is missing or damaged, since it can be made again."""
    try:
        arrays = load_arrays(path, compressed=False)
        index = Index(**{name: arrays[name] for name in Index._fields})
        return index if index.is_consistent else None
    except Exception:  # NumPy raises a dozen kinds for damaged bytes
        return None


def save_index(path: Path, index: Index) -> None:
    with atomic_write(path, 'wb') as file:
        np.savez(file, **{name: column.astype(np.int32) if name in ('targets', 'name_lengths') else column
                          for name, column in index._asdict().items()})


def join_indices(parts: Sequence[Index]) -> Index:
    return Index(*map(np.concatenate, zip(*parts, strict=True)))


def shard_index(path: Path, shard: str, samples: Sequence[tuple[int, int, int, str]], skipped: int = 0) -> Index:
    """The index of one shard from its samples' offsets, lengths, targets and names."""
    stat = stat_of(path)
    names = [name.encode(errors='surrogateescape') for *_, name in samples]
    offsets, lengths, targets = np.array([sample[:3] for sample in samples], np.int64).reshape(-1, 3).T
    size, mtime, count, skips = np.array([[stat.st_size], [stat.st_mtime_ns], [len(samples)], [skipped]], np.int64)
    return Index(np.array([shard]), size, mtime, count, skips, offsets, lengths, targets,
                 np.array([len(name) for name in names], np.int64), np.frombuffer(b''.join(names), np.uint8))


def scan_shard(root: Path, shard: str, image_keys: Sequence[str], label_key: str) -> Index:
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
    except (UserError, NotOneNumber):
        raise
    except Exception as error:  # tarfile raises a dozen kinds for damaged headers
        raise UserError(f'shard {path} is damaged ({error}); copy or pack it again, or leave it out') from None
    return shard_index(path, shard, samples, total - len(samples))


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of each file, as webdataset splits names; checks that the archive is all there."""
    end = 0
    for member in tar:
        if member.size < 0 or member.issparse():
            raise tarfile.ReadError(f'{member.name} has no such size, or is a sparse file')
        end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
        match = _KEY_AND_EXTENSION.fullmatch(member.name)
        if member.isreg() and match and not _METADATA.match(member.name):
            yield match[1], match[2].lower(), member
    assert tar.fileobj is not None
    if pread(tar.fileobj, BLOCK, end) != bytes(BLOCK):  # tarfile takes broken headers for the end
        raise tarfile.ReadError(f'no end of archive after {end:,} bytes')


def _label(file: Any, members: dict[str, tarfile.TarInfo], label_key: str, shard: str) -> int | None:
    """The class index, by timm's rules; None where there is no usable one, or a negative one in .json."""
    if label_key == UNLABELLED:
        return 0
    member = members.get('json' if label_key else 'cls')
    content = pread(file, member.size, member.offset_data) if member and member.size <= MAX_LABEL_BYTES else b''
    if label_key and not (member and label_key in (fields := _json_fields(content))):
        key = next(iter(members.values())).name
        raise UserError(f'{shard}: {key} has no label under the key {label_key} in a .json beside it; '
                        'choose another --target-key')
    if member is None:
        return None
    value = fields[label_key] if label_key else content
    if isinstance(value, (list, tuple)):
        raise NotOneNumber
    try:
        target = int(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return None if label_key and target < 0 or abs(target) >= MAX_CLASSES else target


def _json_fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def pread(file: Any, length: int, offset: int) -> bytes:
    """`length` bytes of an open file from `offset` on, or fewer where it ends."""
    if hasattr(os, 'pread'):  # it has no position, which forked processes would share
        return os.pread(file.fileno(), length, offset)
    file.seek(offset)  # Windows, where none are forked
    return file.read(length)


def index_path(root: Path, split: str) -> Path:
    return root / f'{split}-index.npz'
