"""From an encoded image to the uint8 pixels of a batch: crop, resize and flip on arrays, then whatever else is wanted.

timm's transforms say what is to be done. Those that most recipes use are done here, on arrays and with less
decoding, or as in the authors' release where the recipe wants it; all others run as they are, on PIL images.
"""

import contextlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import timm.data
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import CenterCrop, InterpolationMode, RandomHorizontalFlip, RandomVerticalFlip, Resize

from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import Box, Picture, Pixels, open_picture, resize
from timm_rs.transforms.official_crops import EvalCrop, TrainCrop
from timm_rs.transforms.official_randaugment import RandAugment

Rng: TypeAlias = np.random.Generator
CropStep: TypeAlias = Callable[[Picture, Rng], Pixels]
PixelStep: TypeAlias = Callable[[Pixels, Rng], Pixels]


class Transform:
    """An encoded (or PIL) image and a seed -> (height, width, channels) uint8; the same for the same seed.

    Raises `decode.BadImage` for an image that cannot be used.
    """

    def __init__(self, mode: str, crop: CropStep, steps: Sequence[PixelStep] = ()):
        self.mode, self.crop, self.steps = mode, crop, tuple(steps)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(map(repr, (self.mode, self.crop, *self.steps)))})'

    def __call__(self, source: bytes | Image.Image, seed: int) -> Pixels:
        rng = np.random.default_rng(seed)
        pixels = self.crop(open_picture(source, self.mode), rng)
        for step in self.steps:
            pixels = step(pixels, rng)
        return pixels


