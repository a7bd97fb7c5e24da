"""zip, .npz and tar: what members they have, of which sizes, and that nothing of them lies elsewhere."""

import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from timm_rs.errors import UserError, first_line

# Weights hardly shrink: what grows more than this was made to fill memory or a disk.
GROWTH, SLACK = 10, 64 << 20
DAMAGE = (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, MemoryError, OverflowError,
          zlib.error, zipfile.BadZipFile, tarfile.TarError)


def allowance(size: int) -> int:
    """The bytes that a container of `size` bytes may hold once it is unpacked."""
    return GROWTH * size + SLACK


def check_growth(path: Path, content: int) -> None:
    """Raise UserError if a file would unpack to `content` bytes, and that is too much for its size."""
    if content > allowance(size := path.stat().st_size):
        raise UserError(f'{path} is refused: it has {size:,} bytes and would unpack to {content:,}; no weights shrink '
                        'that much: get the file from its source again')


@contextmanager
def damage_as_user_error(path: Path) -> Iterator[None]:
    """Turn what libraries raise for damaged containers into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        reason = getattr(error, 'strerror', None) or first_line(error) or type(error).__name__
        raise UserError(f'{path}: cannot be read: {reason}') from None


@contextmanager
def open_zip(path: Path, compressed: bool = False) -> Iterator[zipfile.ZipFile]:
    """A zip archive: no member twice, also for readers that take A for a, none that is a link or encrypted.

    Members are `compressed` only where that is allowed, and then by no more than `allowance`. Raises UserError for all
    others, and what zipfile raises for a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        seen: set[str] = set()
        for member in archive.infolist():
            wrong = ('is there twice' if member.filename.lower() in seen else
                     'is encrypted' if member.flag_bits & 1 else
                     'is a link' if stat.S_ISLNK(member.external_attr >> 16) else
                     'is compressed' if member.compress_type != zipfile.ZIP_STORED and not compressed else '')
            if wrong:
                raise UserError(f'{path} is refused: its member {member.filename} {wrong}, as no library writes it')
            seen.add(member.filename.lower())
        check_growth(path, sum(member.file_size for member in archive.infolist()))
        yield archive


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, and the only part of it. Raises OSError."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it says that it goes on on another disk
        return False


def load_array(path: Path) -> npt.NDArray[Any]:
    """The array of an .npy file, which stays on disk until it is read; no pickles. Raises what NumPy raises."""
    return np.load(path, mmap_mode='r', allow_pickle=False)


def load_arrays(path: Path, compressed: bool = True) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name; arrays of objects, which are pickles, are refused. Raises UserError.

    Files that we write are not `compressed`.
    """
    with damage_as_user_error(path), open_zip(path, compressed), np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def is_tar(path: Path) -> bool:
    """Whether a file begins like a tar archive, or like a gzip file."""
    with open(path, 'rb') as file:
        start = file.read(tarfile.BLOCKSIZE)
    return start[:2] == b'\x1f\x8b' or start[257:262] == b'ustar'


def unpack_tar(path: Path, folder: Path) -> None:
    """Write the files of a .tar or .tar.gz below `folder`, which is empty, by our own hand: no link, no device.

    Raises UserError for an archive with anything else in it, with names that lead out of it or come twice, for one
    that grows beyond `allowance`, and for a damaged one.
    """
    with damage_as_user_error(path), open(path, 'rb') as file:
        is_gzip = file.read(2) == b'\x1f\x8b'
        file.seek(0)
        content: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        with tarfile.open(fileobj=_Limited(content, path), mode='r|') as archive:  # type: ignore[call-overload]
            for member in archive:
                if not member.isdir():
                    _write_member(path, archive, member, folder)


def _write_member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if not member.isreg() or member.issparse():
        raise UserError(f'{path}: cannot be read: {member.name} in it is no regular file')
    if name.is_absolute() or '..' in name.parts or '\\' in member.name or ':' in member.name:
        raise UserError(f'{path}: cannot be read: {member.name} in it is outside the destination')
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    reader = archive.extractfile(member)
    assert reader is not None
    with open(folder / name, 'xb') as writer:
        shutil.copyfileobj(reader, writer)


class _Limited:
    """A stream that ends with an error once it has given all that a file of this size may hold.

    tarfile takes sizes from headers, and reads long names in one piece.
    """

    def __init__(self, file: IO[bytes], path: Path):
        self.file, self.path, self.given = file, path, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.given += len(data)
        check_growth(self.path, self.given)
        return data


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder once links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
