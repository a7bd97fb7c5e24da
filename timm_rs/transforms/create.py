"""From an encoded image to the uint8 pixels of a batch: crop, resize and flip on arrays, then whatever else is wanted.

timm's transforms say what is to be done. Those that most recipes use are done here, on arrays and with less
decoding, or as in the authors' release where the recipe wants it; all others run as they are, on PIL images.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import timm.data
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import CenterCrop, RandomHorizontalFlip, RandomVerticalFlip, Resize

from timm_rs.errors import UserError, blaming
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.crops import Flip, OnPil, RandomResizedCrop, ResizedCenterCrop, Rng, WholeImage, resizes_whole
from timm_rs.transforms.decode import DEFAULT_LIMITS, Limits, Picture, Pixels, open_picture
from timm_rs.transforms.official_crops import EvalCrop, OfficialEvalCrop, OfficialTrainCrop, TrainCrop
from timm_rs.transforms.official_randaugment import RandAugment
from timm_rs.transforms.sample import SampleTransform
from timm_rs.transforms.timm_augment import OnArrays, can_do

CropStep: TypeAlias = Callable[[Picture, Rng], Pixels]
PixelStep: TypeAlias = Callable[[Pixels, Rng], Pixels]

SETTINGS = 'the augmentation settings (aa, scale, ratio, train_interpolation, …) cannot be used'
# Channels of Pillow's modes with 8 bits each, to which it converts others.
MODES = {'L': 1, 'LA': 2, 'RGB': 3, 'YCbCr': 3, 'HSV': 3, 'RGBA': 4, 'CMYK': 4}


class Transform(SampleTransform):
    """An encoded (or PIL) image and a seed -> (height, width, channels) uint8; the same for the same seed.

    Raises `decode.BadImage` for an image that cannot be used.
    """

    def __init__(self, mode: str, crop: CropStep, steps: Sequence[PixelStep] = (), limits: Limits = DEFAULT_LIMITS):
        self.mode, self.crop, self.steps, self.limits = mode, crop, tuple(steps), limits

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(map(repr, (self.mode, self.crop, *self.steps)))})'

    def __call__(self, source: bytes | Image.Image, seed: int) -> Pixels:
        rng = np.random.default_rng(seed)
        with self.limits.in_time():
            pixels = self.crop(open_picture(source, self.mode, self.limits), rng)
            for step in self.steps:
                pixels = step(pixels, rng)
            return pixels


def create_transform(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Transform:
    """The recipe's augmentation, or its centre crop for evaluation.

    Raises UserError for settings that timm cannot read, or that the release does not have.
    """
    channels, height, width = data_config['input_size']
    ours = [f'{name}: tf' for name in ('randaugment', 'preprocessing') if getattr(recipe, name) == 'tf']
    if ours and (channels != 3 or recipe.input_img_mode not in (None, 'RGB')):
        raise UserError(f'{ours[0]} works on RGB images; drop it, or input_img_mode, in_chans and input_size')
    _check_images(recipe.model, recipe.image_mode, data_config)
    if recipe.randaugment == 'tf':
        official_randaugment(recipe.aa)
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
    with blaming(SETTINGS):
        return _create_transform(recipe, data_config, is_training)


def _check_images(model: str, mode: str, data_config: dict[str, Any]) -> None:
    """Raise UserError for a network that takes clips, or whose channels images of Pillow's `mode` do not have."""
    if 'num_frames' in data_config:
        raise UserError(f'{model} takes clips of {data_config["num_frames"]} frames, and here are images: say '
                        '--task video where the data are videos, or use a network for images')
    check_mode(mode, data_config['input_size'][0])


def check_mode(mode: str, channels: int) -> None:
    """Raise UserError unless pixels of Pillow's `mode` are bytes, one for each of the model's input `channels`."""
    fitting = [name for name, number in MODES.items() if number == channels]
    if mode not in fitting:
        remedy = f'give --input-img-mode {" or ".join(fitting)}' if fitting else 'images have 1 to 4 of them'
        raise UserError(f'input_img_mode {mode} does not go with {channels} input channels: {remedy}')


