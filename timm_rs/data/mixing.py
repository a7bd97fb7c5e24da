"""Mixup, cutmix and random erasing as masks: the same computation for every batch, as compilers of graphs need it.

timm's own code cuts rectangles out of the images, and each size would be another graph. We run timm's code on the host
on placeholder images and apply the masks it produces on the device: the same random draws as timm, but fixed shapes.
"""

from typing import Any

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing

from timm_rs.device.torch_device import Device


def _with_mirror(values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Values (N, ...) of which each keeps the share `own`, and has the rest of its mirror image in the batch."""
    return values * own + values.flip(0) * (1 - own)


class _AroundMixup:
    """What draws by a `mixup` of timm's within, and is switched as that is."""

    mixup: Mixup

    @property
    def mixup_enabled(self) -> bool:
        return bool(self.mixup.mixup_enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self.mixup.mixup_enabled = enabled


class SoftMixup(_AroundMixup):
    """timm's `Mixup` for targets that are soft before it: the same images, and targets in the same shares."""

    def __init__(self, num_classes: int, label_smoothing: float, **settings: Any):
        """`num_classes` and `label_smoothing` are in the targets already."""
        self.mixup = Mixup(num_classes=2, label_smoothing=0.0, **settings)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, C, H, W) float32 and soft targets (N, classes), mixed."""
        # An image is mixed with its mirror image in the batch: the halves as two classes show what each keeps.
        half = (torch.arange(len(images), device=images.device) < len(images) // 2).long()
        images, shares = self.mixup(images, half)
        own = shares.to(images.device).gather(1, half[:, None])
        return images, _with_mirror(targets, own)


class MaskedMixup(_AroundMixup):
    """timm's `Mixup` with its arithmetic on `device`: the same images and targets but for rounding."""

    def __init__(self, device: Device, num_classes: int, label_smoothing: float, **settings: Any):
        self.device, self.num_classes, self.label_smoothing = device, num_classes, label_smoothing
        self.mixup = Mixup(num_classes=2, label_smoothing=0.0, **settings)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, C, H, W) float32, and class indices (N,) or soft targets (N, num_classes), to both mixed."""
        of_image, of_target = self._draw_shares(*images.shape)
        images = _with_mirror(images, of_image)
        if targets.ndim == 2:
            return images, _with_mirror(targets, of_target)
        return images, mixup_target(targets, self.num_classes, of_target, self.label_smoothing)

    def _draw_shares(self, num_images: int, _: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What images keep of themselves, in each pixel ((N or 1), 1, H, W) and in their targets ((N or 1), 1).

        timm mixes an image with its mirror image in the batch: one half stands in as ones, the other as zeros.
        """
        per_batch = self.mixup.mode == 'batch'
        num = 2 if per_batch else num_images
        ones = torch.arange(num) < num // 2
        pixels, targets = self.mixup(ones.float()[:, None, None, None].repeat(1, 1, height, width), ones.long())
        of_image = torch.where(ones[:, None, None, None], pixels, 1 - pixels)
        of_target = targets.gather(1, ones.long()[:, None])
        if per_batch:
            return self.device.put(of_image[:1]), self.device.put(of_target[:1])
        return self.device.split(of_image), self.device.split(of_target)


class MaskedErasing:
    """timm's `RandomErasing` with its arithmetic on `device`: the same rectangles, filled by the device.

    differs from timm: with `mode` 'rand', several rectangles of an image share their colour.
    """

    def __init__(self, device: Device, probability: float, mode: str, max_count: int):
        self.device, self.mode = device, mode
        self.erasing = RandomErasing(probability, mode='const', max_count=max_count, device='cpu')

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (N, C, H, W) float32, some of them with rectangles of noise or zeros."""
        num_images, channels, height, width = images.shape
        kept = self.device.split(self.erasing(torch.ones(num_images, 1, height, width, dtype=torch.uint8)))
        if self.mode == 'const':
            return images * kept
        size = images.shape if self.mode == 'pixel' else (num_images, channels, 1, 1)
        return torch.where(kept.bool(), images, torch.randn(size, device=images.device))
