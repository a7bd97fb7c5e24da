"""Images with boxes around the objects in them: VOC's XML, COCO's JSON; what their files mean."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from timm_rs.data.annotated import (
    LOOKED_AT,
    VOC_CLASSES,
    images_by_stem,
    lines_of,
    list_called,
    named_classes,
    split_synonyms,
)
from timm_rs.data.bad_samples import READ_ERRORS, why_unreadable
from timm_rs.data.samples import Samples
from timm_rs.errors import UserError
from timm_rs.transforms.boxes import CROWD, DIFFICULT, Boxes, check_boxes_size, clipped, rows_of
from timm_rs.transforms.decode import BadImage, Picture

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
YEAR = re.compile(r'(?:VOC)?(\d{4})_(\w+)')


class Boxed(Samples):
    """Images and their `Boxes`, which `boxes` gives."""

    classes: dict[Any, int]
    images: list[Path]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def read(self, index: int) -> tuple[bytes, Boxes]:
        """Raises BadImage where the image is there, and its annotation cannot be used."""
        return self.images[index].read_bytes(), self.boxes(index)

    def boxes(self, index: int) -> Boxes:
        raise NotImplementedError

    def check(self, picture: Picture, boxes: Boxes) -> None:
        """Raise BadImage for boxes of another size of image, and for those that training would cut or drop."""
        check_boxes_size(picture, boxes)
        for row in boxes.rows:
            inside = clipped(row[None], picture.width, picture.height)
            if not len(inside) or not torch.equal(inside[0], row):
                where = 'reaches out of' if len(inside) else 'has no area in'
                corners = [round(number, 2) for number in row[:4].tolist()]
                raise BadImage(f'its box {corners} {where} its {picture.width} x {picture.height} pixels (left, top, '
                               'right, bottom from 0)')


class VocBoxes(Boxed):
    """Images and XML files: `pairs` of paths."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], classes: dict[Any, int]):
        self.images, self.annotations, self.classes = [pair[0] for pair in pairs], [pair[1] for pair in pairs], classes

    def boxes(self, index: int) -> Boxes:
        path = self.annotations[index]
        try:
            return read_voc_boxes(path.read_bytes(), str(path), self.classes)
        except READ_ERRORS as error:
            raise BadImage(f'its annotation {path}: {why_unreadable(error)}') from error


class CocoBoxes(Boxed):
    """Images and what one JSON file says of them: rows of all, one image after the other."""

    def __init__(self, images: list[Path], sizes: list[tuple[int, int] | None], rows: list[list[list[float]]],
                 classes: dict[Any, int]):
        self.images, self.sizes, self.classes = images, sizes, classes
        self.ends = np.cumsum([0, *map(len, rows)])  # arrays, which data workers share
        self.rows = rows_of([row for some_rows in rows for row in some_rows])

    def boxes(self, index: int) -> Boxes:
        return Boxes(self.rows[self.ends[index]:self.ends[index + 1]], self.sizes[index])


def read_voc_boxes(content: bytes, path: str, classes: dict[Any, int]) -> Boxes:
    """What an annotation of VOC says, whose coordinates are of pixels counted from 1, both ends included.

    Raises BadImage, which names `path`, for anything else, and for an object that is of none of the `classes`.
    """
    try:
        if b'<!ENTITY' in content:  # which may stand for gigabytes
            raise BadImage(f'its annotation {path} declares entities')
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadImage(f'its annotation {path} is no XML: {error}') from error
    if root.tag != 'annotation':
        raise BadImage(f'its annotation {path} is no annotation of VOC, but <{root.tag[:40]}>')
    rows = []
    for thing in root.findall('object'):
        name = (thing.findtext('name') or '').strip()
        if name not in classes:
            raise BadImage(f'its annotation {path} has an object {name[:40]!r}, which is no class: those of '
                           'classes.txt, or else VOC\'s 20, are')
        left, top, right, bottom = _numbers(thing.find('bndbox'), CORNERS, f'its annotation {path}: the box of {name}')
        is_difficult = (thing.findtext('difficult') or '0').strip() not in ('', '0')
        rows.append([left - 1, top - 1, right, bottom, classes[name], DIFFICULT * is_difficult])
    size = root.find('size')
    if size is None:
        return Boxes(rows_of(rows))
    width, height = map(int, _numbers(size, ('width', 'height'), f'its annotation {path}: the size'))
    return Boxes(rows_of(rows), (width, height) if width and height else None)  # some programs write 0 x 0


def _numbers(parent: Any, names: Sequence[str], what: str) -> list[float]:
    """The numbers in the elements `names`, in whichever order they come. Raises BadImage, which begins with `what`."""
    texts = [None if parent is None else parent.findtext(name) for name in names]
    try:
        numbers = [float(text or '') for text in texts]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise BadImage(f'{what} needs numbers as {", ".join(names)}, and has {", ".join(map(str, texts))}')
    return numbers


