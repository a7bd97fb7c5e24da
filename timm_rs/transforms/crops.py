"""Crops, resizing and flips on arrays, as timm draws them; timm's own transforms on PIL images."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from timm_rs.transforms.decode import Box, Picture, Pixels, resize

Rng: TypeAlias = np.random.Generator


# ---- crops: a picture in, pixels of the wanted size out ---------------------------------------------------------

class RandomResizedCrop:
    """A random crop, resized to `size` (height, width): timm's, by another random number generator.

    Source: timm's RandomResizedCropAndInterpolation: area uniform, logarithm of the aspect ratio uniform, the centre
    when ten boxes did not fit. A pair of `interpolation`s means one of them at random. Raises ValueError for ranges
    that are empty or out of bounds.
    """

    def __init__(self, size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float],
                 interpolation: InterpolationMode | Sequence[InterpolationMode], scaled: bool = False):
        (small, large), (narrow, wide) = scale, ratio
        if not 0 < small <= large <= 1 or not 0 < narrow <= wide:
            raise ValueError(f'scale must be a range within 0..1 and ratio one above 0, got {scale} and {ratio}')
        self.size, self.scale, self.ratio, self.scaled = size, (small, large), (narrow, wide), scaled
        several = (interpolation,) if isinstance(interpolation, InterpolationMode) else interpolation
        self.interpolations = [mode.value for mode in several]

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        box = self.box(picture.height, picture.width, rng)
        pixels = picture.pixels(box, at_least=self.size if self.scaled else None)
        which = rng.integers(len(self.interpolations)) if len(self.interpolations) > 1 else 0
        return resize(pixels, *self.size, self.interpolations[which])

    def box(self, height: int, width: int, rng: Rng) -> Box:
        """A random box (top, left, height, width) in an image of that size."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, aspect in rng.uniform((self.scale[0], low), (self.scale[1], high), (10, 2)).tolist():
            area, aspect = area * height * width, math.exp(aspect)
            box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < box_height <= height and 0 < box_width <= width:
                top, left = rng.integers((height - box_height + 1, width - box_width + 1)).tolist()
                return top, left, box_height, box_width
        box_height = min(height, round(width / min(self.ratio)))
        box_width = min(width, round(height * max(self.ratio)))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class ResizedCenterCrop:
    """The image with its short side resized to `short_side`, and of that the `size` (height, width) in the middle.

    Source: torchvision's Resize and CenterCrop, to the same pixels' places.
    """

    def __init__(self, short_side: int, size: tuple[int, int], interpolation: InterpolationMode):
        self.short_side, self.size, self.interpolation = short_side, size, interpolation.value

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        short = min(picture.height, picture.width)
        height, width = (int(self.short_side * side / short) for side in (picture.height, picture.width))
        pixels = resize(picture.pixels(), height, width, self.interpolation)
        top, left = (round((have - want) / 2) for have, want in zip((height, width), self.size, strict=True))
        return pixels[top:top + self.size[0], left:left + self.size[1]]


class WholeImage:
    """The picture as it is, for timm's own transforms to work on."""

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        return picture.pixels()


# ---- steps: pixels in, pixels out -------------------------------------------------------------------------------

class Flip:
    """Mirror an image with a probability."""

    def __init__(self, probability: float, horizontal: bool):
        self.probability, self.horizontal = probability, horizontal

    def __call__(self, pixels: Pixels, rng: Rng) -> Pixels:
        if rng.random() >= self.probability:
            return pixels
        return cv2.flip(pixels, int(self.horizontal)).reshape(pixels.shape)


class OnPil:
    """Transforms of PIL images, their random numbers drawn from the image's own seed."""

    def __init__(self, steps: Sequence[Callable[[Image.Image], Image.Image]]):
        self.steps = steps

    def __call__(self, pixels: Pixels, rng: Rng) -> Pixels:
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        with seeded(int(rng.integers(2**32))):
            for step in self.steps:
                image = step(image)
        return np.atleast_3d(np.asarray(image))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random numbers of Python, NumPy and torch (CPU), and put them back as they were.

    Nobody else draws from them in a data worker, but without workers the training loop does.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
