"""Images with any number of tags each: a table for each split, or a text file beside each image."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from timm_rs.data.annotated import lines_of, named_classes, split_synonyms
from timm_rs.data.listing import MISSING, NO_TAGS, ONLY_TAGS, check_known, in_class_order, list_folder, some
from timm_rs.data.samples import Samples
from timm_rs.errors import UserError

FILE_COLUMNS = ('file', 'filename', 'file_name', 'image', 'image_name', 'path')  # what the first column may be called
TAGS = 'tags'
MARKS = {'0': False, '0.0': False, 'false': False, '1': True, '1.0': True, 'true': True}
SEPARATOR = ';'


class Tagged(Samples):
    """Images and their tags. The label of one is a tuple of class indices, empty where it has no tag."""

    def __init__(self, images: Sequence[Path], tags: Sequence[Iterable[str]], classes: dict[str, int],
                 left_out: Sequence[tuple[str, str]] = ()):
        """All `tags` must be in `classes`."""
        self.images, self.classes, self.left_out = images, classes, left_out
        self.labels = [tuple(sorted({classes[tag] for tag in some_tags})) for some_tags in tags]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[bytes, tuple[int, ...]]:
        return self.images[index].read_bytes(), self.labels[index]

    def name(self, index: int) -> str:
        return str(self.images[index])

    def targets(self) -> list[tuple[int, ...]]:  # type: ignore[override]
        return self.labels


class _Found(NamedTuple):
    images: list[Path]
    tags: list[list[str]]
    names: set[str]  # all classes that are spoken of
    left_out: list[tuple[str, str]]


def open_tags(root: Path, split: str) -> Tagged:
    """The images of a table `split`.csv in `root`, or those of a folder `split` with text files beside them.

    Classes are the lines of classes.txt in `root`, or else the tags of the split in natural order. What is tagged and
    not there, and what is there and not tagged, is left out by name. Raises UserError for a split that is missing or
    has no image with its tags, for tags that classes.txt lacks, and for tables and texts that can be read in two ways.
    """
    names = split, *split_synonyms(split)
    table = next((path for name in names if (path := root / f'{name}.csv').is_file()), None)
    folder = next((path for name in names if (path := root / name).is_dir()), None)
    if table is not None:
        found = _of_table(table)
    elif folder is not None:
        found = _of_folder(folder)
    else:
        raise UserError(f'{root} has no split {split}: it needs a table {split}.csv with the columns file and tags, or '
                        f'a folder {split}/ with a text file of tags beside each image')
    where, classes = str(table or folder), named_classes(root)
    if wrong := sorted(name for name in found.names | classes.keys() if SEPARATOR in name):
        raise UserError(f'{where}: {some(wrong)} has a {SEPARATOR} in its name: a table has it between tags, a text '
                        'beside an image has commas there, or lines')
    if classes:
        check_known(found.names, classes, where, str(root / 'classes.txt'))
    return Tagged(found.images, found.tags, classes or in_class_order(found.names), found.left_out)


# ---- a folder ---------------------------------------------------------------------------------------------------

def _of_folder(folder: Path) -> _Found:
    """All images below `folder`, each with the tags in the text beside it."""
    listing = list_folder(str(folder))
    texts = {name for name, _ in listing.left_out if name.endswith('.txt')}
    images: dict[str, str] = {}  # by text
    left_out = []
    for name in listing.names:
        text = f'{os.path.splitext(name)[0]}.txt'
        if text not in texts:
            left_out.append((str(folder / name), NO_TAGS))
        elif text in images:
            raise UserError(f'{folder} has both {images[text]} and {name}: of which of them is {text}?')
        else:
            images[text] = name
    if not images:
        first = os.path.splitext(listing.names[0])[0] if listing.names else 'photo'
        raise UserError(f'{folder} has no image with a text of tags beside it, as {first}.txt would be: write one for '
                        f'each image, or a table {folder}.csv with the columns file and tags')
    left_out += [(str(folder / name), ONLY_TAGS if name in texts else reason)
                 for name, reason in listing.left_out if name not in images]
    tags = [_in_text(folder / text) for text in images]
    return _Found([folder / name for name in images.values()], tags, {tag for some_tags in tags for tag in some_tags},
                  left_out)


def _in_text(path: Path) -> list[str]:
    """The tags in a file, between commas or on lines. Raises OSError."""
    return _cleaned(tag for line in lines_of(path) for tag in line.removeprefix('\ufeff').split(','))


def _cleaned(tags: Iterable[str]) -> list[str]:
    return [tag for tag in (' '.join(text.split()) for text in tags) if tag]


# ---- a table ----------------------------------------------------------------------------------------------------

def _of_table(path: Path) -> _Found:
    """The images that a table names and that are there: in its folder, in images/, or in one called like the table."""
    folder, lines = path.with_suffix(''), dict[Path, int]()
    found, tagged = _Found([], [], set(), []), dict[Path, list[str]]()
    for line, name, tags in _rows(path, found.names):
        inside = PurePosixPath(name)
        if inside.is_absolute() or '..' in inside.parts:
            raise UserError(f'{path}, line {line}: {name} is not within {path.parent}: give its path from there on')
        place = next((place for place in (path.parent / inside, folder / inside, path.parent / 'images' / inside)
                      if place.is_file()), None)
        key = place or path.parent / inside
        if key in lines:
            raise UserError(f'{path} names {name} twice, in lines {lines[key]} and {line}: give it one line, with all '
                            'its tags')
        lines[key] = line
        found.names.update(tags)
        if place is None:
            found.left_out.append((name, MISSING))
        else:
            tagged[place] = tags
    if not tagged:
        raise UserError(f'none of the {len(lines)} images that {path} names is there' + (
            f': {some([name for name, _ in found.left_out], 2)}; paths are from {path.parent} on' if lines else ''))
    if folder.is_dir():
        others = (folder / name for name in list_folder(str(folder)).names)
        found.left_out.extend((str(other), NO_TAGS) for other in others if other not in tagged)
    return found._replace(images=list(tagged), tags=list(tagged.values()))


def _rows(path: Path, names: set[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Line, file and tags of each row of a table; `names` gets the classes that have a column."""
    try:
        with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as file:
            reader = csv.reader(file)
            header = [' '.join(cell.split()) for cell in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, csv.Error) as error:
        raise UserError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from error
    columns = header[1:]
    if not columns or header[0].lower() not in FILE_COLUMNS or '' in columns:
        raise UserError(f'{path} needs a first line "file,{TAGS}", or "file" and the name of a class over each other '
                        f'column, and has {",".join(header)[:200]!r}')
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f'{path} has two columns {twice}: leave one out')
    for line, row in rows:
        if len(row) != len(header) or not row[0].strip():
            raise UserError(f'{path}, line {line}: a file and {len(columns)} more are wanted, got '
                            f'{",".join(row)[:200]!r}; quote what has a comma')
    if [name.lower() for name in columns] == [TAGS]:
        _check_separated(path, [(line, row[1]) for line, row in rows])
        yield from ((line, name.strip(), _cleaned(tags.split(SEPARATOR))) for line, (name, tags) in rows)
        return
    names.update(columns)
    for line, (name, *marks) in rows:
        for column, mark in zip(columns, marks, strict=True):
            if mark.strip().lower() not in MARKS:
                raise UserError(f'{path}, line {line}, column {column}: 0 or 1 is wanted, got {mark[:80]!r}; a column '
                                'of anything else has to go')
        yield line, name.strip(), [column for column, mark in zip(columns, marks, strict=True)
                                   if MARKS[mark.strip().lower()]]


def _check_separated(path: Path, cells: Sequence[tuple[int, str]]) -> None:
    """Raise UserError where nothing tells a tag of several words from several tags."""
    if any(SEPARATOR in cell for _, cell in cells):
        return
    if doubtful := next(((line, cell) for line, cell in cells if len(cell.replace(',', ' ').split()) > 1), None):
        raise UserError(f'{path}, line {doubtful[0]}: {doubtful[1][:80]!r} may be one tag or several: put a '
                        f'{SEPARATOR} between tags, or behind one that stands alone')