def check_boxes(samples: Samples) -> None:
    """Look into up to `LOOKED_AT` annotations from all of the data. Raises UserError where there is no box in them.

    One that is bad ends it: training names it.
    """
    for index in np.unique(np.linspace(0, len(samples) - 1, LOOKED_AT).round().astype(int)):
        try:
            if len(samples.read(int(index))[1].rows):
                return
        except (BadImage, *READ_ERRORS):
            return
    raise UserError(f'there is no box in the annotations of {samples.name(0)} and others: nothing would be learned '
                    'from them')


# ---- where the files are ----------------------------------------------------------------------------------------

def open_voc_boxes(root: Path, split: str) -> VocBoxes:
    """Image sets by list file, of one year or of several: `2007_trainval+2012_trainval`. Raises OSError, UserError."""
    pairs, names = [], list(named_classes(root))
    for part in split.split('+'):
        year = YEAR.fullmatch(part)
        inner = [f'VOC{year[1]}', f'VOCdevkit/VOC{year[1]}'] if year else ['VOCdevkit/VOC2012', 'VOC2012']
        folder = next((root / name for name in inner if (root / name).is_dir()), None if year else root)
        if folder is None:
            raise UserError(f'{root} has no folder {inner[0]} for split {part}')
        images = images_by_stem(folder / 'JPEGImages')
        for stem in _listed(folder / 'ImageSets/Main', year[2] if year else part):
            pairs.append((images.get(stem, folder / f'JPEGImages/{stem}.jpg'), folder / f'Annotations/{stem}.xml'))
        names = names or list(named_classes(folder))
    names = names or list(VOC_CLASSES)
    # Where a tree has masks, too, the first class is what they have around the objects.
    return VocBoxes(pairs, {name: label for label, name in enumerate(names[names[0] == VOC_CLASSES[0]:])})


def _listed(lists: Path, split: str) -> list[str]:
    """The first word of each line in the list of a split."""
    chosen = list_called(lists, (split, *split_synonyms(split)), ', such as 2007_test or 2007_trainval+2012_trainval '
                         'where VOC2007/ and VOC2012/ are')
    return [line.split()[0] for line in lines_of(chosen) if line.strip()]


def open_coco_boxes(root: Path, split: str) -> CocoBoxes:
    """A JSON file of the split, and its images in a folder called as the split or beside it.

    Raises UserError where one of them is missing, and for a file that is not as COCO's are.
    """
    names = (split, *split_synonyms(split))
    places = [place for name in names for place in (
        f'annotations/instances_{name}.json', f'annotations/{name}.json', f'{name}.json',
        f'{name}/_annotations.coco.json')]
    path = next((root / place for place in places if (root / place).is_file()), None)
    if path is None:
        raise UserError(f'{root} has no boxes for split {split}: it needs {places[0]}, or {", ".join(places[1:4])}')
    folders = [root / inner for name in names for inner in (name, f'images/{name}')] + [root / 'images', root]
    try:
        return _of_coco(json.loads(path.read_bytes()), folders)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is no JSON: {error}') from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not as COCO has it, with images, annotations and categories: '
                        f'{type(error).__name__} {error}') from error
    except _CocoError as error:
        raise UserError(f'{path}: {error}') from error


class _CocoError(Exception):
    """What is wrong in a JSON file."""


def _of_coco(content: Any, folders: Sequence[Path]) -> CocoBoxes:
    """Boxes of COCO are [left, top, width, height] from 0, and labels the order of the categories' numbers."""
    categories = sorted(content['categories'], key=lambda category: category['id'])
    labels = {category['id']: label for label, category in enumerate(categories)}
    classes = {str(category['name']): label for label, category in enumerate(categories)}
    if not len(labels) == len(classes) == len(categories):
        raise _CocoError('categories need ids and names of their own, and some have the same')
    rows: dict[Any, list[list[float]]] = {image['id']: [] for image in content['images']}
    if len(rows) < len(content['images']):
        raise _CocoError('images need ids of their own, and some have the same')
    for annotation in content['annotations']:
        box, where = annotation['bbox'], f'annotation {annotation["id"]}'
        if annotation['image_id'] not in rows:
            raise _CocoError(f'{where} is of image {annotation["image_id"]}, which is none of its images')
        if annotation['category_id'] not in labels:
            raise _CocoError(f'{where} is of category {annotation["category_id"]}, which is none of its categories')
        if len(box) != 4 or not np.isfinite(np.array(box, float)).all():
            raise _CocoError(f'{where} needs a bbox of four numbers, and has {str(box)[:60]}')
        left, top, width, height = box
        rows[annotation['image_id']].append([
            left, top, left + width, top + height, labels[annotation['category_id']],
            CROWD if annotation.get('iscrowd') else 0])
    paths = [_path_in(image['file_name']) for image in content['images']]
    folder = next((folder for folder in folders if paths and (folder / paths[0]).is_file()), folders[0])
    sizes = [(int(image['width']), int(image['height'])) if image.get('width') else None
             for image in content['images']]
    return CocoBoxes([folder / path for path in paths], sizes, list(rows.values()), classes)


def _path_in(name: str) -> PurePosixPath:
    """The path of an image within a folder. Raises _CocoError for one that leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts:
        raise _CocoError(f'image {name} is not within the folder of images')
    return path
