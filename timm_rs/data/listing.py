"""What of a folder or a tar file is an image, and of which class; and what is neither."""

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader

from timm_rs.errors import UserError
from timm_rs.transforms.decode import FORMATS

IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
SYSTEM_NAMES = ('lost+found', 'System Volume Information', 'Thumbs.db', 'desktop.ini')

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


class Listing(NamedTuple):
    """The images of a data set and what lies among them.

    Attributes:
        names: of the images below the root, with slashes, in the order of timm's natural sort.
        labels: the name of each image's class; empty for an image that lies in no folder.
        left_out: (name, one of `LEFT_OUT`) of all else.
        directories: those called like an image and without one, which are bad images rather than left out.
        spans: in an archive, where each image is: (offset, length) in bytes.
    """

    names: list[str]
    labels: list[str]
    left_out: list[tuple[str, str]]
    directories: list[str]
    spans: list[tuple[int, int]]


def accepted_suffixes(suffixes: Iterable[str] = ()) -> tuple[str, ...]:
    """What names of images end with, in lower case: one of `suffixes`, or else of those here and timm's."""
    return tuple(suffix.lower() for suffix in suffixes) or (*IMAGE_SUFFIXES, *get_img_extensions())


def is_of_system(name: str) -> bool:
    """Whether a file or folder is hidden, or what systems and tools leave among images: `.x`, `@x`, `$x`, `#x`, `~x`,
    `__x`."""
    return name[:1] in ('.', '@', '$', '#', '~') or name.startswith('__') or name in SYSTEM_NAMES


