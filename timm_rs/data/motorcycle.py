"""Depths of a real scene that need no download: windows of the Middlebury motorcycle, as scikit-image has it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from timm_rs.errors import needing

FOCAL, OFFSET, BASELINE = 994.978, 31.086, 193.001  # pixels, pixels, millimetres, as scikit-image documents them
SIZE = 128  # pixels of a side of a window
TRAIN_SHARE = 0.65  # of the width
NUM_TRAIN, ROWS, COLUMNS = 320, 7, 3  # windows; those for validation are on a grid


def write_motorcycle(root: Path) -> None:
    """Write images/SPLIT/*.png and depth/SPLIT/*.png in millimetres, 0 where nothing was measured. The same each time.

    Windows for training lie left of a column, at random, those for validation right of it.

    Source: Middlebury stereo 2014 (Scharstein et al., GCPR 2014). Raises OSError, and UserError without scikit-image.
    """
    with needing('builtin_data motorcycle', 'scikit-image'):
        from skimage.data import stereo_motorcycle
    image, _, disparity = stereo_motorcycle()
    depth = np.rint(BASELINE * FOCAL / (disparity + OFFSET)).astype(np.uint16)  # infinite disparity: not measured
    edge, (height, width) = round(TRAIN_SHARE * depth.shape[1]), depth.shape
    rng = np.random.default_rng(0)
    _write(root, 'train', image, depth, rng.integers(0, [height - SIZE + 1, edge - SIZE + 1], (NUM_TRAIN, 2)))
    rows, columns = np.linspace(0, height - SIZE, ROWS, dtype=int), np.linspace(edge, width - SIZE, COLUMNS, dtype=int)
    _write(root, 'val', image, depth, np.stack(np.meshgrid(rows, columns), -1).reshape(-1, 2))


def _write(root: Path, split: str, image: npt.NDArray[np.uint8], depth: npt.NDArray[np.uint16],
           corners: npt.NDArray[np.integer[Any]]) -> None:
    for kind, pixels in (('images', image), ('depth', depth)):
        (root / kind / split).mkdir(parents=True)
        for number, (top, left) in enumerate(corners):
            Image.fromarray(pixels[top:top + SIZE, left:left + SIZE]).save(root / f'{kind}/{split}/{number:03}.png')
