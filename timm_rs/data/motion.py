"""Clips that only motion can tell apart: real digits that move in one of six ways, for the quickstart with videos."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from timm_rs.transforms.frames import Clip, write_video

# Pixels per frame, down and to the right, times the speed; degrees per frame, counterclockwise, times the spin.
KINDS = {'clockwise': (0, 0, -1), 'counterclockwise': (0, 0, 1), 'down': (1, 0, 0), 'left': (0, -1, 0),
         'right': (0, 1, 0), 'up': (-1, 0, 0)}
NUM_FRAMES, SIZE, DIGIT = 12, 32, 16
KINDS_PER_DIGIT = 2  # each digit moves in so many ways


def motion_files(digits: npt.NDArray[np.uint8], is_validation: npt.NDArray[np.bool_]) -> Iterator[tuple[Path, Any]]:
    """SPLIT/KIND/NUMBER.mp4 and what writes it, for `digits` (N, 8, 8), each in `KINDS_PER_DIGIT` of the ways."""
    for index, digit in enumerate(digits):
        rng = np.random.default_rng((0, index))
        for kind in rng.choice(list(KINDS), KINDS_PER_DIGIT, replace=False).tolist():
            seed = int(rng.integers(2**32))
            yield (Path('validation' if is_validation[index] else 'train', kind, f'{index:04}.mp4'),
                   partial(_write, digit, kind, seed))


def _write(digit: npt.NDArray[np.uint8], kind: str, seed: int, path: Path) -> None:
    write_video(path, moving(digit, kind, np.random.default_rng(seed)))


def moving(digit: npt.NDArray[np.uint8], kind: str, rng: np.random.Generator) -> Clip:
    """(12, 32, 32, 3) uint8: a digit (8, 8) that moves by 1 to 3 pixels, or turns by 10 to 25 degrees a frame.

    What leaves on one side comes back on the other. Place and angle of every frame are uniform, whatever the `kind`, so
    that no single frame tells it.
    """
    down, right, turn = KINDS[kind]
    (top, left), angle = rng.integers(SIZE, size=2).tolist(), rng.uniform(0, 360)
    speed, spin = rng.integers(1, 4), rng.uniform(10, 25)
    room = np.zeros((SIZE, SIZE), np.uint8)
    start = (SIZE - DIGIT) // 2
    room[start:start + DIGIT, start:start + DIGIT] = cv2.resize(digit, (DIGIT, DIGIT))
    frames = []
    for step in range(NUM_FRAMES):
        centre = (SIZE - 1) / 2
        turned = cv2.warpAffine(
            room, cv2.getRotationMatrix2D((centre, centre), angle + turn * spin * step, 1), (SIZE, SIZE))
        frames.append(np.roll(turned, (top + down * speed * step, left + right * speed * step), (0, 1)))
    return np.stack(frames)[..., None].repeat(3, 3)