def natural_key(name: str) -> list[int | str]:
    """timm's order, in which b9 is before b10. Sort by the name itself first: here, A equals a."""
    parts: list[int | str] = _DIGITS.split(name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts


def in_class_order(labels: Iterable[str]) -> dict[str, int]:
    """Class name -> index: a function of the names alone, the same in every process and for every reader."""
    return {name: index for index, name in enumerate(sorted(sorted(set(labels)), key=natural_key))}


def list_folder(root: str, suffixes: Iterable[str] = (), class_is_leaf: bool = False) -> Listing:
    """Everything below the folder `root`; links to folders are followed, but not around in a circle.

    The class of an image is the folder directly below `root` that it is in, whatever lies deeper; with
    `class_is_leaf` the folder that it lies in itself, as timm has it. Raises OSError.
    """
    accepted = accepted_suffixes(suffixes)
    names: list[str] = []
    left_out: list[tuple[str, str]] = []
    directories: list[str] = []

    def walk(folder: str, prefix: str, around: tuple[tuple[int, int], ...]) -> None:
        found = len(names)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if is_of_system(entry.name):
                    left_out.append((name, OF_SYSTEM))
                elif entry.is_dir():
                    status = os.stat(entry.path)
                    here = status.st_dev, status.st_ino
                    if entry.is_symlink() and here in around:
                        left_out.append((name, LOOP))
                    else:
                        walk(entry.path, f'{name}/', (*around, here))
                elif entry.name.lower().endswith(accepted):
                    names.append(name)
                else:
                    left_out.append((name, NO_IMAGE))
        if len(names) == found and prefix:
            if folder.lower().endswith(accepted):
                directories.append(prefix.rstrip('/'))
            else:
                left_out.append((prefix.rstrip('/'), EMPTY))

    status = os.stat(root)
    walk(root, '', ((status.st_dev, status.st_ino),))
    names.sort()
    names.sort(key=natural_key)
    return Listing(names, [class_of(name, class_is_leaf) for name in names], sorted(left_out), sorted(directories), [])


def list_archive(path: str, suffixes: Iterable[str] = (), class_is_leaf: bool = False) -> Listing:
    """The same of an uncompressed tar file, also of tar files in it, whose names count as folders.

    A folder around everything that is called like the archive, train/ in train.tar, is no class. Raises OSError, and
    tarfile's errors.
    """
    accepted = accepted_suffixes(suffixes)
    members: list[tuple[str, int, int]] = []
    left_out: list[tuple[str, str]] = []
    with tarfile.open(path, 'r:') as tar:
        for name, offset, member in _members(tar):
            if any(is_of_system(part) for part in PurePosixPath(name).parts):
                left_out.append((name, OF_SYSTEM))
            elif not name.lower().endswith(accepted):
                left_out.append((name, NO_IMAGE))
            elif not member.isreg() or member.issparse():
                left_out.append((name, NO_FILE))
            else:
                members.append((name, offset, member.size))
    members.sort()
    members.sort(key=lambda member: natural_key(member[0]))
    names = [name for name, *_ in members]
    around = os.path.splitext(os.path.basename(path))[0] + '/'
    start = len(around) if names and all(name.startswith(around) for name in names) else 0
    return Listing(names, [class_of(name[start:], class_is_leaf) for name in names], sorted(left_out), [],
                   [span for _, *span in members])  # type: ignore[misc]


def class_of(name: str, class_is_leaf: bool = False) -> str:
    """The class of an image by its name below the root; empty where it lies in no folder."""
    folders = name.split('/')[:-1]
    return folders[-1 if class_is_leaf else 0] if folders else ''


def _members(tar: tarfile.TarFile, prefix: str = '', start: int = 0) -> Iterator[tuple[str, int, tarfile.TarInfo]]:
    """Name, offset of the content in the outermost file, and what the header says, of all but folders."""
    for member in tar:
        name = prefix + os.path.normpath(member.name).lstrip('/')
        if member.isdir():
            continue
        if member.isreg() and not member.issparse() and name.lower().endswith('.tar') and not prefix:
            with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                yield from _members(inner, f'{name[:-len(".tar")]}/', start + member.offset_data)
        else:
            yield name, start + member.offset_data, member


class ListedImages(Reader):  # type: ignore[misc]
    """A listing as timm's datasets read one: `reader[index]` is an open file and a class index.

    Attributes:
        root: the folder or archive.
        class_to_idx: the classes, in order.
        samples: (path, class index); in an archive the path is the member's name.
        left_out, directories: as of the listing, with the folder's path.
    """

    def __init__(self, root: str, listing: Listing, classes: dict[str, int]):
        super().__init__()
        self.root, self.class_to_idx, self.spans = root, classes, listing.spans
        prefix = '' if listing.spans else os.path.join(root, '')
        self.left_out = [(prefix + name, reason) for name, reason in listing.left_out]
        self.directories = [prefix + name for name in listing.directories]
        self.samples = [(prefix + name, classes[label])
                        for name, label in zip(listing.names, listing.labels, strict=True)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, target = self.samples[index]
        if not self.spans:
            return open(path, 'rb'), target
        offset, length = self.spans[index]
        with open(self.root, 'rb') as archive:
            archive.seek(offset)
            content = archive.read(length)
        if len(content) < length:
            raise tarfile.ReadError('unexpected end of data')
        return io.BytesIO(content), target

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = str(self.samples[index][0])
        if basename:
            return os.path.basename(path)
        return path if absolute or self.spans else os.path.relpath(path, self.root)


def open_images(root: str, suffixes: Iterable[str] = (), class_is_leaf: bool = False) -> ListedImages:
    """The images of a folder or tar file, in classes by natural order.

    Raises UserError where there is none, or where images lie in no folder; OSError and tarfile's errors.
    """
    listing = (list_archive if os.path.isfile(root) else list_folder)(root, suffixes, class_is_leaf)
    if '' in listing.labels:
        raise UserError(f'images lie directly in {root}; training needs one folder per class there')
    if not listing.names:
        raise UserError(f'there are no images in {root}' + (
            f'; what is there: {summary(listing.left_out)}' if listing.left_out else ''))
    return ListedImages(root, listing, in_class_order(listing.labels))


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
