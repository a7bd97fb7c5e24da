"""The listing of a large folder, kept beside it for as long as no folder in it changes."""

import contextlib
import datetime
import hashlib
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from timm_rs.containers.archives import load_arrays
from timm_rs.data.compact import ENCODING, Names, Pairs
from timm_rs.data.listing import CACHE_SUFFIX, LEFT_OUT, Listing, Seen, accepted_suffixes, list_folder
from timm_rs.files import atomic_write

FORMAT = 1  # another one wherever list_folder would list the same files in another way
FEWEST = 20_000  # images; fewer are listed in no time
# A clock of a file system may stand still for as long, and what changes meanwhile cannot be told by its time.
STANDSTILL_NS = 2_000_000_000


def cached_listing(root: str, suffixes: Iterable[str] = ()) -> tuple[Listing, str]:
    """What `list_folder` gives, and a sentence that says so where it was listed before; else that is empty.

    The cache is `.NAME-listing.npz` beside the folder NAME, whole or not at all. Raises OSError as `list_folder` does.
    """
    accepted = accepted_suffixes(suffixes)
    folder = Path(os.path.abspath(root))
    path = folder.parent / f'.{folder.name}{CACHE_SUFFIX}'
    if path.is_file() and (kept := _load(path, root, accepted)):
        listing, date = kept
        return listing, f'{len(listing.names):,} images in {root} as listed on {date}; delete {path} to list again'
    started = time.monotonic_ns()
    listing = list_folder(root, suffixes)
    if len(listing.names) >= FEWEST:
        with contextlib.suppress(OSError):  # a folder that is not ours to write is listed anew each time
            _save(path, listing, accepted, started)
    return listing, ''


def _identity(accepted: Sequence[str], seen: Sequence[Seen]) -> str:
    """A SHA-256 of what a listing follows from: folders as they were, and how names are read, taken and sorted.

    Not of the device, whose number differs from machine to machine: that of the cache is looked at instead.
    """
    parts = [FORMAT, sys.getfilesystemencoding(), unicodedata.unidata_version, accepted,
             [(name, *rest) for name, _, *rest in seen]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _save(path: Path, listing: Listing, accepted: Sequence[str], started: int) -> None:
    """Keep a listing that was begun at `started`, by the monotonic clock in nanoseconds.

    Raises OSError where it cannot be written, or could not be relied on: with folders on another file system, on one
    that does not keep the times of folders, and with folders that have changed just now, or in the future.
    """
    around = path.parent.stat()
    if any(folder.device != around.st_dev for folder in listing.seen):
        raise OSError(f'not all folders are on the file system of {path}')
    with atomic_write(path, 'wb') as file:
        np.savez(
            file, identity=_identity(accepted, listing.seen), names=listing.names.text, folders=listing.folders.text,
            places=listing.places, left_out=listing.left_out.names.text, reasons=listing.left_out.numbers,
            directories=listing.directories.text, links=listing.links.text,
            seen=Names.of(folder.name for folder in listing.seen[1:]).text)
        file.flush()
        # By the clock of the file system, which need not be ours.
        began = os.fstat(file.fileno()).st_mtime_ns - (time.monotonic_ns() - started)
        newest = max(max(folder.modified, folder.changed) for folder in listing.seen)
        if newest > began - STANDSTILL_NS or path.parent.stat().st_mtime_ns == around.st_mtime_ns:
            raise OSError(f'the times of the folders beside {path} say nothing')


def _load(path: Path, root: str, accepted: Sequence[str]) -> tuple[Listing, datetime.date] | None:
    """What was kept, and when, if it is whole and all folders are as they were; otherwise None.

    Where many may write beside a folder, only who may change the images, or anything, may say what they are.
    """
    try:
        status = path.stat()
        if status.st_uid not in (0, os.stat(root).st_uid, getattr(os, 'geteuid', int)()):  # Windows has 0 for all
            return None
        arrays = load_arrays(path, compressed=False)
        names, left_out, directories, links, below = (
            _names(arrays[key]) for key in ('names', 'left_out', 'directories', 'links', 'seen'))
        folders = _names(arrays['folders'], are_files=False)
        listing = Listing(
            names, folders, arrays['places'], Pairs(left_out, arrays['reasons'], LEFT_OUT), directories,
            np.zeros((0, 2), np.int64), [Seen.at(os.path.join(root, name), name) for name in ('', *below)], links)
        is_same = (
            str(arrays['identity']) == _identity(accepted, listing.seen)
            and all(folder.device == status.st_dev for folder in listing.seen)
            and _fits(listing.places, np.int32, names, len(folders))
            and _fits(listing.left_out.numbers, np.int8, left_out, len(LEFT_OUT))
            # That a link leads to a folder now is not to be seen by the time of the folder that it is in.
            and not any(os.path.isdir(os.path.join(root, link)) for link in links))
        return (listing, datetime.date.fromtimestamp(status.st_mtime)) if is_same else None
    except Exception:  # NumPy raises a dozen kinds for damaged bytes, and it can be made again
        return None


def _names(text: np.ndarray, are_files: bool = True) -> Names:
    """Raises ValueError for what are not names below a folder; where they are not of `files`, one may be empty."""
    content = text.tobytes()
    content.decode(**ENCODING)
    parts = b'/' + content.replace(b'\0', b'/').replace(os.sep.encode(), b'/')
    if text.dtype != np.uint8 or text.ndim != 1 or content[-1:] not in (b'', b'\0') or any(
            part in parts for part in (b'/./', b'/../', *[b'//'] * are_files)):
        raise ValueError('these are no names')
    return Names(text)


def _fits(numbers: np.ndarray, dtype: type, names: Names, count: int) -> bool:
    """Whether there is a number below `count` for each of `names`."""
    return (numbers.dtype == dtype and numbers.shape == (len(names),)
            and bool(((numbers >= 0) & (numbers < count)).all()))
