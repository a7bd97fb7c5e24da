"""timm's RandAugment, AutoAugment and AugMix, and torchvision's colour changes, on arrays, bit for bit.

timm's own objects say what is to be done; the random numbers are the same, drawn in the same order, but from generators
of their own, so that nobody else's are touched.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from torchvision.transforms import ColorJitter, GaussianBlur, RandomApply, RandomGrayscale
from torchvision.transforms.functional import gaussian_blur

from timm_rs.transforms import pillow_operations as operations
from timm_rs.transforms.crops import Rng
from timm_rs.transforms.decode import BadImage, Pixels

# By timm's names, less what is only said of their argument.
_OPERATIONS: dict[str, Callable[..., Pixels]] = {
    'AutoContrast': operations.auto_contrast, 'Equalize': operations.equalize, 'Invert': operations.invert,
    'Posterize': operations.posterize, 'Solarize': operations.solarize, 'SolarizeAdd': operations.solarize_add,
    'Color': operations.color, 'Contrast': operations.contrast, 'Brightness': operations.brightness,
    'Sharpness': operations.sharpness, 'Desaturate': operations.color, 'GaussianBlur': operations.gaussian_blur,
    'Rotate': operations.rotate, 'ShearX': operations.shear_x, 'ShearY': operations.shear_y,
    'TranslateX': operations.translate_x, 'TranslateY': operations.translate_y}


class Draws:
    """Random numbers as Python's, NumPy's and torch's global generators give them after the same seed."""

    def __init__(self) -> None:
        self.python, self.numpy, self.torch = random.Random(), np.random.RandomState(), torch.Generator()

    def seed(self, seed: int) -> None:
        """Begin anew; `seed` is below 2^32."""
        self.python.seed(seed)
        self.numpy.seed(seed)
        self.torch.manual_seed(seed)

    def sign(self) -> int:
        return -1 if self.python.random() > 0.5 else 1

    def uniform(self, low: float, high: float) -> float:
        """By torch."""
        return torch.empty(1).uniform_(low, high, generator=self.torch).item()

    def share(self) -> torch.Tensor:
        """From 0 to 1, by torch."""
        return torch.rand(1, generator=self.torch)


class OnArrays:
    """Steps of timm's or torchvision's for PIL images, on arrays (H, W, 3) uint8, drawing from the image's own seed.

    They must be such that `can_do` them. Raises BadImage for an image that they cannot use.
    """

    def __init__(self, steps: Sequence[Any]):
        self.steps, self.draws = steps, Draws()

    def __call__(self, pixels: Pixels, rng: Rng) -> Pixels:
        self.draws.seed(int(rng.integers(2**32)))
        pixels = np.ascontiguousarray(pixels)
        for step in self.steps:
            try:
                pixels = _apply(step, pixels, self.draws)
            except (ArithmeticError, ValueError) as error:
                raise BadImage(f'{type(step).__name__} cannot use it: {error}') from error
        return pixels


def can_do(step: Any) -> bool:
    """Whether `OnArrays` does a step of timm's or torchvision's."""
    match step:
        case AugmentOp():
            return _plain(step.name) in _OPERATIONS
        case RandAugment() | AugMixAugment():
            return all(map(can_do, step.ops))
        case AutoAugment():
            return all(can_do(operation) for group in step.policy for operation in group)
        case RandomApply():
            return all(map(can_do, step.transforms))
        case ColorJitter():
            return step.hue is None
    return isinstance(step, (RandomGrayscale, GaussianBlur))


def _apply(step: Any, pixels: Pixels, draws: Draws) -> Pixels:
    match step:
        case AugmentOp():
            return _operate(step, pixels, draws)
        case RandAugment():
            chosen = draws.numpy.choice(
                len(step.ops), step.num_layers, replace=step.choice_weights is None, p=step.choice_weights)
            return _chain([step.ops[which] for which in chosen], pixels, draws)
        case AutoAugment():
            return _chain(draws.python.choice(step.policy), pixels, draws)
        case AugMixAugment():
            return _mix(step, pixels, draws)
        case ColorJitter():
            return _jitter(step, pixels, draws)
        case RandomApply():
            return pixels if step.p < draws.share() else _chain(step.transforms, pixels, draws)
        case RandomGrayscale():
            return np.dstack([operations.grayscale(pixels)] * 3) if draws.share() < step.p else pixels
    sigma = draws.uniform(*step.sigma)
    return np.asarray(gaussian_blur(Image.fromarray(pixels), step.kernel_size, [sigma, sigma]))


