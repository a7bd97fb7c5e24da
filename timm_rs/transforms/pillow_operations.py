"""What Pillow's operations make of an RGB image, bit for bit, on uint8 NumPy images and in less time.

Each function is that of timm.data.auto_augment without its random draws: (H, W, 3) uint8 in, an array of the same kind
out, which may be the same one. Those that the authors' release has to the same bits are its own. What OpenCV and NumPy
do no faster (rotations, bilinear shears, blurs) is left to Pillow.
"""

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFilter

from timm_rs.transforms.decode import Pixels
from timm_rs.transforms.official_randaugment import (
    blend,
    brightness,
    equalize,
    map_channels,
    solarize,
    solarize_add,
)

__all__ = ('auto_contrast', 'blend', 'brightness', 'color', 'contrast', 'equalize', 'gaussian_blur', 'grayscale',
           'invert', 'posterize', 'rotate', 'sharpness', 'shear_x', 'shear_y', 'solarize', 'solarize_add',
           'translate_x', 'translate_y')

Floats: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]

_IDENTITY: Pixels = np.arange(256, dtype=np.uint8)
_LUMINANCE = np.array([[19595, 38470, 7471]], np.float32)  # in units of 2^-16
_UNIT = 1 << 20
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


# ---- tables -----------------------------------------------------------------------------------------------------

def auto_contrast(image: Pixels) -> Pixels:
    """Stretch each channel to 0..255."""
    return map_channels(image, _stretching_table)


def invert(image: Pixels) -> Pixels:
    """Turn light into dark."""
    return cv2.bitwise_not(image)


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keep the highest `bits` bits; without any, which Pillow 13 refuses, all is black."""
    return image if bits >= 8 else cv2.LUT(image, _IDENTITY & np.uint8(256 - (1 << 8 - max(bits, 0))))


def contrast(image: Pixels, factor: float) -> Pixels:
    """Move away from the mean luminance."""
    mean = int(int(grayscale(image).sum()) / (image.shape[0] * image.shape[1]) + 0.5)
    return cv2.LUT(image, blend(np.full_like(_IDENTITY, mean), _IDENTITY, factor))


# ---- pixels, and their neighbours -------------------------------------------------------------------------------

def color(image: Pixels, factor: float) -> Pixels:
    """Move away from the luminance of each pixel."""
    return blend(cv2.cvtColor(grayscale(image), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Move away from a 3x3 average in which the centre counts five times; the border stays as it is."""
    if min(image.shape[:2]) < 3:
        return image
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]  # rounded; no thirteenth is a half
    return blend(smooth, image, factor)


def grayscale(image: Pixels) -> Pixels:
    """Luminance (H, W), uint8, as Pillow's mode L has it."""
    luminance = cv2.transform(image.astype(np.float32), _LUMINANCE)  # exact: whole numbers below 2^24
    luminance += 1 << 15
    return (luminance.astype(np.int32) >> 16).astype(np.uint8)


def gaussian_blur(image: Pixels, radius: float) -> Pixels:
    """Blur by `radius` pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


# ---- places: `resample` is one of Pillow's, and what comes from outside is `fill` -------------------------------

def shear_x(image: Pixels, factor: float, resample: int, fill: Sequence[int]) -> Pixels:
    """Slide each row, more than the one above it by `factor` pixels."""
    return _slide(image, factor, 0, resample, fill)


def shear_y(image: Pixels, factor: float, resample: int, fill: Sequence[int]) -> Pixels:
    """Slide each column, more than the one before it by `factor` pixels."""
    return cv2.transpose(shear_x(cv2.transpose(image), factor, resample, fill))


def translate_x(image: Pixels, pixels: float, resample: int, fill: Sequence[int]) -> Pixels:
    """Slide the image towards the left for a positive number."""
    return _slide(image, 0, pixels, resample, fill)


def translate_y(image: Pixels, pixels: float, resample: int, fill: Sequence[int]) -> Pixels:
    """Slide the image upwards for a positive number."""
    return cv2.transpose(translate_x(cv2.transpose(image), pixels, resample, fill))


def rotate(image: Pixels, degrees: float, resample: int, fill: Sequence[int]) -> Pixels:
    """Turn about the centre, counterclockwise for positive `degrees`."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling(resample), fillcolor=tuple(fill)))


# ---- parts ------------------------------------------------------------------------------------------------------

