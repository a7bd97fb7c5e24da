"""A model as a file for another runtime: torch.export, ONNX or OpenVINO; folded, of lower precision, checked."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

import timm_rs
from timm_rs.containers.programs import load_onnx, load_openvino, load_program
from timm_rs.errors import UserError, blaming, first_line
from timm_rs.files import sync_folder
from timm_rs.inference.backends import (
    IMAGES,
    LOGITS,
    InBfloat16,
    Runner,
    hushed,
    need,
    quantize_onnx,
    quantize_openvino,
    run_onnx,
    run_openvino,
    run_torch,
    to_onnx,
    to_openvino,
    to_program,
)
from timm_rs.inference.fold import fold_batch_norm
from timm_rs.inference.options import SUFFIXES
from timm_rs.inference.source import Source
from timm_rs.models.resnet_rs_3d import clip_shape
from timm_rs.recipe.knobs import FIELDS, Recipe
from timm_rs.recipe.reading import check_value
from timm_rs.tasks import create_task
from timm_rs.tasks.multilabel import Multilabel
from timm_rs.tasks.video import Video, as_views

TOLERANCE = 1e-4  # of fp32 logits, relative to the largest
KEY = 'timm_rs'  # under which the file keeps what it is
IMPOSSIBLE = {
    ('torch_export', 'int8'): 'torch.export has no int8 without further packages; use --format onnx or openvino',
    ('onnx', 'bf16'): 'ONNX Runtime has no bf16 convolutions on the CPU; use --format openvino or torch_export, or '
                      '--precision fp32 or int8',
}


class Agreement(NamedTuple):
    """How near a file's logits are to those of the model it was made from.

    Attributes:
        error: the largest difference, relative to the largest logit.
        top1: share of the images with the same most likely class.
        images: how many.
    """
    error: float
    top1: float
    images: int

    def __str__(self) -> str:
        return f'largest difference {self.error:.1e} of the largest logit, same top-1 in {100 * self.top1:.1f} % of ' \
               f'{self.images} images'


class Exported(NamedTuple):
    """A file made by `export_model`: what it is, and a function from images or clips to logits (N, classes)."""
    metadata: dict[str, Any]
    run: Runner


def export_model(
        source: Source, output: Path, format: str, precision: str = 'fp32', fold: bool = True,
        batch_size: int | None = None, calibration: torch.Tensor | None = None,
        check_images: torch.Tensor | None = None, extra: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Agreement | None]:
    """Write the model to `output`; a file that is there is replaced, once the new one is whole and checked.

    Args:
        source: the model.
        output: with the suffix of the format; OpenVINO has its weights beside it, as .bin.
        format: of `SUFFIXES`.
        precision: of `PRECISIONS`. int8 is static, after training, by the ranges that `calibration` shows.
        fold: fold batch norm into convolutions.
        batch_size: the only one, or None for any.
        calibration: images (N, C, H, W), normalised; int8 needs them.
        check_images: compare with the model on these; None: do not.
        extra: more for the metadata.

    Returns:
        The metadata, which the file has in it, and the agreement.

    Raises:
        UserError: a combination that is not possible, a model that cannot be exported, a file that cannot be written,
            or logits in fp32 that differ by more than `TOLERANCE`; then nothing is written.
    """
    check_request(output, format, precision)
    model: nn.Module = source.model
    num_folded = 0
    if fold:
        model, num_folded = fold_batch_norm(model)
    metadata = export_metadata(source, format, precision, num_folded, batch_size) | (extra or {})
    if format == 'torch_export' and precision == 'bf16':
        model = InBfloat16(model)
    example = torch.randn(batch_size or 2, *clip_shape(source.model, source.data_config['input_size']),
                          generator=torch.Generator().manual_seed(0))
    program = to_program(model, example, dynamic_batch=batch_size is None)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix='.export-') as scratch:
            made = Path(scratch, output.name)
            _WRITERS[format](program, made, metadata, calibration)
            agreement = None
            if check_images is not None:
                agreement = compare_outputs(source.model, open_export(made).run, check_images, batch_size)
                if precision == 'fp32' and not agreement.error <= TOLERANCE:
                    raise UserError(f'{output} is not written: it would not compute what {source.name} does: '
                                    f'{agreement}; try --no-fold-bn, or another --format')
            _move(made, output)
    except (OSError, RuntimeError) as error:
        raise UserError(f'{output} cannot be written: {getattr(error, "strerror", None) or error}') from error
    return metadata, agreement


def check_request(output: Path, format: str, precision: str) -> None:
    """Raise UserError for what cannot be made, or not be written there."""
    if reason := IMPOSSIBLE.get((format, precision)):
        raise UserError(f'--format {format} --precision {precision}: {reason}')
    if output.suffix != SUFFIXES[format]:
        raise UserError(f'--output {output}: files of --format {format} end with {SUFFIXES[format]}')
    if not output.parent.is_dir():
        raise UserError(f'--output {output}: there is no folder {output.parent}')
    if output.is_dir():
        raise UserError(f'--output {output}: is a folder; give a file in it')
    for package in dict(torch_export=(), onnx=('onnx', 'onnxscript', 'onnxruntime'), openvino=('openvino',))[format]:
        need(package)
    if (format, precision) == ('openvino', 'int8'):
        need('nncf')


def export_metadata(
        source: Source, format: str, precision: str, num_folded: int, batch_size: int | None) -> dict[str, Any]:
    """The metadata of a file: what it is, and what its images must be."""
    config, recipe = source.data_config, source.recipe
    task = create_task(recipe)
    if isinstance(task, Video):
        config = config | dict(frame_stride=task.knobs.frame_stride)
    shape = [batch_size or 'batch', *clip_shape(source.model, config['input_size'])]
    return dict(
        model=source.name, format=format, precision=precision, folded_batch_norms=num_folded,
        input=dict(name=IMAGES, dtype='float32', shape=shape),
        output=dict(name=LOGITS, dtype='float32', shape=[batch_size or 'batch', source.model.num_classes]),
        data_config={key: list(config[key]) for key in ('input_size', 'mean', 'std')} | {
            key: config[key] for key in ('interpolation', 'crop_pct', 'crop_mode', 'num_frames', 'frame_stride')
            if key in config},
        preprocessing=recipe.preprocessing, input_img_mode=recipe.input_img_mode, class_names=source.class_names,
        **dict(task=Multilabel.name) if task.is_of_tags else {},
        versions=dict(timm_rs=timm_rs.__version__, timm=timm.__version__, torch=torch.__version__))


def compare_outputs(model: nn.Module, run: Runner, images: torch.Tensor, batch_size: int | None = None) -> Agreement:
    """How near `run` comes to `model` on `images`: in batches of `batch_size`, or (None: any will do) of 1 and more."""
    sizes = [batch_size] * (len(images) // batch_size) if batch_size else [1, len(images) - 1]
    batches = images[:sum(sizes)].split(sizes)
    with torch.inference_mode():
        truth = torch.cat([model(batch) for batch in batches])
    found = torch.cat([run(batch) for batch in batches])
    return Agreement(
        ((found - truth).abs().max() / truth.abs().max()).item(),
        (found.argmax(1) == truth.argmax(1)).float().mean().item(), len(truth))


def open_export(path: Path) -> Exported:
    """A file that `export_model` wrote, in the runtime of its format. Raises UserError for all other files."""
    openers = {SUFFIXES[format]: opener for format, opener in _OPENERS.items()}
    if path.suffix not in openers:
        raise UserError(f'{path} is no export: those end with {", ".join(openers)}')
    if not path.is_file():
        raise UserError(f'{path} does not exist')
    try:
        text, start = openers[path.suffix](path)
        metadata = json.loads(text)
        return Exported(metadata, start(metadata))
    except UserError:
        raise
    except Exception as error:  # three runtimes, with kinds of their own
        reason = first_line(error)
        raise UserError(f'{path} cannot be read, or was not made by tools/export.py ({type(error).__name__}: '
                        f'{reason})') from error


def as_source(path: Path, exported: Exported) -> Source:
    """An exported file as a model for use; `model` is its function. Raises UserError for values that it cannot have."""
    metadata = exported.metadata
    with blaming(f'{path} was not made by tools/export.py'):
        config = metadata['data_config']
        values = dict(preprocessing=metadata['preprocessing'], input_img_mode=metadata['input_img_mode'],
                      in_chans=config['input_size'][0])
        if 'num_frames' in config:
            values |= as_views(config['num_frames'], config.get('frame_stride', 2))
        if metadata.get('task') == Multilabel.name:
            values |= dict(task=Multilabel.name)
        for name, value in (values | config).items():
            if name in FIELDS:
                check_value(name, value, str(path))
        if (names := metadata['class_names']) and not all(isinstance(name, str) for name in names):
            raise UserError(f'{path} has class names that are no text')
    recipe = Recipe(model=str(metadata['model']), device='cpu', **values)
    return Source(f'{metadata["model"]} ({path.name})', exported.run, recipe, config, names)


# ---- the formats ------------------------------------------------------------------------------------------------

def _write_program(program: Any, path: Path, metadata: dict[str, Any], calibration: torch.Tensor | None) -> None:
    torch.export.save(program, path, extra_files={KEY: json.dumps(metadata)})


def _open_program(path: Path) -> tuple[str, Callable[[dict[str, Any]], Runner]]:
    with hushed():  # torch warns of how it reads its own file
        program, texts = load_program(path)
    return texts[KEY], lambda metadata: run_torch(program.module())


def _write_onnx(program: Any, path: Path, metadata: dict[str, Any], calibration: torch.Tensor | None) -> None:
    model = to_onnx(program)
    import onnx
    if metadata['precision'] == 'int8':
        assert calibration is not None
        model = quantize_onnx(model, calibration)
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
    path.write_bytes(model.SerializeToString())


def _open_onnx(path: Path) -> tuple[str, Callable[[dict[str, Any]], Runner]]:
    need('onnx')
    model = load_onnx(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return properties[KEY], lambda metadata: run_onnx(model)


def _write_openvino(program: Any, path: Path, metadata: dict[str, Any], calibration: torch.Tensor | None) -> None:
    size = metadata['input']['shape']
    graph = to_openvino(program, size[1:], -1 if size[0] == 'batch' else size[0])
    import openvino
    if metadata['precision'] == 'int8':
        assert calibration is not None
        graph = quantize_openvino(graph, calibration)
    graph.set_rt_info(json.dumps(metadata), [KEY])
    # OpenVINO chooses bfloat16 when it runs; 16 bits of the weights are all it needs then.
    openvino.save_model(graph, path, compress_to_fp16=metadata['precision'] == 'bf16')


def _open_openvino(path: Path) -> tuple[str, Callable[[dict[str, Any]], Runner]]:
    need('openvino')
    graph = load_openvino(path)
    return graph.get_rt_info([KEY]).value, lambda metadata: run_openvino(
        graph, 'bf16' if metadata['precision'] == 'bf16' else 'f32')


_WRITERS = dict(torch_export=_write_program, onnx=_write_onnx, openvino=_write_openvino)
_OPENERS = dict(torch_export=_open_program, onnx=_open_onnx, openvino=_open_openvino)


def _move(made: Path, output: Path) -> None:
    """Put a whole file, and the weights beside it if there are such, in the place of the one before."""
    weights = made.with_suffix('.bin')
    for path in filter(Path.exists, (weights, made)):
        sync_folder(path)
    if weights.exists():
        output.unlink(missing_ok=True)  # never a graph beside the weights of another
        os.replace(weights, output.with_suffix('.bin'))
    os.replace(made, output)
    sync_folder(output.parent)
