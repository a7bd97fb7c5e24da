"""Ways to compute a model's logits, as functions to compare: torch, ONNX Runtime, OpenVINO, in several precisions.

Everything takes normalised float32 images (N, C, H, W) and gives float32 logits (N, classes). Those of torch run where
the model is; the others on the CPU, with as many threads as torch.
"""

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from timm_rs.containers.programs import load_onnx
from timm_rs.errors import UserError, first_line
from timm_rs.inference.fold import fold_batch_norm
from timm_rs.models.layers_3d import channels_last_layout

Runner: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
IMAGES, LOGITS = 'image', 'logits'  # names of input and output in exported graphs


def inference_backends(
        model: nn.Module, images: torch.Tensor, names: Iterable[str] | None = None,
        calibration: torch.Tensor | None = None) -> dict[str, Runner]:
    """Functions that compute the logits of `model`, by name, in the order of `names` (None: all that this place has).

    Args:
        model: on its device, where it stays as it is, as does its mode.
        images: an example, (N, C, H, W) float32 on the model's device; graphs are made for its height and width.
        names: of `RUNNERS`.
        calibration: images for int8, by default `images`; good for timing only when they are noise.

    Raises:
        UserError: an unknown name, a package that is missing, or a model that a back-end cannot take.
    """
    wanted = [name for name in RUNNERS if is_available(name, images.device)] if names is None else list(names)
    if unknown := [name for name in wanted if name not in RUNNERS]:
        raise UserError(f'unknown back-end {unknown[0]}: there are {", ".join(RUNNERS)}')
    model = copy.deepcopy(model).eval()
    return {name: RUNNERS[name](model, images, images if calibration is None else calibration) for name in wanted}


def is_available(name: str, device: torch.device) -> bool:
    """Whether back-end `name` has its packages and runs on `device`."""
    package = name.partition('_')[0]
    if package not in ('onnxruntime', 'openvino'):
        return True
    needs = ('onnx', 'onnxscript', 'onnxruntime') if package == 'onnxruntime' else ('openvino', 'nncf')
    return device.type == 'cpu' and all(importlib.util.find_spec(needed) for needed in needs)


# ---- torch ------------------------------------------------------------------------------------------------------