def _chain(steps: Sequence[Any], pixels: Pixels, draws: Draws) -> Pixels:
    for step in steps:
        pixels = _apply(step, pixels, draws)
    return pixels


def _plain(name: str) -> str:
    for ending in ('Increasing', 'Original', 'Rel', 'Rand'):
        name = name.removesuffix(ending)
    return name


def _operate(step: AugmentOp, pixels: Pixels, draws: Draws) -> Pixels:
    if step.prob < 1 and draws.python.random() > step.prob:
        return pixels
    magnitude = step.magnitude
    if step.magnitude_std == float('inf'):
        magnitude = draws.python.uniform(0, magnitude)
    elif step.magnitude_std > 0:
        magnitude = draws.python.gauss(magnitude, step.magnitude_std)
    arguments = _arguments(step, max(0.0, min(magnitude, step.magnitude_max or 10)), pixels, draws)
    return _OPERATIONS[_plain(step.name)](pixels, *arguments)


def _arguments(step: AugmentOp, magnitude: float, pixels: Pixels, draws: Draws) -> tuple[Any, ...]:
    """What the operation takes beside the image."""
    level, (height, width, _) = magnitude / 10, pixels.shape
    match step.name:
        case 'Rotate':
            moved = level * 30
        case 'ShearX' | 'ShearY':
            moved = level * 0.3
        case 'TranslateX' | 'TranslateY':
            moved = level * float(step.hparams['translate_const'])
        case 'TranslateXRel' | 'TranslateYRel':
            side = width if step.name == 'TranslateXRel' else height
            moved = level * step.hparams.get('translate_pct', 0.45) * side
        case 'ColorIncreasing' | 'ContrastIncreasing' | 'BrightnessIncreasing' | 'SharpnessIncreasing':
            return max(0.1, 1 + draws.sign() * (level * 0.9)),
        case _:
            arguments: tuple[Any, ...] = step.level_fn(magnitude, step.hparams) if step.level_fn else ()
            if step.name == 'Desaturate':
                return min(1.0, max(0.0, 1 - arguments[0])),
            if step.name == 'GaussianBlurRand':
                return draws.python.uniform(0.1, 2.0 * arguments[0]),
            return arguments
    sign, resample = draws.sign(), step.kwargs['resample']
    if isinstance(resample, (list, tuple)):
        resample = draws.python.choice(resample)
    return sign * moved, resample, step.kwargs['fillcolor']


def _mix(step: AugMixAugment, pixels: Pixels, draws: Draws) -> Pixels:
    shares = np.float32(draws.numpy.dirichlet([step.alpha] * step.width))
    strength = np.float32(draws.numpy.beta(step.alpha, step.alpha))
    mixed, sums = pixels, np.zeros_like(pixels, dtype=np.float32)
    for share in step._calc_blended_weights(shares, strength) if step.blended else shares:
        depth = step.depth if step.depth > 0 else draws.numpy.randint(1, 4)
        chosen = draws.numpy.choice(len(step.ops), depth, replace=True)
        changed = _chain([step.ops[which] for which in chosen], pixels, draws)
        if step.blended:
            mixed = operations.blend(mixed, changed, share)
        else:
            sums += share * changed.astype(np.float32)
    return mixed if step.blended else operations.blend(pixels, sums.clip(0, 255).astype(np.uint8), strength)


def _jitter(step: ColorJitter, pixels: Pixels, draws: Draws) -> Pixels:
    order = torch.randperm(4, generator=draws.torch).tolist()  # the last is the hue
    factors = [ends and draws.uniform(*ends) for ends in (step.brightness, step.contrast, step.saturation)]
    changes = operations.brightness, operations.contrast, operations.color
    for which in order:
        if which < 3 and factors[which] is not None:
            pixels = changes[which](pixels, factors[which])
    return pixels