def create_transform(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Transform:
    """The recipe's augmentation, or its centre crop for evaluation.

    Raises UserError for settings that timm cannot read, or that the release does not have.
    """
    check_released(recipe, data_config)
    with _blaming_settings():
        return _create_transform(recipe, data_config, is_training)


def _create_transform(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Transform:
    steps = timm_transform(recipe, data_config, is_training).transforms[:-1]  # the last only makes a tensor
    size, scaled = data_config['input_size'][-2:], recipe.decode == 'scaled'
    crop: CropStep
    if recipe.preprocessing == 'tf' and is_training and not recipe.no_aug:
        (low, high), (narrow, wide) = recipe.scale, recipe.ratio
        crop = ReleasedTrainCrop(
            TrainCrop(size[0], (low, high), (narrow, wide), recipe.hflip, data_config['crop_pct']), scaled)
        steps = [step for step in steps[1:] if not isinstance(step, RandomHorizontalFlip)]
    elif recipe.preprocessing == 'tf':
        crop, steps = ReleasedEvalCrop(EvalCrop(size[0], data_config['crop_pct'])), []
    elif isinstance(steps[0], RandomResizedCropAndInterpolation):
        crop, steps = RandomResizedCrop(size, recipe.scale, recipe.ratio, steps[0].interpolation, scaled), steps[1:]
    elif isinstance(steps[0], Resize) and isinstance(steps[0].size, int) and isinstance(steps[1], CenterCrop):
        crop, steps = ResizedCenterCrop(steps[0].size, size, steps[0].interpolation), steps[2:]
    else:
        crop = WholeImage()
    return Transform(image_mode(recipe), crop, _on_arrays(steps, recipe))


def timm_transform(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Any:
    """What timm's train.py does with the recipe. Raises UserError for settings that timm cannot read."""
    with _blaming_settings():
        return timm.data.create_transform(
            data_config['input_size'], is_training=is_training, use_prefetcher=True, mean=data_config['mean'],
            std=data_config['std'], crop_pct=data_config['crop_pct'], crop_mode=data_config['crop_mode'],
            **augmentation(recipe, data_config) if is_training else dict(interpolation=data_config['interpolation']))


@contextlib.contextmanager
def _blaming_settings() -> Iterator[None]:
    try:
        yield
    except (AssertionError, LookupError, ValueError, TypeError) as error:
        raise UserError('the augmentation settings (aa, scale, ratio, train_interpolation, …) cannot be used: '
                        f'{type(error).__name__} {error}') from error


def augmentation(recipe: Recipe, data_config: dict[str, Any]) -> dict[str, Any]:
    """The recipe's augmentation as arguments of timm's `create_transform`."""
    interpolation = recipe.train_interpolation
    if recipe.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    return dict(
        no_aug=recipe.no_aug, interpolation=interpolation, train_crop_mode=recipe.train_crop_mode,
        scale=tuple(recipe.scale), ratio=tuple(recipe.ratio), hflip=recipe.hflip, vflip=recipe.vflip,
        color_jitter=recipe.color_jitter, color_jitter_prob=recipe.color_jitter_prob,
        grayscale_prob=recipe.grayscale_prob or 0., gaussian_blur_prob=recipe.gaussian_blur_prob or 0.,
        auto_augment=recipe.aa)


def image_mode(recipe: Recipe) -> str:
    """The PIL mode that images are converted to."""
    return recipe.input_img_mode or ('RGB' if recipe.channels in (None, 3) else 'L')


def check_released(recipe: Recipe, data_config: dict[str, Any]) -> None:
    """Raise UserError for settings that contradict `randaugment: tf` or `preprocessing: tf`."""
    channels, height, width = data_config['input_size']
    ours = [f'{name}: tf' for name in ('randaugment', 'preprocessing') if getattr(recipe, name) == 'tf']
    if ours and (channels != 3 or recipe.input_img_mode not in (None, 'RGB')):
        raise UserError(f'{ours[0]} works on RGB images; drop it, or input_img_mode, in_chans and input_size')
    if recipe.randaugment == 'tf':
        released_randaugment(recipe.aa)
    if recipe.preprocessing == 'tf':
        needed = dict(
            train_interpolation=(recipe.train_interpolation, ('', 'bicubic')),
            interpolation=(data_config['interpolation'], ('bicubic',)),
            train_crop_mode=(recipe.train_crop_mode, (None, 'rrc')),
            crop_mode=(data_config['crop_mode'], ('center',)))
        for name, (value, allowed) in needed.items():
            if value not in allowed:
                raise UserError(f'preprocessing: tf needs {name}: {allowed[-1]}, got {value}')
        if height != width:
            raise UserError(f'preprocessing: tf makes square images, got input_size {data_config["input_size"]}')


def released_randaugment(aa: str | None) -> RandAugment:
    """The release's RandAugment with the magnitude and number of layers of timm's string `aa`.

    Raises UserError for a string that says what the release's does not have (noise, other operations, p below 1).
    """
    found = re.fullmatch(r'rand-m(\d+)-n(\d+)(-p1(\.0*)?)?(-mmax\d+)?', aa or '')
    if not found:
        raise UserError(f'randaugment: tf reads its magnitude and number of operations from aa, such as '
                        f'rand-m15-n2-p1.0-mmax15; got {aa!r}')
    return RandAugment(int(found[1]), int(found[2]))


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


class ReleasedTrainCrop:
    """The release's random crop and flip, with no more decoded than the crop."""

    def __init__(self, crop: TrainCrop, scaled: bool = False):
        self.crop, self.scaled = crop, scaled

    def __repr__(self) -> str:
        return repr(self.crop)

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        box = self.crop.box(picture.height, picture.width, rng)
        at_least = (self.crop.size, self.crop.size) if self.scaled else None
        return self.crop.finish(picture.pixels(box, at_least=at_least), rng)


class ReleasedEvalCrop:
    """The release's centre crop, with no more decoded than that."""

    def __init__(self, crop: EvalCrop):
        self.crop = crop

    def __repr__(self) -> str:
        return repr(self.crop)

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        return self.crop.finish(picture.pixels(self.crop.box(picture.height, picture.width)))


class WholeImage:
    """The picture as it is, for timm's own transforms to work on."""

    def __call__(self, picture: Picture, rng: Rng) -> Pixels:
        return picture.pixels()


# ---- steps: pixels in, pixels out -------------------------------------------------------------------------------

def _on_arrays(steps: Sequence[Any], recipe: Recipe) -> list[PixelStep]:
    """timm's `steps` on arrays: ours in place of those we have, all others on PIL images, neighbours in one go."""
    done: list[PixelStep] = []
    ours: Iterator[Any] = (_on_array(step, recipe) or step for step in steps)
    for on_array, group in itertools.groupby(ours, lambda step: isinstance(step, (Flip, RandAugment))):
        neighbours = list(group)
        done += neighbours if on_array else [OnPil(neighbours)]
    return done


def _on_array(step: Any, recipe: Recipe) -> PixelStep | None:
    if isinstance(step, (RandomHorizontalFlip, RandomVerticalFlip)):
        return Flip(step.p, horizontal=isinstance(step, RandomHorizontalFlip))
    if isinstance(step, timm.data.RandAugment) and recipe.randaugment == 'tf':
        return released_randaugment(recipe.aa)
    return None


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
