"""ResNet-RS on timm's ResNet: the released architecture, its stochastic depth and its initialisation.

Paper: Bello et al. 2021, arXiv:2103.07579. Official code: tensorflow/tpu, `models/official/resnet`.
State dict keys and shapes equal those of timm's `resnetrs*`.
"""
import dataclasses
from collections.abc import Container, Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, SEModule, lecun_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from .registry import CfgSource, Entrypoint, point_cfg, register, resolve_weights

# Table 11: depth -> bottleneck blocks per stage.
LAYERS = {
    26: (2, 2, 2, 2),  # scaling search only; derived from 26 = 3 * 8 + 2, no source prints it
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    300: (4, 36, 54, 4),  # scaling search only, Appendix E
    350: (4, 36, 72, 4),
    400: (6, 48, 72, 6),  # scaling search only, Appendix E
    420: (4, 44, 87, 4),
}


class ResNetRS(ResNet):
    """ResNet-RS: bottlenecks with squeeze-and-excitation, ResNet-D stem and shortcuts, no max pool.

    Takes images (N, in_chans, H, W) to logits (N, num_classes).

    Args:
        layers: blocks in each of the four stages, see `LAYERS`.
        width: multiplier of every channel count, `int(channels * width)` (scaling search, Appendix E).
        drop_path_rate: stochastic depth, the rate that the last stage reaches.
        drop_path_rule: 'stage', the official rule: every block of stages 1, 2, 3, 4 has 2/5, 3/5, 4/5, 5/5 of
            the rate; 'block', timm's rule: from 0 at the first block linearly to the rate at the last.
        weight_init: 'official' (see `init_weights`) or 'timm'.
        squeeze_excite: without it, and without `resnet_d`, this is the ResNet that Table 1 starts from.
        resnet_d: the deep stem without max pool, and average-pooled shortcuts. Without: a 7x7 stem of stride 2, a
            3x3 max pool and strided 1x1 shortcuts; the stride of a block stays in its 3x3.
        bn_momentum: of every batch norm, in PyTorch's convention; None leaves its 0.1. The official runs keep
            the last batch's statistics (1.0) and average them in the EMA of the weights.
        bn_eps: of every batch norm.
        block_args: further arguments of timm's `Bottleneck`.
        **kwargs: further arguments of timm's `ResNet` (num_classes, in_chans, drop_rate, output_stride, ...).

    Raises:
        ValueError: an impossible width or layers, an unknown rule or initialisation.
    """

    def __init__(
            self,
            layers: Sequence[int],
            width: float = 1.0,
            drop_path_rate: float = 0.0,
            drop_path_rule: str = 'stage',
            weight_init: str = 'official',
            squeeze_excite: bool = True,
            resnet_d: bool = True,
            bn_momentum: float | None = None,
            bn_eps: float = 1e-5,
            block_args: dict[str, Any] | None = None,
            **kwargs: Any,
    ):
        check_size(layers, width)
        check_choice('drop_path_rule', drop_path_rule, ('stage', 'block'))
        check_choice('weight_init', weight_init, ('official', 'timm'))
        self.weight_init = weight_init  # before super().__init__, which calls init_weights
        block_args = dict(block_args or {})
        if squeeze_excite:
            # rd_divisor=1 gives the official int(4f * 0.25) at any width; at width 1 timm's rounding does too.
            block_args.setdefault('attn_layer', partial(SEModule, rd_ratio=0.25, rd_divisor=1))
        # 32-32-64 and a strided conv in place of the max pool, as released; Table 7's FLOPs agree.
        # differs from the paper: section 4.1 moves the pool's stride into the first bottleneck instead.
        stem = dict(stem_width=int(32 * width), stem_type='deep', replace_stem_pool=True, avg_down=True)
        super().__init__(
            block=Bottleneck,
            layers=tuple(layers),
            channels=tuple(int(c * width) for c in (64, 128, 256, 512)),
            drop_path_rate=drop_path_rate if drop_path_rule == 'block' else 0.0,
            block_args=block_args,
            **(stem if resnet_d else {}),
            **kwargs,
        )
        if drop_path_rule == 'stage' and drop_path_rate > 0:
            for fifths, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=2):
                for block in stage:
                    block.drop_path = DropPath(drop_path_rate * fifths / 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = bn_eps
                if bn_momentum is not None:
                    module.momentum = bn_momentum

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialise as the official release (`resnet_model.py`), or as timm where `weight_init` is 'timm'.

        Convolutions, SE included: truncated normal of variance 1 / fan_in (TensorFlow's default
        `variance_scaling_initializer`), biases 0. Classifier: normal of deviation 0.01, bias 0. Batch norm:
        gamma 1, beta 0; with `zero_init_last`, the last gamma of each block 0.
        """
        if next(self.parameters()).is_meta:  # there is nothing to initialise, and torch takes seconds for it
            return
        if self.weight_init == 'timm':
            return super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for module in self.modules():  # afterwards: a block comes before its own batch norms
            if isinstance(module, Bottleneck) and zero_init_last:
                module.zero_init_last()
        self._init_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a freshly initialised one of `num_classes` outputs (0 removes it)."""
        super().reset_classifier(num_classes, global_pool)
        if self.weight_init == 'official':
            self._init_classifier()

    def _init_classifier(self) -> None:
        if isinstance(self.fc, nn.Linear):  # not after num_classes=0
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)


