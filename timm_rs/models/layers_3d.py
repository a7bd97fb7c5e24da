"""Layers of the networks for clips (N, C, T, H, W). Kernels and strides are (time, height, width) throughout.

Official code: tensorflow/models, `official/vision/modeling/layers/nn_blocks_3d.py` and `nn_layers.py`.
"""
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, get_same_padding, to_3tuple
from timm.models import register_notrace_module
from timm.models.resnet import Bottleneck
from torch import nn

from .resnet_rs import check_choice

PADDINGS = ('same', 'symmetric')


def channels_last_layout(module: nn.Module | torch.Tensor) -> torch.memory_format:
    """torch's memory layout with the channels last, for a batch of images or clips or for a network that takes them."""
    tensors = [module] if isinstance(module, torch.Tensor) else module.parameters()
    return torch.channels_last_3d if any(tensor.ndim == 5 for tensor in tensors) else torch.channels_last


def pad_same(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> torch.Tensor:
    """`x` (N, C, T, H, W) with TensorFlow's SAME padding: what is odd comes after, so even sizes get (0, 1)."""
    padding: list[int] = []
    for size, taps, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):  # pad wants the last first
        total = get_same_padding(size, taps, step, 1)
        padding += (total // 2, total - total // 2)
    return nn.functional.pad(x, padding, value=value)


@register_notrace_module
class SameConv3d(nn.Conv3d):
    """A convolution with TensorFlow's SAME padding, which depends on the size of what comes in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride))


@register_notrace_module
class SameMaxPool3d(nn.MaxPool3d):
    """A max pool with TensorFlow's SAME padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(pad_same(x, to_3tuple(self.kernel_size), to_3tuple(self.stride), -math.inf))


def create_conv(
        in_chans: int, out_chans: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1),
        padding: str = 'same', **kwargs: Any) -> nn.Conv3d:
    """A convolution without bias. Without stride, SAME and symmetric padding are one."""
    if padding == 'same' and any(taps > 1 and step > 1 for taps, step in zip(kernel, stride, strict=True)):
        return SameConv3d(in_chans, out_chans, kernel, stride, bias=False, **kwargs)
    time, height, width = kernel
    return nn.Conv3d(
        in_chans, out_chans, kernel, stride, (time // 2, height // 2, width // 2), bias=False, **kwargs)


class SelfGating(nn.Module):
    """Channels weighted by a linear function of their means over the clip (S3D-G, arXiv:1712.04851)."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__()
        self.fc = nn.Conv3d(channels, channels, 1, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(x.mean((2, 3, 4), keepdim=True)).sigmoid()


class SqueezeExcite3d(nn.Module):
    """Squeeze-and-excitation over time and space, of ratio 0.25 (rounded down)."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__()
        self.fc1 = nn.Conv3d(channels, channels // 4, 1, **kwargs)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv3d(channels // 4, channels, 1, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3, 4), keepdim=True)))).sigmoid()


class Bottleneck3d(Bottleneck):
    """(k, 1, 1), (1, 3, 3), (1, 1, 1); then, each where it is asked for, self gating, SE and stochastic depth.

    Args:
        inplanes: channels that come in; 4 * `planes` go out.
        planes: channels in between.
        temporal_kernel: k, in frames.
        stride: of height and width, in the middle convolution. Time keeps its length.
        conv, norm: make the layers, as `create_conv` and `nn.BatchNorm3d` do.
        drop_path: rate of stochastic depth.
        **kwargs: device and dtype.
    """

    def __init__(
            self, inplanes: int, planes: int, temporal_kernel: int, stride: int, conv: Any, norm: Any,
            squeeze_excite: bool, self_gating: bool, drop_path: float, **kwargs: Any):
        nn.Module.__init__(self)  # the parts of timm's block are for images
        outplanes = planes * self.expansion
        self.conv1, self.bn1 = conv(inplanes, planes, (temporal_kernel, 1, 1)), norm(planes)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(planes, planes, (1, 3, 3), (1, stride, stride)), norm(planes)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3, self.bn3 = conv(planes, outplanes, (1, 1, 1)), norm(outplanes)
        self.gate = SelfGating(outplanes, **kwargs) if self_gating else nn.Identity()
        self.se = SqueezeExcite3d(outplanes, **kwargs) if squeeze_excite else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = nn.Identity() if stride == 1 and inplanes == outplanes else nn.Sequential(
            conv(inplanes, outplanes, (1, 1, 1), (1, stride, stride)), norm(outplanes))
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.act3(self.drop_path(self.se(self.gate(x))) + shortcut)  # type: ignore[no-any-return]


class GlobalPool3d(nn.Module):
    """The mean over time and space ('avg'), or nothing ('')."""

    def __init__(self, pool_type: str):
        super().__init__()
        check_choice('global_pool', pool_type, ('avg', ''))
        self.pool_type = pool_type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4)) if self.pool_type else x
