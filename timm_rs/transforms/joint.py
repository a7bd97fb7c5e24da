"""An image and what is known of each of its pixels, cropped, flipped and scaled together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, Limits, Picture, Pixels, open_picture, resize
from timm_rs.transforms.sample import SampleTransform

OUTSIDE = -1  # in targets, where there is no image


def fitted(height: torch.Tensor, width: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Height and width of images of `height` and `width` (…,) pixels when scaled to the largest that fits `size`."""
    bottom, right = size
    return (((2 * height * right + width) // (2 * width)).clamp(1, bottom),
            ((2 * width * bottom + height) // (2 * height)).clamp(1, right))


def check_same_size(picture: Picture, size: tuple[int, ...], what: str = 'its labels') -> None:
    """Raise BadImage unless `what` goes with the image has its `size` (width, height)."""
    here = picture.width, picture.height
    if here != size:
        hint = ': is one of them turned?' if here == size[::-1] else ''
        raise BadImage(f'it has {here[0]} x {here[1]} pixels, and {what} {size[0]} x {size[1]}{hint}')


class JointTransform(SampleTransform):
    """An encoded (or PIL) image, its target (H, W) and a seed -> pixels (height, width, C) uint8, and their target.

    In training: a flip, the image scaled to fit a box of a random share of `size`, then a window of `size` at random,
    padded where it is larger than the image. Otherwise the image scaled to fit `size`, at the top left; its target is
    at its own size at the top left of a square of `canvas` pixels, or scaled as the image where `canvas` is None, and
    `OUTSIDE` around. Targets are never blended. Raises BadImage for an image that cannot be used, and for a target that
    is not of its size.

    Source: `input_utils.py` of tensorflow/tpu models/official/detection.
    # differs from the release: a small image lies anywhere in the window, there always at the top left.
    """

    def __init__(self, mode: str, size: tuple[int, int], fill: tuple[int, ...], void: float, canvas: int | None = None,
                 limits: Limits = DEFAULT_LIMITS):
        """`fill` and `void` are the colour and the target of padding."""
        self.mode, self.size, self.fill, self.void, self.canvas, self.limits = mode, size, fill, void, canvas, limits
        self.augment: Callable[..., Any] | None = None

    def training(self, hflip: float, scale: tuple[float, float], colour: float, is_depth: bool) -> 'JointTransform':
        """The same with augmentation; `is_depth` targets are divided by how much nearer things come."""
        self.augment = _Augment(self.size, self.fill, self.void, hflip, scale, colour, is_depth)
        return self

    def __call__(self, source: bytes | Image.Image, seed: int) -> Pixels:
        """Pixels as in evaluation."""
        with self.limits.in_time():
            pixels = open_picture(source, self.mode, self.limits).pixels()
            height, width = self._fitted(pixels.shape)
            framed = np.full((*self.size, pixels.shape[2]), self.fill, np.uint8)
            framed[:height, :width] = resize(pixels, height, width, 'bilinear')
            return framed

    def with_target(self, source: bytes | Image.Image, target: torch.Tensor, seed: int) -> tuple[Pixels, torch.Tensor]:
        with self.limits.in_time():
            picture = open_picture(source, self.mode, self.limits)
            check_same_size(picture, tuple(target.shape[::-1]))
            if self.augment is None:
                return self(source, seed), self._framed(target)
            pixels, mask = self._augmented(picture, tv_tensors.Mask(target[None]), seed)
            return pixels, mask[0].as_subclass(torch.Tensor)

    def _augmented(self, picture: Picture, target: Any, seed: int) -> tuple[Pixels, Any]:
        """Pixels and a target of torchvision's kinds, both changed by what `seed` draws."""
        assert self.augment is not None
        # Only the CPU's generator: the GPU's is of the training loop.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, target = self.augment(
                tv_tensors.Image(torch.from_numpy(np.array(picture.pixels())).permute(2, 0, 1)), target)
        return image.permute(1, 2, 0).numpy(), target

    def blank(self) -> torch.Tensor:
        """The target of an image that does not count."""
        like = torch.tensor(self.void)
        shape = self.size if self.augment or self.canvas is None else (self.canvas, self.canvas)
        return torch.full(shape, OUTSIDE, dtype=like.dtype if like.is_floating_point() else torch.int16)

    def _fitted(self, shape: Any) -> tuple[int, int]:
        height, width = fitted(torch.tensor(shape[0]), torch.tensor(shape[1]), self.size)
        return int(height), int(width)

    def _framed(self, target: torch.Tensor) -> torch.Tensor:
        if self.canvas is None:
            target = v2.functional.resize_mask(target[None], list(self._fitted(target.shape)))[0]
        elif max(target.shape) > self.canvas:
            raise BadImage(f'labels of {target.shape[1]} x {target.shape[0]} pixels, above label_size {self.canvas}: '
                           'raise that')
        framed = self.blank()
        framed[:target.shape[0], :target.shape[1]] = target
        return framed


class _Augment:
    """An image (C, H, W) and its target, a mask (1, H, W) or boxes (K, 4), to `size`; draws from torch's generator."""

    def __init__(self, size: tuple[int, int], fill: tuple[int, ...], void: float, hflip: float,
                 scale: tuple[float, float], colour: float, is_depth: bool):
        self.size, self.scale, self.is_depth = size, scale, is_depth
        self.flip = v2.RandomHorizontalFlip(hflip)
        self.colour = v2.ColorJitter(colour, colour, colour) if colour else v2.Identity()
        self.crop = v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: fill, tv_tensors.Mask: void})

    def __call__(self, image: Any, target: Any) -> tuple[Any, Any]:
        image, target = self.flip(image, target)
        low, high = self.scale
        share = low + float(torch.rand(())) * (high - low)
        tall, wide = map(torch.tensor, image.shape[-2:])
        bottom, right = (max(1, round(share * side)) for side in self.size)
        height, width = map(int, fitted(tall, wide, (bottom, right)))
        if self.is_depth:  # what is enlarged looks nearer
            target = tv_tensors.wrap(target / share, like=target)
        image, target = (v2.functional.resize(one, [height, width]) for one in (image, target))
        return self.crop(self.colour(image), target)  # type: ignore[no-any-return]