# What the networks for clips (`resnet_rs_3d.py`) say in the same words.

def check_size(layers: Sequence[int], width: float) -> None:
    """Raise ValueError unless every one of four stages has a block, and every layer a channel."""
    if len(layers) != 4 or any(blocks < 1 for blocks in layers):
        raise ValueError(f'layers={tuple(layers)}: give the blocks of four stages, such as {LAYERS[50]}')
    if not width > 0 or int(32 * width) == 0:
        raise ValueError(f'width={width} leaves layers without channels: use a width of at least 1/32')


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the `value` of `argument` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{argument}={value!r} is unknown: use {" or ".join(map(repr, choices))}')


def refuse_size(name: str, generic: str, arguments: Container[str]) -> None:
    """Raise ValueError where the `arguments` of model `name` set the depth that is in its name."""
    if 'depth' in arguments or 'layers' in arguments:
        raise ValueError(f"{name} has a fixed depth: use the model '{generic}' with depth= or layers=")


def choose_layers(depth: int | None, layers: Sequence[int] | None) -> Sequence[int]:
    """The blocks of four stages: `layers`, or those of `depth`, 50 by default.

    Raises:
        ValueError: unknown depth, or both depth and layers.
    """
    if layers is None:
        depth = 50 if depth is None else depth
        if depth not in LAYERS:
            known = ', '.join(map(str, LAYERS))
            raise ValueError(f'depth={depth} is unknown: use one of {known}, or layers=')
        return LAYERS[depth]
    if depth is not None:
        raise ValueError(f'depth={depth} and layers={tuple(layers)} both set the blocks: give one of the two')
    return layers


