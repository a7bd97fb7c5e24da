"""ResNet-RS for clips on timm's ResNet: the released 3D architecture, its stochastic depth and its initialisation.

Paper: Bello et al. 2021, arXiv:2103.07579, section 7.5 and Table 6. Official code: tensorflow/models,
`official/vision/modeling/backbones/resnet_3d.py`. Kernels and strides are (time, height, width) throughout.
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import get_device_dtype, lecun_normal_, trunc_normal_tf_
from timm.models import adapt_input_conv, generate_default_cfgs
from timm.models.resnet import ResNet
from torch import nn

from .layers_3d import PADDINGS, Bottleneck3d, GlobalPool3d, SameMaxPool3d, SelfGating, create_conv
from .registry import point_cfg, register
from .resnet_rs import (
    LAYERS,
    check_choice,
    check_size,
    create_network,
    refuse_size,
    register_depth,
    register_generic,
)

TEMPORAL_KERNELS = (1, 1, 3, 3)  # frames that the first convolution of each block sees, by stage


class ResNetRS3d(ResNet):
    """ResNet-RS for clips: bottlenecks with temporal convolutions and SE, the deep stem, and its max pool.

    Takes clips (N, in_chans, T, H, W) of any T, H and W to logits (N, num_classes). The stem halves the frames; feature
    maps are (N, C, T/2, H/r, W/r), rounded up.

    Args:
        layers: blocks in each of the four stages, see `LAYERS` of resnet_rs.py.
        num_classes: 0 for none.
        in_chans: channels of a frame.
        width: multiplier of every channel count, `int(channels * width)`.
        num_frames: of the clips for which tools count, measure and export; the network takes any number.
        squeeze_excite: without it, and without `resnet_d`, this is the 3D ResNet that Table 6 starts from.
        self_gating: the gate that the official configuration has at the end of each stage, and Table 6 does not list.
        resnet_d: the deep stem. Without: a 5x7x7 convolution. The max pool and the strided 1x1 shortcuts stay.
        padding: 'same', TensorFlow's, or 'symmetric', PyTorch's. They differ where a convolution or pool has a stride.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth: every block of stages 1, 2, 3, 4 has 2/5, 3/5, 4/5, 5/5 of the rate.
        zero_init_last: start the last gamma of each block at 0, which the official 3D code does not.
        global_pool: 'avg', or '' for none.
        bn_momentum: of every batch norm, in PyTorch's convention; None leaves its 0.1.
        bn_eps: of every batch norm.
        device, dtype: of the parameters.

    Raises:
        ValueError: an impossible width or layers, unknown padding or pool.
    """

    def __init__(
            self,
            layers: Sequence[int],
            num_classes: int = 400,
            in_chans: int = 3,
            width: float = 1.0,
            num_frames: int = 32,
            squeeze_excite: bool = True,
            self_gating: bool = False,
            resnet_d: bool = True,
            padding: str = 'same',
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            zero_init_last: bool = False,
            global_pool: str = 'avg',
            bn_momentum: float | None = None,
            bn_eps: float = 1e-5,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)  # the parts of timm's ResNet are for images; its methods work on ours by their names
        check_size(layers, width)
        check_choice('padding', padding, PADDINGS)
        self.in_chans, self.num_frames, self.drop_rate, self.grad_checkpointing = in_chans, num_frames, drop_rate, False
        self._traits = dict(first_conv=None)  # to timm: `adapt_channels` fits the stem to other channels
        placed: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(create_conv, padding=padding, **placed)
        norm = partial(nn.BatchNorm3d, eps=bn_eps, momentum=0.1 if bn_momentum is None else bn_momentum, **placed)
        channels = self._build_stem(in_chans, int(32 * width), resnet_d, padding, conv, norm)
        for stage, (count, frames) in enumerate(zip(layers, TEMPORAL_KERNELS, strict=True), start=1):
            planes, blocks = int(32 * 2 ** stage * width), nn.Sequential()
            for number in range(count):
                stride = 2 if stage > 1 and number == 0 else 1
                blocks.append(Bottleneck3d(
                    channels, planes, frames, stride, conv, norm, squeeze_excite, self_gating and number == count - 1,
                    drop_path_rate * (stage + 1) / 5, **placed))
                channels = planes * Bottleneck3d.expansion
            self.add_module(f'layer{stage}', blocks)
            self.feature_info.append(dict(num_chs=channels, reduction=2 ** (stage + 1), module=f'layer{stage}'))
        self.num_features = self.head_hidden_size = channels
        self.reset_classifier(num_classes, global_pool)
        self.init_weights(zero_init_last)

    def _build_stem(self, in_chans: int, width: int, resnet_d: bool, padding: str, conv: Any, norm: Any) -> int:
        """All before the first stage; returns its channels."""
        channels = 2 * width
        if resnet_d:
            self.conv1 = nn.Sequential(
                conv(in_chans, width, (5, 3, 3), (2, 2, 2)), norm(width), nn.ReLU(inplace=True),
                conv(width, width, (1, 3, 3)), norm(width), nn.ReLU(inplace=True),
                conv(width, channels, (1, 3, 3)))
        else:
            self.conv1 = conv(in_chans, channels, (5, 7, 7), (2, 2, 2))
        self.bn1, self.act1 = norm(channels), nn.ReLU(inplace=True)
        self.maxpool = (SameMaxPool3d((1, 3, 3), (1, 2, 2)) if padding == 'same' else
                        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.feature_info = [dict(num_chs=channels, reduction=2, module='act1')]
        return channels

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Initialise as the official code (tensorflow/models).

        Convolutions, SE included: truncated normal of variance 1 / fan_in (Keras' `VarianceScaling`); gates: truncated
        normal of deviation 0.01; classifier: uniform from -0.05 to 0.05 (Keras' `random_uniform`); biases 0. Batch
        norm: gamma 1, beta 0; with `zero_init_last`, the last gamma of each block 0.
        """
        if next(self.parameters()).is_meta:  # there is nothing to initialise, and torch takes seconds for it
            return
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm3d):
                module.reset_parameters()
        for module in self.modules():  # afterwards: a block and a gate come before their own layers
            if isinstance(module, SelfGating):
                trunc_normal_tf_(module.fc.weight, std=0.01)
            elif isinstance(module, Bottleneck3d) and zero_init_last:
                module.zero_init_last()
        self._init_classifier()

    def no_weight_decay(self) -> set[str]:
        """The kernels of the gates, to which the official code gives no regulariser."""
        return {f'{name}.fc.weight' for name, module in self.named_modules() if isinstance(module, SelfGating)}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a freshly initialised one of `num_classes` outputs (0 removes it).

        `global_pool` is that of the class; None keeps what there is.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = GlobalPool3d(global_pool)
        self.fc = (nn.Linear(self.num_features, num_classes, **get_device_dtype(self)) if num_classes > 0 else
                   nn.Identity()).train(self.training)
        self._init_classifier()

    def _init_classifier(self) -> None:
        if isinstance(self.fc, nn.Linear):  # not after num_classes=0
            nn.init.uniform_(self.fc.weight, -0.05, 0.05)
            nn.init.zeros_(self.fc.bias)


