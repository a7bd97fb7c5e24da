"""Images of several real digits, with a table of which are there: tags that need no download."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

COUNTS = dict(train=2000, validation=400)
PLACES = 2  # digits along a side
MOST = 3  # in an image


def write_several(root: Path, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]],
                  is_validation: npt.NDArray[np.bool_]) -> None:
    """Put up to `MOST` of the digits `pixels` (N, 8, 8) into each image, and write images and tables of tags.

    Splits share no digits. The same each time. Raises OSError.
    """
    side = pixels.shape[1]
    for split, count in COUNTS.items():
        rng = np.random.default_rng(len(split))
        chosen = np.flatnonzero(is_validation == (split == 'validation'))
        (root / split).mkdir(parents=True)
        with open(root / f'{split}.csv', 'w', newline='') as file:
            rows = csv.writer(file)
            rows.writerow(['file', 'tags'])
            for number in range(count):
                image = np.zeros((PLACES * side,) * 2, np.uint8)
                digits = rng.choice(chosen, rng.integers(MOST + 1), replace=False)
                for index, place in zip(digits, rng.permutation(PLACES ** 2), strict=False):
                    top, left = side * (place // PLACES), side * (place % PLACES)
                    image[top:top + side, left:left + side] = pixels[index]
                Image.fromarray(image).save(root / split / f'{number:04}.png')
                rows.writerow([f'{split}/{number:04}.png', ';'.join(map(str, sorted(set(labels[digits].tolist()))))])
