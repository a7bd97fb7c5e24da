"""Parts of a network that training leaves as they are."""

import re

from timm.models import group_parameters
from torch import nn


def freeze(model: nn.Module, wanted: str) -> list[nn.Module]:
    """Let no gradient change what is `wanted`, and give its modules, which also stay in evaluation mode for that.

    Args:
        model: of timm's kind, or with a part called `backbone`.
        wanted: `backbone`, all but the classifier or head; or how many of the parts that timm sees in the network, a
            number from 1: the stem and the stages, from the input on.

    Raises:
        ValueError: neither of these, a network whose parts timm does not know, or one with no more parts than that.
    """
    names = {name for name, _ in model.named_parameters()}
    if wanted == 'backbone':
        backbone = _backbone(model)
        frozen = {name for name, parameter in model.named_parameters() if id(parameter) in backbone}
    elif re.fullmatch('[1-9][0-9]?', wanted):
        frozen = _first_parts(model, int(wanted)) & names
    else:
        raise ValueError('backbone, or a number of parts from 1, is wanted')
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [module for module in model.modules()
            if list(module.parameters()) and not any(weight.requires_grad for weight in module.parameters())]


def _backbone(model: nn.Module) -> set[int]:
    """The `id` of each parameter of the part called so, wherever it is, or of all but the classifier."""
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, nn.Module):
        return {id(parameter) for parameter in backbone.parameters()}
    return {id(parameter) for parameter in model.parameters()} - {
        id(parameter) for parameter in model.get_classifier().parameters()}  # type: ignore[operator]


def _first_parts(model: nn.Module, number: int) -> set[str]:
    if not hasattr(model, 'group_matcher'):
        raise ValueError('timm does not know the parts of this network: give backbone')
    parts = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    if number >= len(parts):
        raise ValueError(f'the network has {len(parts)} parts, of which some must be left to train: give fewer')
    return {name for part in sorted(parts)[:number] for name in parts[part]}
