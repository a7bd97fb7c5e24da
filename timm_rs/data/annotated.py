"""Images with something known of each of their pixels: VOC's tree, ADE20k's, folders; what their files mean."""

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from timm_rs.data.bad_samples import READ_ERRORS, why_unreadable
from timm_rs.data.datasets import TRAIN_NAMES, VALIDATION_NAMES
from timm_rs.data.listing import some
from timm_rs.data.samples import Samples
from timm_rs.errors import UserError
from timm_rs.recipe.command_line import flag
from timm_rs.recipe.declaring import nearest
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import FORMATS, BadImage, Picture, open_picture, open_with_pillow, pillow_deciding
from timm_rs.transforms.joint import check_same_size

VOID = 255  # in masks
# How recipes write layouts: timm's train.py refuses such a dataset, and would else learn to tell its folders apart.
PREFIX = 'torch/timm_rs/'
SUFFIXES = tuple(suffix for group in FORMATS.values() for suffix in group)
VOC_CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
ADE_CLASSES = 150
LOOKED_AT = 100  # masks, before training
NEAREST, FURTHEST = 0.1, 20  # metres that the median of a depth map may have


class Annotation(NamedTuple):
    """The bytes of a file that belongs to an image, or its numbers (H, W), and how those are to be read."""

    content: bytes | npt.NDArray[Any]
    path: str
    first_is_void: bool


class Annotated(Samples):
    """Images and their annotations: pairs of paths. Masks, unless these are of `depths`."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], classes: dict[Any, int], first_is_void: bool = False,
                 depths: bool = False):
        """With `first_is_void`, label 0 is void and 1 the first class."""
        self.pairs, self.classes, self.first_is_void = pairs, classes, first_is_void
        self.decode = read_depth if depths else partial(read_mask, num_classes=len(classes) or VOID)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[bytes, Annotation]:
        """Raises BadImage where the image is there, and its annotation cannot be read."""
        image, annotation = self.pairs[index]
        content = image.read_bytes()
        try:
            return content, Annotation(annotation.read_bytes(), str(annotation), self.first_is_void)
        except READ_ERRORS as error:
            raise BadImage(f'its annotation {annotation}: {why_unreadable(error)}') from error

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def check(self, picture: Picture, annotation: Annotation) -> None:
        """Raise BadImage for an annotation that cannot be used with the image."""
        check_same_size(picture, tuple(self.decode(annotation).shape[::-1]))

    def longest_side(self) -> int:
        """Of all annotations that can be opened, in pixels, without decoding any."""
        sides = [1]
        for _, path in self.pairs:
            with contextlib.suppress(*READ_ERRORS), Image.open(path) as image:
                sides.append(max(image.size))
        return max(sides)


# ---- what is in an annotation -----------------------------------------------------------------------------------

def read_mask(annotation: Annotation, num_classes: int) -> torch.Tensor:
    """Class indices (H, W) int16, `VOID` where there is none.

    Raises BadImage for a mask in colours, or with a label that is no class.
    """
    labels = _numbers(annotation)
    if labels.ndim != 2:
        raise BadImage(f'its mask {annotation.path} has colours, not a number for each pixel: save it grey')
    if annotation.first_is_void:
        labels = np.where(labels == 0, VOID, labels.astype(np.int64) - 1)
    wrong = labels[(labels >= num_classes) & (labels != VOID)]
    if wrong.size:
        raise BadImage(f'its mask {annotation.path} has label {int(wrong.max()) + annotation.first_is_void}, but the '
                       f'classes are {int(annotation.first_is_void)} to {num_classes - 1 + annotation.first_is_void}')
    return torch.from_numpy(labels.astype(np.int16))


def read_depth(annotation: Annotation, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Metres (H, W) float32, 0 where nothing was measured, of millimetres in 16 bits or metres as fractions.

    Raises BadImage for other files, for depths of another `size`, where nothing was measured, and where half of what
    was is nearer than `NEAREST` or further than `FURTHEST`: it would be in other units.
    """
    numbers = _numbers(annotation)
    if numbers.ndim != 2 or numbers.dtype in (np.uint8, np.bool_):
        raise BadImage(f'its depth {annotation.path} has 8 bits: it must be a PNG of 16 bits, in millimetres')
    metres = numbers.astype(np.float32) / (1 if numbers.dtype.kind == 'f' else 1000)
    metres[~np.isfinite(metres)] = 0
    if size not in (None, metres.shape):
        raise BadImage(f'its depth {annotation.path} has {metres.shape[1]} x {metres.shape[0]} pixels, not '
                       f'{size[1]} x {size[0]}')  # type: ignore[index]
    if not (metres > 0).any():
        raise BadImage(f'its depth {annotation.path} was measured nowhere')
    middle = float(np.median(metres[metres > 0]))
    if not NEAREST <= middle <= FURTHEST:
        raise BadImage(f'its depth {annotation.path} has {middle:.4g} m in the middle, not {NEAREST} to {FURTHEST}: 16 '
                       'bits are taken as millimetres, fractions as metres')
    return torch.from_numpy(metres)


