"""What of a folder or a tar file is an image, and of which class; and what is neither."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from timm.data.readers.img_extensions import get_img_extensions

from timm_rs.data.compact import Names, Pairs
from timm_rs.errors import UserError
from timm_rs.transforms.decode import FORMATS

IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
CACHE_SUFFIX = '-listing.npz'
SYSTEM_NAMES = ('lost+found', 'System Volume Information', 'Thumbs.db', 'desktop.ini')

_OF_SYSTEM = re.compile(rf'[.@$#~]|__|({"|".join(map(re.escape, SYSTEM_NAMES))})\Z')
# What listing_cache.py keeps beside data, also half written.
_OURS = re.compile(r'\.\.?.*' + re.escape(CACHE_SUFFIX) + r'(\..+\.tmp)?', re.DOTALL)
_DIGITS = re.compile(r'(\d{1,4000})')  # Python makes no integers of more

# Why something is left out, in the order that people are told.
OF_SYSTEM = 'hidden, or of a system or tool'
NO_IMAGE = 'not an image, by its suffix'
LOOP = 'a link to a folder around it'
NO_FILE = 'a link, device or sparse file in the archive'
EMPTY = 'a folder without images'
# Of videos.
NO_VIDEO = 'neither a video nor one of its frames'
EMPTY_OF_VIDEOS = 'a folder without videos'
MISSING = 'named by the list, but not there'
# Of images with tags.
NO_TAGS = 'without a row in the table, or a text of tags beside it'
ONLY_TAGS = 'tags of an image that is not there'
LEFT_OUT = (OF_SYSTEM, NO_IMAGE, NO_VIDEO, LOOP, NO_FILE, EMPTY, EMPTY_OF_VIDEOS, MISSING, NO_TAGS, ONLY_TAGS)


class Seen(NamedTuple):
    """A folder, by its name below the root, as it was before it was read; times are nanoseconds."""

    name: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def at(cls, path: str, name: str) -> 'Seen':
        """Raises OSError."""
        status = os.stat(path)
        return cls(name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Listing(NamedTuple):
    """The images of a data set and what lies among them.

    Attributes:
        names: of the images below the root, with slashes, in the order of timm's natural sort.
        folders: those that images lie in, below the root, or below the folder around everything in an archive.
        places: (images,) int32, the index of each image's folder.
        left_out: (name, one of `LEFT_OUT`) of all else.
        directories: those called like an image and without one, which are bad images rather than left out.
        spans: in an archive, where each image is: (images, 2) int64, offset and length in bytes; else empty.
        seen: all folders that were read, the root first, and links that lead round in a circle; none of an archive.
        links: those to anything but a folder, or to nothing.
    """

    names: Names
    folders: Names
    places: npt.NDArray[np.int32]
    left_out: Pairs
    directories: Names
    spans: npt.NDArray[np.int64]
    seen: Sequence[Seen]
    links: Names

    def labels(self, class_is_leaf: bool = False) -> list[str]:
        """The class of each of `folders`; empty where that is no folder."""
        return [class_of(f'{folder}/' if folder else '', class_is_leaf) for folder in self.folders]


def accepted_suffixes(suffixes: Iterable[str] = ()) -> tuple[str, ...]:
    """What names of images end with, in lower case: one of `suffixes`, or else of those here and timm's."""
    return tuple(suffix.lower() for suffix in suffixes) or (*IMAGE_SUFFIXES, *get_img_extensions())


def is_of_system(name: str) -> bool:
    """Whether a file or folder is hidden, or what systems and tools leave among images: `.x`, `@x`, `$x`, `#x`, `~x`,
    `__x`."""
    return _OF_SYSTEM.match(name) is not None


