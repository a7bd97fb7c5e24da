"""Networks with an output for every pixel: any backbone of timm's, torchvision's feature pyramid, a small head."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

STRIDES = {'pyramid': (8, 16, 32), 'fused': (4, 8, 16, 32)}  # of the backbone's feature maps, by decoder


class DenseNetwork(nn.Module):
    """Images (N, C, H, W) to `num_classes` numbers for every pixel, (N, num_classes, H, W).

    The two decoders of the authors' framework. `pyramid`: a feature pyramid on strides 8 to 32, of which the head sees
    the finest level. Source: tensorflow/models official/vision, seg_resnetfpn_pascal. `fused`: strides 4 to 128, all
    resized to the finest and summed. Source: tensorflow/tpu models/official/detection, projects/self_training.
    # differs from the release: torchvision's pyramid has batch norm on the lateral convolutions, too, and none on the
    # levels above the backbone's; of `pyramid` there are none of these, since they do not reach the head.
    """

    def __init__(self, backbone: Any, num_classes: int, decoder: str = 'pyramid', channels: int = 256,
                 head_convs: int = 3):
        """`backbone` is of timm's `features_only`. Raises ValueError where it has no maps of the strides needed."""
        super().__init__()
        self.backbone, self.num_classes, self.decoder = backbone, num_classes, decoder
        self.pretrained_cfg = backbone.pretrained_cfg
        self.taken = maps_of_strides(backbone, STRIDES[decoder], f'the decoder {decoder}')
        self.pyramid = Pyramid(
            [backbone.feature_info.channels()[index] for index in self.taken], channels,
            LastLevelP6P7(channels, channels) if decoder == 'fused' else None, norm_layer=nn.BatchNorm2d)
        for index in range(1, len(self.taken) if decoder == 'pyramid' else 0):  # nobody sees these levels at the end
            self.pyramid.layer_blocks[index] = nn.Identity()
        self.head = nn.Sequential(*(Conv2dNormActivation(channels, channels) for _ in range(head_convs)),
                                  nn.Conv2d(channels, num_classes, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        levels = list(self.pyramid(OrderedDict((str(index), maps[index]) for index in self.taken)).values())
        finest = levels[0]
        if self.decoder == 'fused':
            for level in levels[1:]:
                finest = finest + resized(level, finest.shape[2:])
        return resized(self.head(finest), images.shape[2:])

    def get_classifier(self) -> nn.Module:
        return self.head[-1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)


class Pyramid(FeaturePyramidNetwork):
    """torchvision's, to the same numbers, with resizing that XLA has gradients of."""

    def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names, maps = list(x), list(x.values())
        inner = self.get_result_from_inner_blocks(maps[-1], -1)
        levels = [self.get_result_from_layer_blocks(inner, -1)]
        for index in reversed(range(len(maps) - 1)):
            lateral = self.get_result_from_inner_blocks(maps[index], index)
            inner = lateral + resized(inner, lateral.shape[2:], nearest=True)
            levels.insert(0, self.get_result_from_layer_blocks(inner, index))
        if self.extra_blocks is not None:
            levels, names = self.extra_blocks(levels, maps, names)
        return OrderedDict(zip(names, levels, strict=True))


def maps_of_strides(backbone: Any, wanted: Sequence[int], user: str) -> list[int]:
    """Which of the feature maps of timm's `features_only` have the strides `wanted`: the last, where several have one.

    Raises ValueError that names those that `user` needs and that are not there.
    """
    strides = backbone.feature_info.reduction()
    if missing := [str(stride) for stride in wanted if stride not in strides]:
        raise ValueError(f'it has no feature maps of stride {", ".join(missing)}, which {user} needs, only of '
                         f'{", ".join(map(str, sorted(set(strides))))}')
    return [len(strides) - 1 - strides[::-1].index(stride) for stride in wanted]


def resized(maps: torch.Tensor, size: Sequence[int], nearest: bool = False) -> torch.Tensor:
    """Feature maps (N, C, H, W) at another `size` (height, width): `interpolate`, bilinear or nearest.

    XLA computes the gradient of that on the host, and so gets matrix products.
    """
    if maps.device.type != 'xla':
        return F.interpolate(maps, tuple(size), mode='nearest' if nearest else 'bilinear')
    return resized_by_products(maps, size, nearest)


def resized_by_products(maps: torch.Tensor, size: Sequence[int], nearest: bool = False) -> torch.Tensor:
    """`resized` as products with the share of each row, and of each column, in each of those wanted."""
    shares = []
    for have, want in zip(maps.shape[2:], size, strict=True):
        places = torch.arange(want) * (have / want)
        places = places.floor() if nearest else (places + (have / want - 1) / 2).clamp(0, have - 1)
        shares.append((1 - (places[:, None] - torch.arange(have)).abs()).clamp(min=0).to(maps))
    return shares[0] @ maps @ shares[1].T


def create_dense_network(
        model_name: str, num_classes: int, decoder: str, channels: int, head_convs: int, **arguments: Any
) -> DenseNetwork:
    """A network on the backbone that `timm.create_model` makes of the other arguments, without its classifier."""
    backbone = timm.create_model(model_name, features_only=True, **arguments)
    return DenseNetwork(backbone, num_classes, decoder, channels, head_convs)
