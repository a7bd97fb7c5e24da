"""Batch norm folded into the convolutions before it: the same function with fewer passes over memory."""

import copy
from typing import Any, TypeVar

from timm.layers import BatchNormAct2d
from timm.models import is_notrace_module
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from timm_rs.errors import UserError, first_line
from timm_rs.models.batch_norm import KINDS

Model = TypeVar('Model', bound=nn.Module)


def fold_batch_norm(model: Model) -> tuple[Model, int]:
    """A copy of `model` in evaluation mode without the batch norms that follow a convolution, and how many those were.

    Only where nothing else reads what the convolution gives, which a trace of the model shows; so densely connected
    networks and those that normalise first keep some or all. timm's norms with an activation leave the activation.
    Logits differ by rounding. Raises UserError for a model that torch.fx cannot trace.
    """
    folded = copy.deepcopy(model).eval()
    modules = dict(folded.named_modules())
    if not any(isinstance(module, KINDS) for module in modules.values()):
        return folded, 0
    try:
        nodes = list(_LayerTracer().trace(folded).nodes)
    except Exception as error:  # whatever a model's own code does with a tensor that is none
        reason = first_line(error)
        raise UserError(f'{type(model).__name__} cannot be traced, and so not folded ({type(error).__name__}: '
                        f'{reason}); leave batch norm as it is with --no-fold-bn') from error
    calls = [node.target for node in nodes if node.op == 'call_module']
    count = 0
    for node in nodes:
        norm, before = _called(node, modules), node.args[0] if node.args else None
        if not isinstance(norm, KINDS) or norm.running_mean is None or not isinstance(before, fx.Node):
            continue
        conv = _called(before, modules)
        if not isinstance(conv, (nn.Conv2d, nn.Conv3d)) or len(before.users) != 1:
            continue
        if calls.count(node.target) > 1 or calls.count(before.target) > 1:  # shared layers
            continue
        folded.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        folded.set_submodule(str(node.target), nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d)
                             else nn.Identity())
        count += 1
    return folded, count


class _LayerTracer(fx.Tracer):
    """Sees layers whole, timm's batch norms with their activation among them."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not list(module.children()) or isinstance(module, KINDS) or is_notrace_module(type(module))


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return modules.get(str(node.target)) if node.op == 'call_module' else None