def _create_transform(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Transform:
    steps = create_timm_transform(recipe, data_config, is_training).transforms[:-1]  # the last only makes a tensor
    size, scaled = data_config['input_size'][-2:], recipe.decode == 'scaled'
    crop: CropStep
    if recipe.preprocessing == 'tf' and is_training and not recipe.no_aug:
        (low, high), (narrow, wide) = recipe.scale, recipe.ratio
        crop = OfficialTrainCrop(
            TrainCrop(size[0], (low, high), (narrow, wide), recipe.hflip, data_config['crop_pct']), scaled)
        steps = [step for step in steps[1:] if not isinstance(step, RandomHorizontalFlip)]
    elif recipe.preprocessing == 'tf':
        crop, steps = OfficialEvalCrop(EvalCrop(size[0], data_config['crop_pct'])), []
    elif isinstance(steps[0], RandomResizedCropAndInterpolation):
        crop, steps = RandomResizedCrop(size, recipe.scale, recipe.ratio, steps[0].interpolation, scaled), steps[1:]
    elif isinstance(steps[0], Resize) and isinstance(steps[0].size, int) and isinstance(steps[1], CenterCrop):
        crop, steps = ResizedCenterCrop(steps[0].size, size, steps[0].interpolation), steps[2:]
    else:
        crop = WholeImage(only_middle=resizes_whole(steps[0]))
    return Transform(recipe.image_mode, crop, _on_arrays(
        steps, recipe.image_mode, official_randaugment(recipe.aa) if recipe.randaugment == 'tf' else None),
        create_limits(recipe))


def create_limits(recipe: Recipe) -> Limits:
    """What an image may cost, by the recipe."""
    return Limits(recipe.max_image_pixels, recipe.max_image_scans, recipe.max_image_seconds)


def create_timm_transform(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Any:
    """What timm's train.py does with the recipe. Raises UserError for settings that timm cannot read."""
    _check_images(recipe.model, recipe.image_mode, data_config)
    with blaming(SETTINGS):
        return timm.data.create_transform(
            data_config['input_size'], is_training=is_training, use_prefetcher=True, mean=data_config['mean'],
            std=data_config['std'], crop_pct=data_config['crop_pct'], crop_mode=data_config['crop_mode'],
            **(build_augmentation(recipe, data_config) if is_training else
               dict(interpolation=data_config['interpolation'])))


def build_augmentation(recipe: Recipe, data_config: dict[str, Any]) -> dict[str, Any]:
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


def official_randaugment(aa: str | None) -> RandAugment:
    """The release's RandAugment with the magnitude and number of layers of timm's string `aa`.

    Raises UserError for a string that says what the release's does not have (noise, other operations, p below 1).
    """
    found = re.fullmatch(r'rand-m(\d+)-n(\d+)(-p1(\.0*)?)?(-mmax\d+)?', aa or '')
    if not found:
        raise UserError(f'randaugment: tf reads its magnitude and number of operations from aa, such as '
                        f'rand-m15-n2-p1.0-mmax15; got {aa!r}')
    return RandAugment(int(found[1]), int(found[2]))


def _on_arrays(steps: Sequence[Any], mode: str, randaugment: RandAugment | None) -> list[PixelStep]:
    """timm's `steps` on arrays, ours in place of them. Neighbours that draw from one seed are all on PIL images
    where one of them, or the images' `mode`, is nothing for arrays."""
    done: list[PixelStep] = []
    ours: Iterator[Any] = (_on_array(step, randaugment) or step for step in steps)
    for is_ours, group in itertools.groupby(ours, lambda step: isinstance(step, (Flip, RandAugment))):
        neighbours = list(group)
        on_arrays = mode == 'RGB' and all(map(can_do, neighbours))
        done += neighbours if is_ours else [OnArrays(neighbours) if on_arrays else OnPil(neighbours)]
    return done


def _on_array(step: Any, randaugment: RandAugment | None) -> PixelStep | None:
    if isinstance(step, (RandomHorizontalFlip, RandomVerticalFlip)):
        return Flip(step.p, horizontal=isinstance(step, RandomHorizontalFlip))
    return randaugment if isinstance(step, timm.data.RandAugment) else None
