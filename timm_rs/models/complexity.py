"""Parameters, multiply-adds and activations of a network, by fvcore; the only file that imports it.

On the meta device, where fvcore cannot trace, torch counts: nothing is computed there, as the networks for clips need.
"""
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .resnet_rs_3d import clip_shape

# Left out, so that figures equal the closed form of the layers: element-wise operators, normalisation,
# pooling, resizing, reductions, indexing and shape. What is neither here, nor in fvcore's own list of free
# operators, nor counted below, is reported as uncounted.
_NOT_COUNTED = (
    'abs', 'adaptive_avg_pool1d', 'adaptive_avg_pool2d', 'adaptive_max_pool2d', 'add', 'add_', 'addcmul',
    'alias', 'all', 'amax', 'amin', 'any', 'argmax', 'argsort', 'as_strided', 'avg_pool1d', 'avg_pool2d',
    'batch_norm', 'broadcast_tensors', 'ceil', 'celu', 'clamp_max', 'clamp_min', 'clone', 'col2im', 'cos',
    'cumsum', 'div', 'div_', 'dropout_', 'elu', 'embedding', 'exp', 'expand_as', 'expm1', 'fill_', 'flip',
    'fmod', 'gelu', 'gelu_', 'glu', 'grid_sampler', 'group_norm', 'gt', 'hardsigmoid', 'hardsigmoid_',
    'hardswish', 'hardswish_', 'hardtanh', 'hardtanh_', 'im2col', 'instance_norm', 'layer_norm', 'le',
    'leaky_relu', 'leaky_relu_', 'lerp', 'linalg_vector_norm', 'linspace', 'log', 'log_softmax',
    'logical_and', 'logical_not', 'logical_or', 'logsumexp', 'lt', 'masked_fill_', 'max_pool1d',
    'max_pool2d', 'max_pool2d_with_indices', 'maximum', 'mean', 'meshgrid', 'min', 'minimum', 'mish', 'mul',
    'mul_', 'ne', 'neg', 'norm', 'numpy_T', 'one_hot', 'ones_like', 'pad', 'pixel_shuffle',
    'pixel_unshuffle', 'pow', 'prelu', 'prod', 'reciprocal', 'reflection_pad2d', 'relu6', 'relu6_',
    'repeat', 'repeat_interleave', 'replication_pad2d', 'reshape_as', 'rms_norm', 'rot90', 'round', 'rsqrt',
    'rsub', 'scatter', 'scatter_', 'selu', 'sigmoid', 'sigmoid_', 'sign', 'silu', 'silu_', 'sin', 'softmax',
    'softplus', 'sort', 'sqrt', 'square', 'std', 'std_mean', 'sub', 'sub_', 'sum', 'tanh', 'tanh_',
    'tensor_split', 'tile', 'topk', 'tril', 'triu', 'unflatten', 'unfold', 'upsample_bicubic2d',
    'upsample_bilinear2d', 'upsample_nearest2d', 'var', 'var_mean', 'view_as', 'where', 'zero_',
)


@dataclass(frozen=True)
class Complexity:
    """What one forward pass costs.

    Attributes:
        params: number of parameters.
        macs: multiply-adds of convolutions, linear layers and matrix products, attention included. The FLOPs
            of the paper are twice this.
        activations: number of output elements of those same layers.
        uncounted: operators that may hold multiply-adds and were not counted, with their number of calls.
    """
    params: int
    macs: int
    activations: int
    uncounted: dict[str, int]