def _eager(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_torch(model)


def _channels_last(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_torch(copy.deepcopy(model), in_channels_last=True)


def _folded(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_torch(fold_batch_norm(model)[0], in_channels_last=True)


def _folded_bf16(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_torch(InBfloat16(fold_batch_norm(model)[0]), in_channels_last=True)


def _compiled(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return _compile(fold_batch_norm(model)[0], images)


def _compiled_bf16(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return _compile(InBfloat16(fold_batch_norm(model)[0]), images)


def _compile(model: nn.Module, images: torch.Tensor) -> Runner:
    # Freezing makes the weights constants, and lays them out for the CPU's convolutions.
    options: Any = dict(freezing=True) if images.device.type == 'cpu' else None
    runner = run_torch(torch.compile(model, options=options), in_channels_last=True)
    runner(images)  # compiles
    return runner


def run_torch(model: Any, in_channels_last: bool = False) -> Runner:
    """`model`, a module or what torch.compile or torch.export made of one, in that memory layout or as it is."""
    memory_format = torch.contiguous_format
    if in_channels_last:
        memory_format = channels_last_layout(model)
        model = model.to(memory_format=memory_format)

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(images.contiguous(memory_format=memory_format))
    return run


class InBfloat16(nn.Module):
    """A model converted to bfloat16 for good, with float32 images and logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.to(torch.bfloat16)).float()


ANY_BATCH = ({0: torch.export.Dim('batch')},)


def to_program(model: nn.Module, images: torch.Tensor, dynamic_batch: bool = True) -> torch.export.ExportedProgram:
    """The graph of `model` for images (N, C, H, W), or clips, of that size: any N, or that of `images`.

    Raises UserError for a model that torch.export cannot follow.
    """
    if dynamic_batch and len(images) == 1:
        images = images.expand(2, *images.shape[1:])  # torch.export takes a 1 for good
    shapes = ANY_BATCH if dynamic_batch else None
    try:
        with torch.no_grad():
            return torch.export.export(model.eval(), (images,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export has a dozen kinds
        reason = first_line(error)
        remedy = '; try one batch size, with --batch-size N' if dynamic_batch else ''
        raise UserError(f'{type(model).__name__} cannot be exported by torch.export ({type(error).__name__}: {reason})'
                        f'{remedy}') from error


# ---- ONNX Runtime -----------------------------------------------------------------------------------------------

def _onnxruntime(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_onnx(to_onnx(to_program(fold_batch_norm(model)[0], images)))


def _onnxruntime_int8(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_onnx(quantize_onnx(to_onnx(to_program(fold_batch_norm(model)[0], images)), calibration))


def to_onnx(program: torch.export.ExportedProgram) -> Any:
    """The graph as an onnx.ModelProto. Raises UserError without the packages, and where ONNX lacks an operation."""
    for package in ('onnx', 'onnxscript'):
        need(package)
    try:
        with hushed('torch.onnx._internal.exporter._schemas'):  # warns of operations that are not ours
            exported: Any = torch.onnx.export(
                program, dynamo=True, input_names=[IMAGES], output_names=[LOGITS], verbose=False,
                dynamic_shapes=ANY_BATCH)  # for the name alone: sizes are those of the program
            return exported.model_proto
    except Exception as error:  # its own kinds are private
        reason = first_line(error)
        raise UserError(f'the graph has no ONNX equivalent ({type(error).__name__}: {reason}); use --format '
                        'torch_export') from error


def quantize_onnx(model: Any, calibration: torch.Tensor) -> Any:
    """An onnx.ModelProto with convolutions in int8, by the ranges seen on `calibration`, per channel."""
    need('onnxruntime')
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = ({IMAGES: batch.numpy()} for batch in calibration.cpu().split(1))

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder, hushed('root'):
        quantized = Path(folder, 'quantized.onnx')
        quantize_static(model, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        reduce_range=True)  # else processors without VNNI overflow
        return load_onnx(quantized)


def run_onnx(model: Any) -> Runner:
    """An onnx.ModelProto in ONNX Runtime, on the CPU."""
    need('onnxruntime')
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run([LOGITS], {IMAGES: images.contiguous().numpy()})[0])


# ---- OpenVINO ---------------------------------------------------------------------------------------------------

def _openvino(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_openvino(to_openvino(to_program(fold_batch_norm(model)[0], images), images.shape[1:]))


def _openvino_bf16(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    return run_openvino(to_openvino(to_program(fold_batch_norm(model)[0], images), images.shape[1:]), 'bf16')


def _openvino_int8(model: nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> Runner:
    graph = to_openvino(to_program(fold_batch_norm(model)[0], images), images.shape[1:])
    return run_openvino(quantize_openvino(graph, calibration))


def to_openvino(program: torch.export.ExportedProgram, image_shape: Iterable[int], batch_size: int = -1) -> Any:
    """The graph as an openvino.Model for images of `image_shape` (C, H, W); -1: any batch size."""
    need('openvino')
    import openvino
    with hushed():
        graph = openvino.convert_model(program)
    graph.reshape([batch_size, *image_shape])
    graph.inputs[0].get_tensor().set_names({IMAGES})
    graph.outputs[0].get_tensor().set_names({LOGITS})
    return graph


def quantize_openvino(graph: Any, calibration: torch.Tensor) -> Any:
    """An openvino.Model with convolutions and linear layers in int8, by the ranges seen on `calibration`."""
    need('nncf')
    with hushed('nncf'):
        import nncf
        batches = [batch.numpy() for batch in calibration.cpu().split(1)]
        return nncf.quantize(graph, nncf.Dataset(batches), subset_size=len(batches))


def run_openvino(graph: Any, precision: str = 'f32') -> Runner:
    """An openvino.Model on the CPU; with 'bf16' where the processor can, and in float32 where not."""
    need('openvino')
    import openvino
    compiled = openvino.Core().compile_model(graph, 'CPU', dict(
        INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=torch.get_num_threads(), PERFORMANCE_HINT='LATENCY'))
    return lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0])


def openvino_has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    need('openvino')
    import openvino
    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


RUNNERS: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], Runner]] = {  # as in options.BACKENDS
    'eager': _eager,
    'channels_last': _channels_last,
    'folded': _folded,
    'folded_bf16': _folded_bf16,
    'compiled': _compiled,
    'compiled_bf16': _compiled_bf16,
    'onnxruntime': _onnxruntime,
    'onnxruntime_int8': _onnxruntime_int8,
    'openvino': _openvino,
    'openvino_bf16': _openvino_bf16,
    'openvino_int8': _openvino_int8,
}


# ---- packages that are not always there -------------------------------------------------------------------------

def need(package: str) -> None:
    """Raise UserError unless `package` is installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f'this needs the package {package}: pip install "timm_rs[export]"')


@contextmanager
def hushed(*loggers: str) -> Iterator[None]:
    """Without warnings of packages about themselves, nor the chatter of these loggers (errors remain)."""
    levels = {logger: logging.getLogger(logger).level for logger in loggers}
    for logger in loggers:
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in levels.items():
            logging.getLogger(logger).setLevel(level)