def _numbers(annotation: Annotation) -> Any:
    """The numbers of a PNG as they are stored, (H, W), or colours (H, W, C)."""
    if not isinstance(annotation.content, bytes):
        return annotation.content
    try:
        image = open_with_pillow(annotation.content)
        with pillow_deciding():
            return np.array(image)
    except BadImage as error:
        raise BadImage(f'its annotation {annotation.path}: {error}') from error


def check_masks(samples: Samples, num_classes: int) -> None:
    """Look into up to `LOOKED_AT` masks from all of the data.

    Raises UserError where no two classes occur in them, so that nothing would be learned. Bad masks are passed over,
    since training names them.
    """
    found: set[int] = set()
    for index in np.unique(np.linspace(0, len(samples) - 1, LOOKED_AT).round().astype(int)):
        try:
            found.update(read_mask(samples.read(int(index))[1], num_classes).unique().tolist())
        except (BadImage, *READ_ERRORS):
            continue
        if len(found - {VOID}) > 1:
            return
    if found:
        void = f' and {VOID}, which is void' if VOID in found else ''
        raise UserError(f'there is no more than one class in the masks of {samples.name(0)} and others, only '
                        f'{some([str(label) for label in sorted(found - {VOID})]) or "none"}{void}: number the classes '
                        f'from 0 on in the order of classes.txt')


def annotation_problem(samples: Samples, index: int) -> str | None:
    """What is wrong with the annotation of image `index`, which itself is good; None where there is nothing.

    Size and numbers are looked at. Samples without annotations have nothing wrong with them.
    """
    if not (check := getattr(samples, 'check', None)):
        return None
    source, annotation = samples.read(index)
    try:
        check(open_picture(source), annotation)
    except BadImage as error:
        return str(error)
    return None


# ---- where the files are ----------------------------------------------------------------------------------------

def open_annotated(recipe: Recipe, split: str, layouts: Sequence[str]) -> Samples:
    """A split of the data in `data_dir`, which is laid out as `dataset` says, or as the first of `layouts`.

    Raises UserError where it is missing or empty, or laid out otherwise.
    """
    layout = recipe.dataset.removeprefix(PREFIX) or layouts[0]
    if layout not in layouts:
        raise UserError(f'dataset {recipe.dataset} is no layout of this task: take {", ".join(layouts)}.'
                        f'{nearest(layout, layouts)}')
    return open_layout(layout, recipe.data_dir, split)


def layout_of(dataset: str) -> str:
    """The layout that a recipe's `dataset` names, if it is one; else nothing."""
    layout = dataset.removeprefix(PREFIX)
    return layout if layout in LAYOUTS else ''


def open_layout(layout: str, data_dir: str | None, split: str) -> Samples:
    """A split of the data in `data_dir`. Raises UserError as `open_annotated`."""
    if not data_dir:
        raise UserError(f'no data: give --data-dir FOLDER with the tree of {layout}')
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f'data folder {root} does not exist')
    try:
        opened = LAYOUTS[layout](root, split)
    except OSError as error:
        raise UserError(f'{error.filename}: {why_unreadable(error)}; is the data in {root} laid out as {layout} '
                        'is?') from error
    if not len(opened):
        raise UserError(f'split {split} in {root} has no images')
    return opened


def _open_voc(root: Path, split: str) -> Annotated:
    """Image sets by list file; a line is the name of an image, or the paths of image and mask."""
    root = next((root / inner for inner in ('VOCdevkit/VOC2012', 'VOC2012') if (root / inner).is_dir()), root)
    lists = root / 'ImageSets/Segmentation'
    names = (split, split.replace('_', ''), *split_synonyms(split))
    chosen = list_called(lists, names)
    images = images_by_stem(root / 'JPEGImages')
    masks = [images_by_stem(root / folder) for folder in ('SegmentationClass', 'SegmentationClassAug')
             if (root / folder).is_dir()]
    pairs = []
    for line in filter(None, map(str.strip, lines_of(chosen))):
        first, *rest = line.split()
        stem = Path(first).stem if rest else first
        absent = root / 'SegmentationClass' / f'{stem}.png'
        pairs.append((images.get(stem, root / 'JPEGImages' / f'{stem}.jpg'),
                      root / rest[0].lstrip('/') if rest else next(
                          (found[stem] for found in masks if stem in found), absent)))
    return Annotated(pairs, named_classes(root) or _numbered(VOC_CLASSES))


