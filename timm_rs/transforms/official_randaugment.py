"""RandAugment as the authors' release applies it, bit for bit, on uint8 NumPy images with OpenCV.

Source: tensorflow/tpu, models/official/efficientnet/autoaugment.py, which the ResNet-RS pipeline calls after crop,
resize and flip. It differs from timm's RandAugment in the set of operations, in their strength and in the fill;
what looks like a slip in the release is kept, and can be switched off. tests/expected/randaugment.npz holds
what TensorFlow computes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from timm_rs.transforms.decode import Pixels, check_image

Matrix: TypeAlias = tuple[float, float, float, float, float, float]

# In the release's order.
OPERATIONS = (
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness',
    'Sharpness', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Cutout', 'SolarizeAdd')
GRAY = 128  # what geometric operations and Cutout fill with

_LEVELS: npt.NDArray[np.float32] = np.arange(256, dtype=np.float32)
_IDENTITY: Pixels = np.arange(256, dtype=np.uint8)


class RandAugment:
    """`num_layers` operations, each drawn uniformly from `OPERATIONS` with replacement and always applied.

    `arguments` maps each operation to its argument (degrees, slope, pixels, bits, threshold, addend or factor), or
    None where it has none. Geometric arguments get a random sign, Cutout a uniform centre.
    Source: tensorflow/tpu, models/official/efficientnet/autoaugment.py, `distort_image_with_randaugment`.
    """

    def __init__(
            self,
            magnitude: float,
            num_layers: int = 2,
            *,
            solarize_modulo: bool = True,
            constant_contrast: bool = True,
            unclamped_solarize_add: bool = True,
            translate_px: float = 100,
            cutout_px: float = 40,
    ):
        """Strength `magnitude` in units of a tenth, unclamped: 15 is one and a half times the original maximum.

        The release's peculiarities, each with what takes its place when it is off:
        `solarize_modulo`: the threshold is a uint8, so 256 is 0 and inverts all (off: 256 inverts nothing);
        `constant_contrast`: Contrast starts from the gray H*W/256 (off: from the image's mean luminance);
        `unclamped_solarize_add`: SolarizeAdd adds up to 255 (off: up to 128, as timm).
        `translate_px` and `cutout_px` (half the side) are the pixels of magnitude 10, whatever the image's size.
        Raises ValueError for a negative magnitude or number of layers.
        """
        if magnitude < 0 or num_layers < 0:
            raise ValueError(f'magnitude and num_layers must not be negative, got {magnitude} and {num_layers}')
        self.magnitude, self.num_layers, self.constant_contrast = magnitude, num_layers, constant_contrast
        level = magnitude / 10
        threshold, addend = int(level * 256), int(level * 110)
        self.arguments: dict[str, float | None] = dict.fromkeys(OPERATIONS) | {
            'Rotate': level * 30,
            'Posterize': int(level * 4),
            'Solarize': threshold % 256 if solarize_modulo else min(threshold, 256),
            'SolarizeAdd': addend if unclamped_solarize_add else min(addend, 128),
            'ShearX': level * 0.3,
            'ShearY': level * 0.3,
            'TranslateX': level * translate_px,
            'TranslateY': level * translate_px,
            'Cutout': int(level * cutout_px),
        } | dict.fromkeys(('Color', 'Contrast', 'Brightness', 'Sharpness'), level * 1.8 + 0.1)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(magnitude={self.magnitude:g}, num_layers={self.num_layers})'

    def __call__(self, image: Pixels, seed: int | np.random.Generator) -> Pixels:
        """A distorted copy of an RGB `image`, (H, W, 3) uint8; the same for the same seed.

        Raises TypeError for another dtype, ValueError for another shape.
        """
        check_image(image)
        rng = np.random.default_rng(seed)
        height, width, _ = image.shape
        for which, sign, y, x in rng.random((self.num_layers, 4)).tolist():
            image = self.apply(
                OPERATIONS[int(which * len(OPERATIONS))], image, sign=1 if sign < 0.5 else -1,
                centre=(int(y * height), int(x * width)))
        return image

    def apply(self, name: str, image: Pixels, sign: int = 1, centre: tuple[int, int] = (0, 0)) -> Pixels:
        """One operation, by its name in `OPERATIONS` (else ValueError); `centre` (y, x) is Cutout's."""
        argument: Any = self.arguments.get(name)
        match name:
            case 'AutoContrast':
                return autocontrast(image)
            case 'Equalize':
                return equalize(image)
            case 'Invert':
                return cv2.bitwise_not(image)
            case 'Rotate':
                return rotate(image, sign * argument)
            case 'Posterize':
                return posterize(image, argument)
            case 'Solarize':
                return solarize(image, argument)
            case 'SolarizeAdd':
                return solarize_add(image, argument)
            case 'Color':
                return color(image, argument)
            case 'Contrast':
                return contrast(image, argument, self.constant_contrast)
            case 'Brightness':
                return brightness(image, argument)
            case 'Sharpness':
                return sharpness(image, argument)
            case 'ShearX':
                return warp(image, (1, sign * argument, 0, 0, 1, 0))
            case 'ShearY':
                return warp(image, (1, 0, 0, sign * argument, 1, 0))
            case 'TranslateX':  # towards the left for a positive sign
                return warp(image, (1, 0, sign * argument, 0, 1, 0))
            case 'TranslateY':
                return warp(image, (1, 0, 0, 0, 1, sign * argument))
            case 'Cutout':
                return cutout(image, argument, centre)
        raise ValueError(f'unknown operation {name}; there are {", ".join(OPERATIONS)}')


# ---- operations: (H, W, 3) uint8 in, a new array of the same kind out -------------------------------------------
# TensorFlow converts float to uint8 by dropping the fraction, and computes in float32: so does everything here.

def autocontrast(image: Pixels) -> Pixels:
    """Stretch each channel to 0..255."""
    return map_channels(image, _stretching_table)


def equalize(image: Pixels) -> Pixels:
    """Flatten the histogram of each channel."""
    return map_channels(image, _equalizing_table)


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keep the highest `bits` bits; above 8 only one: the negative shift becomes a uint8, which TensorFlow bounds."""
    shift = 8 - bits if bits <= 8 else 7
    return cv2.LUT(image, _IDENTITY >> min(shift, 7) << min(shift, 7))


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Invert what is not below `threshold`."""
    return cv2.LUT(image, np.where(_IDENTITY.astype(int) < threshold, _IDENTITY, 255 - _IDENTITY))


def solarize_add(image: Pixels, addend: int) -> Pixels:
    """Add `addend` to what is below 128."""
    brighter = np.minimum(_IDENTITY.astype(int) + addend, 255).astype(np.uint8)
    return cv2.LUT(image, np.where(_IDENTITY < 128, brighter, _IDENTITY))


def brightness(image: Pixels, factor: float) -> Pixels:
    """Move away from black."""
    return cv2.LUT(image, blend(np.zeros_like(_IDENTITY), _IDENTITY, factor))


def contrast(image: Pixels, factor: float, constant: bool = True) -> Pixels:
    """Move away from a gray: the image's mean luminance, or, `constant`, H*W/256.

    The release means to take the mean of the histogram, but sums the counts instead of the values they stand for.
    """
    height, width, _ = image.shape
    gray = min(height * width // 256, 255) if constant else int(grayscale(image).mean() + 0.5)
    return cv2.LUT(image, blend(np.full_like(_IDENTITY, gray), _IDENTITY, factor))


def color(image: Pixels, factor: float) -> Pixels:
    """Move away from the luminance of each pixel."""
    return blend(cv2.cvtColor(grayscale(image), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Move away from a 3x3 average in which the centre counts five times; the border stays as it is."""
    if min(image.shape[:2]) < 3:
        return image.copy()
    values = image.astype(np.float32)
    once, five_times = (values * (np.float32(count) / np.float32(13)) for count in (1, 5))
    height, width = image.shape[0] - 2, image.shape[1] - 2
    smooth = np.zeros((height, width, 3), np.float32)
    for y in range(3):  # TensorFlow's order: float32 sums depend on it, and by a truncation so do pixels
        for x in range(3):
            cv2.add(smooth, (five_times if y == x == 1 else once)[y:y + height, x:x + width], dst=smooth)
    result = image.copy()
    result[1:-1, 1:-1] = blend(np.minimum(smooth, 255).astype(np.uint8), image[1:-1, 1:-1], factor)
    return result


def cutout(image: Pixels, half: int, centre: tuple[int, int]) -> Pixels:
    """Paint a gray square of side 2*`half` around `centre` (y, x), cut off at the borders."""
    y, x = centre
    result = image.copy()
    result[max(y - half, 0):y + half, max(x - half, 0):x + half] = GRAY
    return result


def rotate(image: Pixels, degrees: float) -> Pixels:
    """Turn about the centre, counterclockwise for positive `degrees`."""
    height, width, _ = image.shape
    radians = float(np.float32(degrees) * np.float32(math.pi / 180))
    cos, sin = np.float32(math.cos(radians)), np.float32(math.sin(radians))
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    shift_x = (right - (cos * right - sin * bottom)) / np.float32(2)
    shift_y = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    return warp(image, (float(cos), -float(sin), float(shift_x), float(sin), float(cos), float(shift_y)))


def warp(image: Pixels, matrix: Matrix) -> Pixels:
    """Output pixel (x, y) comes from (a x + b y + c, d x + e y + f), the nearest one, or is gray.

    The coordinates are rounded here, not by OpenCV's own warp, whose fixed point picks another neighbour now and
    then; `matrix` takes few values in a run, so they are computed once.
    """
    source = _source_pixels(matrix, *image.shape[:2])
    return cv2.remap(
        image, source, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(GRAY,) * 3)


def grayscale(image: Pixels) -> Pixels:
    """Luminance (H, W), uint8, as `tf.image.rgb_to_grayscale` for every one of the 2^24 colours."""
    red, green, blue = (
        plane * np.float32(1 / 255) * np.float32(weight)
        for plane, weight in zip(cv2.split(image), (0.2989, 0.587, 0.114), strict=True))
    return ((red + green + blue) * np.float32(255.5)).astype(np.uint8)


# ---- parts ------------------------------------------------------------------------------------------------------

def blend(start: Pixels, end: Pixels, factor: float) -> Pixels:
    """From `start` through `end`, in float32: `factor` 0 is the first, 1 the second, more goes beyond."""
    values = cv2.subtract(end, start, dtype=cv2.CV_32F)
    values *= np.float32(factor)
    values = cv2.add(values, start, dtype=cv2.CV_32F)
    return np.clip(values, 0, 255, out=values).astype(np.uint8).reshape(start.shape)


def map_channels(image: Pixels, table_of: Callable[[Pixels], Pixels]) -> Pixels:
    """`image` with each channel looked up in the table (256,) that `table_of` makes of it."""
    return cv2.merge([cv2.LUT(plane, table_of(plane)) for plane in cv2.split(image)])


def _stretching_table(plane: Pixels) -> Pixels:
    low, high, _, _ = cv2.minMaxLoc(plane)
    if low == high:
        return _IDENTITY
    scale = np.float32(255) / np.float32(high - low)
    return np.clip(_LEVELS * scale - np.float32(low) * scale, 0, 255).astype(np.uint8)


def _equalizing_table(plane: Pixels) -> Pixels:
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    step = (plane.size - counts[counts.nonzero()[0][-1]]) // 255
    if step == 0:
        return _IDENTITY
    table = (counts.cumsum() + step // 2) // step
    return np.minimum(np.concatenate(([0], table[:-1])), 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _source_pixels(matrix: Matrix, height: int, width: int) -> npt.NDArray[np.int16]:
    """Column and row of each pixel's source, (H, W, 2) int16, in TensorFlow's float32, halves away from zero."""
    a, b, c, d, e, f = np.array(matrix, np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    exact = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(exact) + 0.5), exact)
    return np.clip(rounded, -2**15, 2**15 - 1).astype(np.int16)
