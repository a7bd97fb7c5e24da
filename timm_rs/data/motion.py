"""Clips that only motion can tell apart: real digits that move in one of six ways, for the quickstart with videos."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from timm_rs.progress import track
from timm_rs.transforms.frames import Clip, write_video

# Pixels per frame, down and to the right, times the speed; degrees per frame, counterclockwise, times the spin.
KINDS = {'clockwise': (0, 0, -1), 'counterclockwise': (0, 0, 1), 'down': (1, 0, 0), 'left': (0, -1, 0),
         'right': (0, 1, 0), 'up': (-1, 0, 0)}
NUM_FRAMES, SIZE, DIGIT = 12, 32, 16
KINDS_PER_DIGIT = 2  # each digit moves in so many ways


def write_motion(root: Path, digits: npt.NDArray[np.uint8], is_validation: npt.NDArray[np.bool_]) -> None:
    """Write SPLIT/KIND/NUMBER.mp4 of `digits` (N, 8, 8), each in `KINDS_PER_DIGIT` of the ways. Raises OSError."""
    for split in ('train', 'validation'):
        for kind in KINDS:
            (root / split / kind).mkdir(parents=True)
    for index, digit in enumerate(track(digits, 'writing motion')):
        rng = np.random.default_rng((0, index))
        for kind in rng.choice(list(KINDS), KINDS_PER_DIGIT, replace=False).tolist():
            clip = moving(digit, kind, np.random.default_rng(int(rng.integers(2**32))))
            write_video(root / ('validation' if is_validation[index] else 'train') / kind / f'{index:04}.mp4', clip)


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