def create_network(
        kind: type[nn.Module],
        name: str,
        pretrained: bool,
        layers: Sequence[int],
        pretrained_cfg: CfgSource = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    """Model `name`, which is a `kind`, as timm's entrypoints make theirs."""
    cfg = resolve_weights(name, pretrained, pretrained_cfg, pretrained_cfg_overlay)
    if not kwargs.get('resnet_d', True):
        cfg = dataclasses.replace(cfg, first_conv='conv1')  # a single convolution
    return build_model_with_cfg(kind, name, pretrained, pretrained_cfg=cfg, layers=layers, **kwargs)


def register_depth(kind: type[nn.Module], create: Entrypoint, generic: str, title: str, depth: int) -> Entrypoint:
    """Register the `kind` of a `depth`, one of those of model `generic`; its cfg is in the module of the kind."""
    name = f'{generic}_{depth}'

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        refuse_size(name, generic, kwargs)
        return create(name, pretrained, LAYERS[depth], **kwargs)

    entrypoint.__module__ = kind.__module__
    return register(entrypoint, name, f'{title}-{depth}, blocks {LAYERS[depth]}. Arguments: as `{kind.__name__}`.')


def register_generic(kind: type[nn.Module], create: Entrypoint, name: str, doc: str) -> Entrypoint:
    """Register the `kind` of any depth or layers as model `name`, whose cfg is in the module of the kind."""
    def entrypoint(
            pretrained: bool = False,
            depth: int | None = None,
            layers: Sequence[int] | None = None,
            **kwargs: Any,
    ) -> nn.Module:
        return create(name, pretrained, choose_layers(depth, layers), **kwargs)

    entrypoint.__module__ = kind.__module__
    return register(entrypoint, name, doc)


OFFICIAL_RELEASE = 'https://github.com/tensorflow/tpu/tree/bee9c4f6/models/official/resnet/resnet_rs'


def _cfg(img_size: int, **cfg: Any) -> dict[str, Any]:
    return point_cfg(img_size, first_conv='conv1.0', classifier='fc', **cfg)


def _official_cfg(img_size: int, hf_hub_id: str | None = None) -> dict[str, Any]:
    return _cfg(img_size, hf_hub_id=hf_hub_id, origin_url=OFFICIAL_RELEASE)


# Table 7: the tags `tf_i<resolution>_in1k` are the paper's 11 points. timm hosts converted TensorFlow weights
# of six; the first tag of an architecture that has weights is its default.
_points = {
    'resnetrs_50.tf_i160_in1k': _official_cfg(160, 'timm/resnetrs50.tf_in1k'),
    'resnetrs_101.tf_i160_in1k': _official_cfg(160),
    'resnetrs_101.tf_i192_in1k': _official_cfg(192, 'timm/resnetrs101.tf_in1k'),
    'resnetrs_152.tf_i192_in1k': _official_cfg(192),
    'resnetrs_152.tf_i224_in1k': _official_cfg(224),
    'resnetrs_152.tf_i256_in1k': _official_cfg(256, 'timm/resnetrs152.tf_in1k'),
    'resnetrs_200.tf_i256_in1k': _official_cfg(256),
    'resnetrs_270.tf_i256_in1k': _official_cfg(256, 'timm/resnetrs270.tf_in1k'),
    'resnetrs_350.tf_i256_in1k': _official_cfg(256, 'timm/resnetrs350.tf_in1k'),
    'resnetrs_350.tf_i320_in1k': _official_cfg(320),
    'resnetrs_420.tf_i320_in1k': _official_cfg(320, 'timm/resnetrs420.tf_in1k'),
}
PAPER_POINTS = tuple(_points)

default_cfgs = generate_default_cfgs(_points | {
    'resnetrs_200.timm_in1k': _cfg(
        256, hf_hub_id='timm/resnetrs200.tf_in1k', crop_pct=1.0, test_input_size=(3, 320, 320),
        origin_url='https://github.com/huggingface/pytorch-image-models',
        description="Trained by timm's author: not the TensorFlow weights, although the Hub says 'tf'."),
    'resnetrs': _cfg(224),
})


_create = partial(create_network, ResNetRS)
_register_depth = partial(register_depth, ResNetRS, _create, 'resnetrs', 'ResNet-RS')
resnetrs = register_generic(
    ResNetRS, _create, 'resnetrs', """ResNet-RS of any size, as in the scaling search (Appendix E).

    Args:
        pretrained: no weights are published; True needs your own file.
        depth: one of `LAYERS`, 50 by default.
        layers: the blocks of the four stages, instead of `depth`.
        **kwargs: arguments of `ResNetRS`, `width` among them.

    Raises:
        ValueError: unknown depth, or both depth and layers.
    """)
resnetrs_50 = _register_depth(50)
resnetrs_101 = _register_depth(101)
resnetrs_152 = _register_depth(152)
resnetrs_200 = _register_depth(200)
resnetrs_270 = _register_depth(270)
resnetrs_350 = _register_depth(350)
resnetrs_420 = _register_depth(420)