def _stretching_table(plane: Pixels) -> Pixels:
    low, high, _, _ = cv2.minMaxLoc(plane)
    if low == high:
        return _IDENTITY
    scale = 255 / (high - low)
    return np.clip(_IDENTITY * scale - low * scale, 0, 255).astype(np.uint8)


def _slide(image: Pixels, slope: float, offset: float, resample: int, fill: Sequence[int]) -> Pixels:
    """Pixel (x, y) comes from (x + `slope` y + `offset`, y), of which one of the numbers is 0."""
    height, width, _ = image.shape
    if resample == Image.Resampling.BICUBIC:
        shifts: Floats = slope * (np.arange(height, dtype=np.float64) + 0.5) + offset
        places = np.arange(width) + 0.5 + shifts[:, None]
        inside = (places >= 0) & (places < width)
        result = np.tile(np.array(fill, np.uint8), width)[None].repeat(height, axis=0).reshape(image.shape)
        columns = np.flatnonzero(inside.any(axis=0))
        if not len(columns):
            return result
        some = slice(columns[0], columns[-1] + 1)
        moved = _between(image, shifts, places[:, some], columns[0])
        if moved is not None:
            cv2.copyTo(moved, inside[:, some].view(np.uint8), result[:, some])
            return result
    matrix = (1, slope, offset, 0, 1, 0)
    return np.asarray(Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling(resample), fillcolor=tuple(fill)))


def _between(image: Pixels, shifts: Floats, places: Floats, left: int) -> Pixels | None:
    """Bicubic sums (H, W, 3) for columns from `left` on of rows that slide by `shifts` (H,) to `places` (H, W).

    Pillow cuts its double precision sums to whole numbers. Here one weight per row and neighbour gives them within
    1e-9, and what comes close to a whole number is summed again in Pillow's order. None where that is much.
    """
    height, width = places.shape
    whole = np.floor(shifts)
    rows = _neighbours(image, (whole + left).clip(-width, image.shape[1]).astype(int), width)
    each = sliding_window_view(rows.astype(np.float64), 3 * width, axis=1)[:, ::3]
    fixed = np.einsum('yt,ytx->yx', _UNIT * _weights(shifts - whole), each).astype(np.int32)
    fixed += 2
    unsure = (fixed & _UNIT - 1) < 4
    changes = sliding_window_view(rows[:, 3:] != rows[:, :-3], 3 * width, axis=1)[:, ::3].any(axis=1)
    away = np.abs(shifts - np.rint(shifts))[:, None]  # from whole pixels; rounding might pick the next neighbours
    unsure &= (changes | (away < 1e-9)) & (away > 0)
    y, x = np.divmod(np.flatnonzero(unsure), 3 * width)
    if 8 * len(y) > fixed.size:
        return None
    values = (fixed >> _UNIT.bit_length() - 1).clip(0, 255).astype(np.uint8)
    values[y, x] = _exact(image, y, places[y, x // 3] - 0.5, x % 3)
    return values.reshape(height, width, 3)


def _neighbours(image: Pixels, starts: Indices, width: int) -> Pixels:
    """Bytes (H, 3 (`width` + 3)): each row from the pixel before `starts` (H,) on; it ends in its last pixels."""
    before, after = max(1 - starts.min(), 0), max(starts.max() + width + 2 - image.shape[1], 0)
    padded = cv2.copyMakeBorder(image, 0, 0, before, after, cv2.BORDER_REPLICATE).reshape(len(image), -1)
    return sliding_window_view(padded, 3 * (width + 3), axis=1)[np.arange(len(image)), 3 * (starts - 1 + before)]


def _weights(place: Floats) -> Floats:
    """Of the four neighbours (H, 4) at `place` (H,), 0 to 1, between the middle two."""
    squared, cubed = place ** 2, place ** 3
    return np.stack([2 * squared - place - cubed, 1 - 2 * squared + cubed, place + squared - cubed, cubed - squared], 1)


def _exact(image: Pixels, rows: Indices, places: Floats, channels: Indices) -> Pixels:
    """Single values (N,) of an image, each between the pixels of its row, summed as Pillow does."""
    lefts = np.floor(places)
    one, two, three, four = (image[rows, (lefts + step).clip(0, image.shape[1] - 1).astype(int), channels].astype(float)
                             for step in (-1, 0, 1, 2))
    share = places - lefts
    sums = two + share * (-one + three + share * (2 * (one - two) + three - four + share * (-one + two - three + four)))
    return sums.clip(0, 255).astype(np.uint8)
