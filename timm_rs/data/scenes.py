"""Scenes of real digits on real photos, with masks and boxes: a tree like VOC's that needs no download."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from timm_rs.errors import needing

NAMES = ('background', 'zero', 'one', 'two')  # more kinds take longer than a demonstration may
SIZE = 64  # pixels of a side
COUNTS = dict(train=800, val=200)
TRAIN_SHARE = 0.7  # of the width of each photo


def write_scenes(root: Path, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]],
                 is_validation: npt.NDArray[np.bool_]) -> None:
    """Draw one of the digits `pixels` (N, 8, 8) in each scene, rarely two, and write images, masks, boxes and lists.

    Splits share neither digits nor parts of photos. The edge of a digit is void. The same each time. Raises OSError,
    and UserError without scikit-learn.
    """
    with needing('builtin_data scenes', 'scikit-learn'):  # for its two photos
        from sklearn.datasets import load_sample_images
    photos = load_sample_images().images
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    palette[0] = 0
    for folder in ('ImageSets/Segmentation', 'ImageSets/Main', 'JPEGImages', 'SegmentationClass', 'Annotations'):
        (root / folder).mkdir(parents=True)
    (root / 'classes.txt').write_text('\n'.join(NAMES) + '\n')
    for split, count in COUNTS.items():
        rng = np.random.default_rng(len(split))
        chosen = np.flatnonzero((is_validation == (split == 'val')) & (labels < len(NAMES) - 1))
        edges = [(0, round(TRAIN_SHARE * photo.shape[1])) if split == 'train' else
                 (round(TRAIN_SHARE * photo.shape[1]), photo.shape[1]) for photo in photos]
        names = [f'{split}_{number:04}' for number in range(count)]
        for name in names:
            which = rng.integers(len(photos))
            left = rng.integers(edges[which][0], edges[which][1] - SIZE)
            top = rng.integers(photos[which].shape[0] - SIZE)
            scene = photos[which][top:top + SIZE, left:left + SIZE].copy()
            mask = np.zeros((SIZE, SIZE), np.uint8)
            boxes = [_draw(scene, mask, pixels[index], int(labels[index]) + 1, rng)
                     for index in rng.choice(chosen, rng.integers(1, 3), replace=False)]
            Image.fromarray(scene).save(root / f'JPEGImages/{name}.jpg', quality=95)
            image = Image.fromarray(mask)
            image.putpalette(palette.ravel().tolist())
            image.save(root / f'SegmentationClass/{name}.png')
            (root / f'Annotations/{name}.xml').write_text(voc_xml(f'{name}.jpg', SIZE, SIZE, filter(None, boxes)))
        for kind in ('Segmentation', 'Main'):
            (root / f'ImageSets/{kind}/{split}.txt').write_text('\n'.join(names) + '\n')


def voc_xml(image: str, width: int, height: int, boxes: Iterable[tuple[str, int, int, int, int]]) -> str:
    """An annotation as VOC has it, of boxes (name, left, top, right, bottom), where a pixel at x is from x to x + 1."""
    objects = ''.join(
        f'  <object>\n    <name>{name}</name>\n    <difficult>0</difficult>\n    <bndbox><xmin>{left + 1}</xmin>'
        f'<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>\n  </object>\n'
        for name, left, top, right, bottom in boxes)
    return (f'<annotation>\n  <filename>{image}</filename>\n  <size><width>{width}</width><height>{height}</height>'
            f'<depth>3</depth></size>\n{objects}</annotation>\n')


def _draw(scene: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], digit: npt.NDArray[np.uint8], label: int,
          rng: np.random.Generator) -> tuple[str, int, int, int, int] | None:
    """Draw a digit in a colour at a random size and place, and return its box; None where it would cover another."""
    side = int(rng.integers(30, 47))
    large = cv2.resize(digit, (side, side), interpolation=cv2.INTER_LINEAR)
    top, left = rng.integers(SIZE - side + 1, size=2)
    colour = rng.choice([255, 0, 128]) if rng.random() < 0.5 else rng.integers(0, 256, 3)
    here = np.s_[top:top + side, left:left + side]
    if (mask[here][large > 60] > 0).any():
        return None
    share = (large / 255.0)[..., None]
    scene[here] = np.uint8(np.rint(scene[here] * (1 - share) + share * colour))
    mask[here][large > 60] = 255
    mask[here][large > 130] = label
    rows, columns = (np.flatnonzero((large > 60).any(axis)) for axis in (1, 0))
    return (NAMES[label], int(left + columns[0]), int(top + rows[0]), int(left + columns[-1] + 1),
            int(top + rows[-1] + 1))
