"""Weights of a ResNet for images as weights of one for clips."""

import torch
from torch import nn

from .resnet_rs import check_choice
from .resnet_rs_3d import ResNetRS3d

RULES = ('centre', 'mean')


def inflate(state_dict: dict[str, torch.Tensor], model: nn.Module, rule: str) -> dict[str, torch.Tensor]:
    """`state_dict` with every kernel stretched over the frames that the one of the same name in `model` sees.

    With 'centre' and the model's padding='symmetric', a still clip of any length has the logits of its image. With
    'mean' that holds within the clip and not at its ends, beyond which there are zeros; with SAME padding it holds
    nowhere, because even sizes are padded on one side.

    Args:
        state_dict: of a ResNet with timm's names, such as timm's resnet50 for resnet3d_50.
        model: a `ResNetRS3d`. Where it has another number of classes, its own classifier stays.
        rule: 'centre', the kernel in the middle frame and zeros in the others; 'mean', its share in all.

    Raises:
        ValueError: unknown rule, a model that takes images, weights for clips, or of a network that computes otherwise.
    """
    check_choice('inflate', rule, RULES)
    if not isinstance(model, ResNetRS3d):
        raise ValueError(f'{type(model).__name__} takes images: inflate is for networks that take clips')
    if any(value.ndim == 5 for value in state_dict.values()):
        raise ValueError('the weights are of a network for clips already: leave out inflate')
    if 'maxpool.0.weight' in state_dict or 'layer2.0.downsample.2.weight' in state_dict:
        raise ValueError('a ResNet-RS or ResNet-D for images averages in its shortcuts, and ResNet-RS has no max pool; '
                         'those for clips do neither, so no inflation computes the same: take a plain ResNet, such as '
                         "timm's resnet50 for resnet3d_50")
    own, found = model.state_dict(), {}
    for name, value in state_dict.items():
        if value.ndim == 4 and name in own and own[name].ndim == 5:
            frames, value = own[name].shape[2], value.unsqueeze(2)
            value = (value.expand(-1, -1, frames, -1, -1) / frames if rule == 'mean' else
                     nn.functional.pad(value, (0, 0, 0, 0, frames // 2, frames // 2)))
        found[name] = value
    if found.get('fc.bias', torch.empty(0)).shape != own.get('fc.bias', torch.empty(0)).shape:
        found = {name: value for name, value in found.items() if not name.startswith('fc.')}
        found |= {name: value for name, value in own.items() if name.startswith('fc.')}
    return found