def _open_ade20k(root: Path, split: str) -> Annotated:
    """Label 0 is what is of no class, in both splits."""
    root = next((root / inner for inner in ('ADEChallengeData2016',) if (root / inner).is_dir()), root)
    info = root / 'objectInfo150.txt'
    names = [line.split('\t')[-1].strip() for line in lines_of(info)[1:] if line.strip()] if info.is_file() else []
    if len(names) != ADE_CLASSES:
        names = [f'class {number}' for number in range(1, ADE_CLASSES + 1)]
    return Annotated(_folder_pairs(root, split, ('annotations',)), _numbered(names), first_is_void=True)


def _open_folders(root: Path, split: str) -> Annotated:
    return Annotated(_folder_pairs(root, split, ('masks', 'annotations', 'labels')), named_classes(root))


def _open_depth_folders(root: Path, split: str) -> Annotated:
    return Annotated(_folder_pairs(root, split, ('depth', 'depths')), {}, depths=True)


def _open_nyu(root: Path, split: str) -> Samples:
    from timm_rs.data.nyu import open_nyu  # which builds upon what is here
    return open_nyu(root, split)


def _open_voc_boxes(root: Path, split: str) -> Samples:
    from timm_rs.data.boxed import open_voc_boxes  # as well
    return open_voc_boxes(root, split)


def _open_coco(root: Path, split: str) -> Samples:
    from timm_rs.data.boxed import open_coco_boxes
    return open_coco_boxes(root, split)


def _open_tags(root: Path, split: str) -> Samples:
    from timm_rs.data.tagged import open_tags
    return open_tags(root, split)


LAYOUTS: dict[str, Callable[[Path, str], Samples]] = dict(
    voc=_open_voc, ade20k=_open_ade20k, folders=_open_folders, depth_folders=_open_depth_folders, nyu=_open_nyu,
    voc_boxes=_open_voc_boxes, coco=_open_coco, tags=_open_tags)


def _folder_pairs(root: Path, split: str, kinds: Sequence[str]) -> list[tuple[Path, Path]]:
    """Images of images/SPLIT and what has their names in KIND/SPLIT, or of SPLIT/images and SPLIT/KIND."""
    names = split, *split_synonyms(split)
    candidates = [(root / 'images' / name, root / kind / name) for name in names for kind in kinds]
    candidates += [(root / name / 'images', root / name / kind) for name in names for kind in kinds]
    found = next((pair for pair in candidates if all(map(Path.is_dir, pair))), None)
    if found is None:
        raise UserError(f'{root} has no split {split}: it needs images/{split}/ and {kinds[0]}/{split}/')
    annotations = images_by_stem(found[1])
    return [(path, annotations.get(stem, found[1] / f'{stem}.png')) for stem, path in images_by_stem(found[0]).items()]


def list_called(lists: Path, names: Sequence[str], hint: str = '') -> Path:
    """The first of the files NAME.txt in `lists` that is there. Raises UserError, with a `hint` at its end."""
    chosen = next((path for name in names if (path := lists / f'{name}.txt').is_file()), None)
    if chosen is None:
        there = [path.stem for path in sorted(lists.glob('*.txt'))]
        raise UserError(f'{lists} has no list {names[0]}.txt; there are {some(there) or "none"}: give '
                        f'{flag("train_split")} or {flag("val_split")}{hint}')
    return chosen


def split_synonyms(split: str) -> Sequence[str]:
    return next((names for names in (TRAIN_NAMES, VALIDATION_NAMES) if split in names), ())


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder, in the order of their names. Raises OSError."""
    found: dict[str, Path] = {}
    for entry in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(entry)
        if suffix.lower() in SUFFIXES and not entry.startswith('.'):
            if stem in found:
                raise UserError(f'{folder} has both {found[stem].name} and {entry}: which of them is image {stem}?')
            found[stem] = folder / entry
    return found


def named_classes(root: Path) -> dict[Any, int]:
    """Names in classes.txt, label 0 first; empty without that file."""
    path = root / 'classes.txt'
    return _numbered([line.strip() for line in lines_of(path) if line.strip()]) if path.is_file() else {}


def _numbered(names: Sequence[str]) -> dict[Any, int]:
    if len(set(names)) < len(names):
        raise UserError(f'classes.txt names {next(name for name in names if list(names).count(name) > 1)} twice')
    return {name: number for number, name in enumerate(names)}


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8', errors='surrogateescape').splitlines()