def natural_key(name: str) -> list[int | str]:
    """timm's order, in which b9 is before b10. Sort by the name itself first: here, A equals a."""
    parts: list[int | str] = _DIGITS.split(name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts


def in_class_order(labels: Iterable[str]) -> dict[str, int]:
    """Class name -> index: a function of the names alone, the same in every process and for every reader."""
    return {name: index for index, name in enumerate(sorted(sorted(set(labels)), key=natural_key))}


def natural_keys(names: Sequence[str], at_once: int = 10_000) -> list[str]:
    """For each of `names`, which have no NUL, a text; they sort as `natural_key` would have it, and are made faster.

    A number is its digits without leading zeros; before them NUL, which sorts before all else, and how many they are.
    """
    keys: list[str] = []
    for start in range(0, len(names), at_once):
        text = '\0\0'.join(names[start:start + at_once]).lower()
        keys += (_numbers_marked(text) or _DIGITS.sub(_marked, text)).split('\0\0')
    return keys


def _marked(digits: re.Match[str]) -> str:
    number = str(int(digits[0])).lstrip('0')
    return f'\0{chr(1 + len(number))}{number}'


def _numbers_marked(text: str, longest: int = 100) -> str | None:
    """`text` with `_marked` numbers, made at once; None where it has other than ASCII, or a number that is too long."""
    if not text.isascii():
        return None
    content = np.frombuffer(text.encode(), np.uint8)
    is_digit = content - ord('0') < 10  # unsigned: all else is larger
    edges = np.flatnonzero(np.diff(is_digit, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    lengths = stops - starts
    if (lengths > longest).any():
        return None
    not_zero = np.append(np.flatnonzero(is_digit & (content != ord('0'))), len(content))
    firsts = np.minimum(not_zero[np.searchsorted(not_zero, starts)], stops)
    digits = np.flatnonzero(is_digit)
    stays = np.ones(len(content), bool)
    stays[digits[digits < np.repeat(firsts, lengths)]] = False
    places = np.repeat(firsts, 2)
    marks = np.stack([np.zeros_like(firsts), 1 + stops - firsts], 1).ravel()
    return np.insert(content, places, marks)[np.insert(stays, places, True)].tobytes().decode()


def list_folder(root: str, suffixes: Iterable[str] = ()) -> Listing:
    """Everything below the folder `root`; links to folders are followed, but not around in a circle. Raises OSError."""
    accepted = accepted_suffixes(suffixes)
    names: list[str] = []
    left_out: list[tuple[str, str]] = []
    directories: list[str] = []
    links: list[str] = []
    seen = [Seen.at(root, '')]

    def walk(folder: str, prefix: str, around: tuple[tuple[int, int], ...]) -> None:
        found = len(names)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _OF_SYSTEM.match(entry.name):
                    if not _OURS.fullmatch(entry.name):
                        left_out.append((name, OF_SYSTEM))
                elif entry.is_dir():
                    seen.append(Seen.at(entry.path, name))
                    here = seen[-1].device, seen[-1].inode
                    if entry.is_symlink() and here in around:
                        left_out.append((name, LOOP))
                    else:
                        walk(entry.path, f'{name}/', (*around, here))
                else:
                    if entry.is_symlink():
                        links.append(name)
                    if entry.name.lower().endswith(accepted):
                        names.append(name)
                    else:
                        left_out.append((name, NO_IMAGE))
        if len(names) == found and prefix:
            if folder.lower().endswith(accepted):
                directories.append(prefix.rstrip('/'))
            else:
                left_out.append((prefix.rstrip('/'), EMPTY))

    walk(root, '', ((seen[0].device, seen[0].inode),))
    names.sort()
    order = _natural_order(names)
    return _listing([names[index] for index in order], left_out, sorted(directories), seen=seen, links=links)


def list_archive(path: str, suffixes: Iterable[str] = ()) -> Listing:
    """The same of an uncompressed tar file, also of tar files in it, whose names count as folders.

    A folder around everything that is called like the archive, train/ in train.tar, is no class. Raises OSError, and
    tarfile's errors.
    """
    accepted = accepted_suffixes(suffixes)
    members: list[tuple[str, int, int]] = []
    left_out: list[tuple[str, str]] = []
    with tarfile.open(path, 'r:') as tar:
        for name, offset, member in _members(tar):
            parts = PurePosixPath(name).parts
            if any(map(is_of_system, parts)):
                if not _OURS.fullmatch(parts[-1]):
                    left_out.append((name, OF_SYSTEM))
            elif not name.lower().endswith(accepted):
                left_out.append((name, NO_IMAGE))
            elif not member.isreg() or member.issparse():
                left_out.append((name, NO_FILE))
            else:
                members.append((name, offset, member.size))
    members.sort()
    members = [members[index] for index in _natural_order([name for name, *_ in members])]
    names = [name for name, *_ in members]
    around = os.path.splitext(os.path.basename(path))[0] + '/'
    start = len(around) if names and all(name.startswith(around) for name in names) else 0
    return _listing(names, left_out, spans=[span for _, *span in members], start=start)


def _natural_order(names: list[str]) -> list[int]:
    """The indices of `names`, which are sorted: those that are equal in natural order stay so."""
    return sorted(range(len(names)), key=natural_keys(names).__getitem__)


def _listing(names: list[str], left_out: list[tuple[str, str]], directories: Iterable[str] = (),
             spans: Sequence[Sequence[int]] = (), start: int = 0, seen: Sequence[Seen] = (), links: Iterable[str] = ()
             ) -> Listing:
    """A listing of names in order; the first `start` characters of each are of no folder that counts."""
    folders: dict[str, int] = {}
    places = [folders.setdefault(name.rpartition('/')[0][start:], len(folders)) for name in names]
    left_out.sort()
    reasons = np.array([LEFT_OUT.index(reason) for _, reason in left_out], np.int8)
    return Listing(
        Names.of(names), Names.of(folders), np.array(places, np.int32),
        Pairs(Names.of(name for name, _ in left_out), reasons, LEFT_OUT), Names.of(directories),
        np.array(spans, np.int64).reshape(-1, 2), seen, Names.of(links))


def class_of(name: str, class_is_leaf: bool = False) -> str:
    """The class of an image by its name below the root; empty where it lies in no folder."""
    folders = name.split('/')[:-1]
    return folders[-1 if class_is_leaf else 0] if folders else ''


def _members(tar: tarfile.TarFile, prefix: str = '', start: int = 0) -> Iterator[tuple[str, int, tarfile.TarInfo]]:
    """Name, offset of the content in the outermost file, and what the header says, of all but folders."""
    for member in tar:
        # A pax header may have NUL in a name, and nothing else can.
        name = prefix + os.path.normpath(member.name.replace('\0', '\ufffd')).lstrip('/')
        if member.isdir():
            continue
        if member.isreg() and not member.issparse() and name.lower().endswith('.tar') and not prefix:
            with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                yield from _members(inner, f'{name[:-len(".tar")]}/', start + member.offset_data)
        else:
            yield name, start + member.offset_data, member


def check_known(found: Iterable[Any], known: Iterable[Any], where: str, source: str) -> None:
    """Raise UserError that names the classes of the data at `where` which `source` does not have."""
    known = set(map(str, known))
    if new := sorted(name for name in map(str, found) if name not in known):
        raise UserError(f'{where} has classes that {source} lacks: {some(new)}; it has {some(sorted(known))}')


def some(names: list[str], limit: int = 5) -> str:
    """The first few of `names`."""
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '')


def summary(left_out: Iterable[tuple[str, str]]) -> str:
    """'3 hidden, or of a system or tool; 2 not an image, by its suffix (.txt, .json)'; names of what is missed."""
    counts = Counter(reason for _, reason in left_out)
    parts = []
    for reason in sorted(counts, key=LEFT_OUT.index):
        detail = ''
        if reason in (NO_IMAGE, NO_VIDEO):
            suffixes = Counter(os.path.splitext(name)[1].lower() or 'no suffix'
                               for name, why in left_out if why == reason)
            detail = f' ({some([suffix for suffix, _ in suffixes.most_common()])})'
        elif reason in (MISSING, NO_TAGS, ONLY_TAGS):
            detail = f' ({some([name for name, why in left_out if why == reason], 2)})'
        parts.append(f'{counts[reason]} {reason}{detail}')
    return '; '.join(parts)


def read_class_map(path: str) -> dict[Any, int]:
    """A class map: a .txt with a class per line, or timm's .pkl of plain values: class -> index.

    Raises UserError when it cannot be read, has a class twice or an empty line among others.
    """
    from timm.data.readers.class_map import load_class_map
    if not path.lower().endswith('.txt'):
        try:
            return dict(load_class_map(path))
        except Exception as error:  # unpickling damaged bytes raises a dozen kinds
            raise UserError(f'class_map {path} cannot be read: {error or type(error).__name__}') from None
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            names = [line.strip() for line in file.read().rstrip().splitlines()]
    except OSError as error:
        raise UserError(f'class_map {path} cannot be read: {error.strerror}') from error
    classes: dict[Any, int] = {}
    for index, name in enumerate(names):
        if not name or name in classes:
            problem = f'has the class {name} twice, again' if name else 'has an empty line, which would count,'
            raise UserError(f'class_map {path} {problem} in line {index + 1}')
        classes[name] = index
    return classes
