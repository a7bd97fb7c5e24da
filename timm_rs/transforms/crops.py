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
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import Compose, InterpolationMode, Resize

from timm_rs.errors import UserError
from timm_rs.transforms.decode import BadImage, Box, Picture, Pixels, middle, resize

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
        (small, large), low, high = self.scale, math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, aspect in rng.random((10, 2)).tolist():  # as `uniform` of arrays draws, which takes ten times as long
            area = (small + (large - small) * area) * height * width
            aspect = math.exp(low + (high - low) * aspect)
            box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < box_height <= height and 0 < box_width <= width:
                top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
                return int(top), int(left), box_height, box_width
        box_height = max(min(height, round(width / min(self.ratio))), 1)
        box_width = max(min(width, round(height * max(self.ratio))), 1)
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class ResizedCenterCrop:
    """The image with its short side resized to `short_side`, and of that the `size` (height, width) in the middle.

    Source: torchvision's Resize and CenterCrop, to the same pixels' places. Of very long images only the `middle`.
    """

    def __init__(self, short_side: int, size: tuple[int, int], interpolation: InterpolationMode):
        self.short_side, self.size, self.interpolation = short_side, size, interpolation.value

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        box = middle(picture.height, picture.width)
        height, width = (int(self.short_side * side / min(box[2:])) for side in box[2:])
        pixels = resize(picture.pixels(box), height, width, self.interpolation)
        top, left = (round((have - want) / 2) for have, want in zip((height, width), self.size, strict=True))
        return pixels[top:top + self.size[0], left:left + self.size[1]].copy()  # all else can be forgotten


class WholeImage:
    """The picture as it is, or its `middle`, for timm's own transforms to work on."""

    def __init__(self, only_middle: bool = False):
        self.only_middle = only_middle

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        return picture.pixels(middle(picture.height, picture.width) if self.only_middle else None)


def resizes_whole(step: object) -> bool:
    """Whether a transform of timm's brings the short side of an image to a size, and so makes the other one any."""
    return isinstance(step, Resize) and isinstance(step.size, int) or isinstance(
        step, ResizeKeepRatio) and step.longest < 1


class OfLimitedLength:
    """timm's transform of PIL images, for its own loader; it sees of very long images only the `middle`.

    Raises UserError for an image that the transform cannot use, since timm's loader skips only what it cannot open.
    """

    def __init__(self, transform: Compose):
        self.transform, self.only_middle = transform, resizes_whole(transform.transforms[0])

    def __repr__(self) -> str:
        return repr(self.transform)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if self.only_middle:
            top, left, height, width = middle(image.height, image.width)
            if (height, width) != (image.height, image.width):
                image = image.crop((left, top, left + width, top + height))
        try:
            return self.transform(image)  # type: ignore[no-any-return]
        except (ArithmeticError, ValueError) as error:
            raise UserError(f'an image of {image.width} x {image.height} pixels cannot be used: {error}; remove '
                            'it, or take --loader fast, which leaves it out') from error


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
                try:
                    image = step(image)
                except (ArithmeticError, ValueError) as error:  # of an image without a pixel left, for example
                    raise BadImage(f'{type(step).__name__} cannot use it: {error}') from error
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