def clip_shape(model: nn.Module, image: Sequence[int], num_frames: int | None = None) -> tuple[int, ...]:
    """Of one input of `model`: `image` (C, H, W) itself, or (C, T, H, W) where it is a network for clips.

    T is `num_frames`, or for None the model's own. Raises ValueError for no frames, or frames for a model of images.
    """
    if not isinstance(model, ResNetRS3d):
        if num_frames is not None:
            raise ValueError(f'num_frames={num_frames}: the model takes images, not clips')
        return tuple(image)
    frames = model.num_frames if num_frames is None else num_frames
    if frames < 1:
        raise ValueError(f'num_frames={frames}: give at least 1')
    channels, *pixels = image
    return channels, frames, *pixels


def adapt_channels(state_dict: dict[str, Any], model: ResNetRS3d) -> dict[str, Any]:
    """Weights for clips of other channels, as timm adapts those for images: its own way takes only four axes."""
    state_dict = dict(state_dict)
    name = f'{"conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1"}.weight'
    weight = state_dict.get(name)
    if weight is not None and weight.ndim == 5 and weight.shape[1] != model.in_chans:
        adapted = adapt_input_conv(model.in_chans, weight.flatten(2, 3), base_chans=weight.shape[1])
        state_dict[name] = adapted.unflatten(2, weight.shape[2:4])
    return state_dict


def _cfg(**cfg: Any) -> dict[str, Any]:
    """A timm pretrained cfg for Kinetics-400. The frames of a clip are the model's: timm takes no size of four axes."""
    values = dict(
        test_input_size=(3, 256, 256), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0,
        interpolation='bilinear', num_classes=400, first_conv='conv1.0', classifier='fc',
        origin_url='https://github.com/tensorflow/models/tree/master/official/vision')
    return point_cfg(224, **values | cfg)


DEPTHS = (50, 101, 152, 200, 270, 350, 420)
FIXED_NAMES = ('resnet3d_50', *(f'resnetrs3d_{depth}' for depth in DEPTHS))
default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in (*FIXED_NAMES, 'resnetrs3d')} | {'resnet3d_50': _cfg(first_conv='conv1')})


_create = partial(create_network, ResNetRS3d, pretrained_filter_fn=adapt_channels)
_register_depth = partial(register_depth, ResNetRS3d, _create, 'resnetrs3d', '3D ResNet-RS')


def _resnet3d_50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    refuse_size('resnet3d_50', 'resnetrs3d', kwargs)
    plain = dict(squeeze_excite=False, resnet_d=False)
    return _create('resnet3d_50', pretrained, LAYERS[50], **plain | kwargs)


resnetrs3d = register_generic(ResNetRS3d, _create, 'resnetrs3d', """3D ResNet-RS of any size.

    Args:
        pretrained: no weights are published; True needs your own file.
        depth: one of `LAYERS`, 50 by default.
        layers: the blocks of the four stages, instead of `depth`.
        **kwargs: arguments of `ResNetRS3d`, `width` among them.

    Raises:
        ValueError: unknown depth, or both depth and layers.
    """)
resnet3d_50 = register(_resnet3d_50, 'resnet3d_50', (
    'The 3D ResNet-50 that Table 6 starts from (R3D-50 of CVRL, arXiv:2008.03800). Arguments: as `ResNetRS3d`.'))
resnetrs3d_50 = _register_depth(50)
resnetrs3d_101 = _register_depth(101)
resnetrs3d_152 = _register_depth(152)
resnetrs3d_200 = _register_depth(200)
resnetrs3d_270 = _register_depth(270)
resnetrs3d_350 = _register_depth(350)
resnetrs3d_420 = _register_depth(420)