def measure_complexity(
        model: nn.Module,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int | None = None,
        batch_size: int = 1,
        num_frames: int | None = None,
) -> Complexity:
    """Count the cost of one forward pass in evaluation mode; the model's own mode and device stay.

    Args:
        model: takes images (batch_size, in_chans, height, width), or is a network for clips of this package.
        img_size: pixels, one side of a square or (height, width). None: as the model's timm cfg.
        in_chans: channels of the images. None: as the model says.
        batch_size: images or clips in the pass; macs and activations are those of the whole batch.
        num_frames: of each clip. None: as the model says.

    Raises:
        ValueError: no img_size, and the model has no timm cfg; a size below 1; or frames for a model that takes images.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', r'`torch\.jit', FutureWarning)  # of what fvcore does as it is imported
        from fvcore.nn.jit_analysis import JitModelAnalysis

    cfg_size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
    if img_size is None:
        if cfg_size is None:
            raise ValueError('the model carries no timm cfg with an input size: give img_size')
        img_size = cfg_size[1:]
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width, batch_size) < 1:
        raise ValueError(f'img_size={height}x{width}, batch_size={batch_size}: give sizes of at least 1')
    if in_chans is None:
        in_chans = getattr(model, 'in_chans', cfg_size[0] if cfg_size else 3)
    like = next(model.parameters(), torch.empty(0))
    shape = clip_shape(model, (in_chans, height, width), num_frames)
    images = torch.zeros(batch_size, *shape, device=like.device, dtype=like.dtype)

    params = sum(parameter.numel() for parameter in model.parameters())
    if like.is_meta:
        with _evaluation_mode(model), torch.no_grad(), _Shapes() as counted:
            model(images)
        return Complexity(params, counted.macs, counted.activations, uncounted={})
    with _evaluation_mode(model), torch.no_grad():
        analysis = JitModelAnalysis(model, images).tracer_warnings('none')
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(**{f'aten::{op}': None for op in _NOT_COUNTED})  # None: leave out
        analysis.set_op_handle(**{f'aten::{op}': handle for op, handle in _counted().items()})
        totals = analysis.by_operator()
    return Complexity(
        params=params,
        macs=int(totals['macs']),
        activations=int(totals['activations']),
        uncounted=dict(analysis.unsupported_ops()),
    )


class _Shapes(TorchDispatchMode):
    """Counts what passes on the meta device, by the formulas that torch has for shapes."""

    macs = activations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        if formula := flop_registry.get(func._overloadpacket):
            self.macs += formula(*args, **kwargs or {}, out_val=output) // 2  # torch counts a multiply-add as two
            self.activations += output.numel()
        return output


def count_parameters(model: nn.Module) -> float:
    """In millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# A handle of fvcore takes the inputs and outputs of an operator as torch._C.Value and returns what to add to
# the totals. Ours returns multiply-adds and activations together, so that one trace gives both.
_Handle = Callable[[list[Any], list[Any]], Any]


def _counted() -> dict[str, _Handle]:
    from fvcore.nn import jit_handles

    multiply_adds: dict[str, _Handle] = {
        '_convolution': jit_handles.conv_flop_jit,
        '_convolution_mode': _worded_convolution_macs,
        'linear': jit_handles.linear_flop_jit,
        'addmm': jit_handles.addmm_flop_jit,
        'mm': jit_handles.matmul_flop_jit,
        'bmm': jit_handles.bmm_flop_jit,
        'matmul': jit_handles.matmul_flop_jit,
        'einsum': jit_handles.einsum_flop_jit,
    }
    handles = {op: _with_activations(handle) for op, handle in multiply_adds.items()}
    return handles | {'scaled_dot_product_attention': _attention}


def _with_activations(multiply_adds: _Handle) -> _Handle:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        macs = multiply_adds(inputs, outputs)  # a number, or a Counter by operator
        macs = sum(macs.values()) if isinstance(macs, Counter) else macs
        return Counter(macs=macs, activations=prod(_shape(outputs[0])))

    return handle


def _worded_convolution_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Of a convolution whose padding is a word ('same'), which is another operator to PyTorch."""
    return prod(_shape(outputs[0])) * prod(_shape(inputs[1])[1:])


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """As of the two matrix products for which the fused operator stands."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    queries, keys = prod(query[:-1]), key[-2]
    return Counter(macs=queries * keys * (query[-1] + value[-1]), activations=queries * (keys + value[-1]))


def _shape(value: Any) -> list[int]:
    from fvcore.nn.jit_handles import get_shape

    return get_shape(value)
