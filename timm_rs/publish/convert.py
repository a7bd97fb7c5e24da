"""The authors' checkpoints as weights for timm: TensorFlow 1 as released, Keras' copies, TensorFlow 2 for clips.

Official release: tensorflow/tpu, `models/official/resnet`. Its `resnet_model.py` builds the network, and the order
in which it does so numbers the variables; its `resnet_main.py` says which of them are averaged.
"""
import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from timm_rs.containers.archives import is_tar, unpack_tar
from timm_rs.containers.hdf5 import open_hdf5
from timm_rs.errors import UserError
from timm_rs.files import atomic_folder
from timm_rs.models.resnet_rs import LAYERS, PAPER_POINTS
from timm_rs.models.resnet_rs_3d import ResNetRS3d, clip_shape
from timm_rs.publish.convert_3d import AVERAGED, OBJECT_GRAPH, layers_of, network_entries
from timm_rs.publish.folder import check_output, save_model, stock_name

TRAINING_STATE = re.compile(r'global_step|.+/Momentum')  # what the network has no place for, and needs not
INSTALL = 'pip install -e ".[convert]"'

# TensorFlow's variables of each kind of layer, and ours.
VARIABLES = {
    'conv2d': {'kernel': 'weight', 'bias': 'bias'},
    'batch_normalization': {'gamma': 'weight', 'beta': 'bias',
                            'moving_mean': 'running_mean', 'moving_variance': 'running_var'},
    'dense': {'kernel': 'weight', 'bias': 'bias'},
}
TO_TORCH = {5: (4, 3, 0, 1, 2), 4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # THWIO -> OITHW, HWIO -> OIHW, IO -> OI

# Layers of keras.applications, as `save_weights` names them today and as the published files do.
KERAS_STEM = re.compile(r'(?:stem_\d+_)?(stem_(?:conv|batch_norm)_\d)')
KERAS_BLOCK = re.compile(r'(?:c|BlockGroup)(\d)_+block_(\d+)_+(?:se_(?=se_))?(.+)')


class Layer(NamedTuple):
    """A layer that has variables: its name in our state dict, TensorFlow's kind of layer, its name in Keras."""
    key: str
    kind: str
    keras: str


class Checkpoint(NamedTuple):
    """An open file of weights: shapes of its variables by name, without the training state; `read` loads one."""
    path: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    is_keras: bool = False

    @property
    def has_averages(self) -> bool:
        return any(name.endswith(AVERAGED) for name in self.shapes)


def construction_order(blocks: Sequence[int]) -> Iterator[Layer]:
    """The layers of a ResNet-RS of `blocks` per stage, as `resnet_model.py` builds them one after the other."""
    stem = (('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1'), ('maxpool.0', 'maxpool.1'))
    for number, (conv, norm) in enumerate(stem, start=1):
        yield Layer(conv, 'conv2d', f'stem_conv_{number}')
        yield Layer(norm, 'batch_normalization', f'stem_batch_norm_{number}')
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            key, keras = f'layer{stage}.{block}', f'c{stage + 1}_block_{block}'
            if block == 0:  # bottleneck_block: the shortcut comes first
                yield Layer(f'{key}.downsample.1', 'conv2d', f'{keras}_projection_conv')
                yield Layer(f'{key}.downsample.2', 'batch_normalization', f'{keras}_projection_batch_norm')
            for number in (1, 2, 3):
                yield Layer(f'{key}.conv{number}', 'conv2d', f'{keras}_conv_{number}')
                yield Layer(f'{key}.bn{number}', 'batch_normalization', f'{keras}_batch_norm_{number}')
            yield Layer(f'{key}.se.fc1', 'conv2d', f'{keras}_se_reduce')
            yield Layer(f'{key}.se.fc2', 'conv2d', f'{keras}_se_expand')
    yield Layer('fc', 'dense', 'predictions')


def variable_names(model: nn.Module, keras: bool = False) -> dict[str, str]:
    """Entries of the state dict of a ResNet-RS (ours or timm's) -> variables of TensorFlow 1, or of Keras.

    For clips it is TensorFlow 2, by the names of `network_entries`. Covers the whole state dict but
    `num_batches_tracked`, which TensorFlow does not count.
    """
    entries, names = model.state_dict().keys(), {}
    for key, kind, name in layers_of(model) if isinstance(model, ResNetRS3d) else _numbered(model, keras):
        for theirs, ours in VARIABLES[kind].items():
            if f'{key}.{ours}' in entries:  # the only biases of convolutions are those of SE and gates
                names[f'{key}.{ours}'] = f'{name}/{theirs}'
    return names


def _numbered(model: nn.Module, keras: bool) -> Iterator[tuple[str, str, str]]:
    """Layers of a network for images: name in the state dict, kind, name in TensorFlow 1, or in Keras."""
    blocks = [len(list(model.get_submodule(f'layer{stage}').children())) for stage in (1, 2, 3, 4)]
    built = Counter[str]()
    for layer in construction_order(blocks):
        number = built[layer.kind]
        built[layer.kind] += 1
        yield layer.key, layer.kind, layer.keras if keras else f'{layer.kind}_{number}' if number else layer.kind


def load_official_weights(model: nn.Module, checkpoint: Checkpoint, weights: str | None = None) -> None:
    """Fill `model`, a ResNet-RS, from `checkpoint`, using each variable of the file exactly once.

    Args:
        model: any depth, ours or timm's, of 1000 classes; or for clips. Its weights become float32.
        checkpoint: as `open_checkpoint` yields it.
        weights: 'ema', the average that the authors evaluate, or 'raw', the last step of training. None means
            'ema', and for a Keras file the only weights that it has.

    Raises:
        UserError: another depth, another number of classes, a variable that is missing, that the network has
            no place for or that has another shape; averages asked for that are not there.
    """
    if checkpoint.is_keras and weights:
        raise UserError(f"{checkpoint.path}: a Keras file has one set of weights; leave out weights='{weights}'")
    names, state = variable_names(model, checkpoint.is_keras), model.state_dict()
    check_variables(checkpoint, {
        name: tuple(state[key].shape)[:4 if '_se_' in name else None]  # a 2D convolution in TensorFlow, also for clips
        for key, name in names.items()})
    averaged = not checkpoint.is_keras and weights != 'raw'
    if averaged and not checkpoint.has_averages:
        raise UserError(f'{checkpoint.path}: has no averaged weights (*{AVERAGED}); the raw ones are there')
    for key, name in names.items():
        array = checkpoint.read(name + AVERAGED if averaged else name)
        values = torch.from_numpy(np.ascontiguousarray(array.transpose(TO_TORCH[array.ndim]), np.float32))
        state[key] = values.view(state[key].shape)
    model.load_state_dict(state)


def check_variables(checkpoint: Checkpoint, torch_shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError unless the file has these variables and no other, and all or none of their averages.

    Args:
        checkpoint: the file.
        torch_shapes: variable -> shape in the axis order of PyTorch.
    """
    path, shapes = checkpoint.path, checkpoint.shapes
    convs, wanted = (sum(name.endswith('/kernel') and len(shape) == 4 for name, shape in table.items())
                     for table in (shapes, torch_shapes))
    # Four convolutions in the stem, one in each of the four shortcuts, three and two of SE in each block.
    found = next((depth for depth, blocks in LAYERS.items() if 8 + 5 * sum(blocks) == convs), None)
    if found and convs != wanted:
        raise UserError(f'{path}: {convs} convolutions make it a ResNet-RS-{found}, and the model has {wanted}: '
                        f'use resnetrs_{found}')
    expected = {name: tuple(shape[axis] for axis in np.argsort(TO_TORCH[len(shape)]))
                for name, shape in torch_shapes.items()}
    if checkpoint.has_averages:
        expected |= {name + AVERAGED: shape for name, shape in expected.items()}
    classes = shapes.get('predictions/bias' if checkpoint.is_keras else 'dense/bias')
    if classes and classes != torch_shapes.get('dense/bias', (1000,)):
        raise UserError(f'{path}: has {classes[0]} classes; only the 1000 of ImageNet can be converted')
    for problem, names in (
            ('lacks', expected.keys() - shapes.keys()),
            ('has variables that the model has no place for:', shapes.keys() - expected.keys()),
            ('has other shapes than the model:',
             {f'{name} {shapes[name]} instead of {shape}' for name, shape in expected.items()
              if name in shapes and shapes[name] != shape})):
        if names:
            more = f', and {len(names) - 3} more' if len(names) > 3 else ''
            raise UserError(f'{path}: {problem} {", ".join(sorted(names)[:3])}{more}')


def average_distance(model: nn.Module, checkpoint: Checkpoint) -> float:
    """The largest difference between an averaged and a raw variable of a TensorFlow 1 checkpoint."""
    return max(float(np.abs(checkpoint.read(name + AVERAGED) - checkpoint.read(name)).max())
               for name in variable_names(model).values())


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """Open the folder or the prefix of a TensorFlow checkpoint, a published .tar.gz of it, or a Keras .h5.

    Raises UserError, here and when a variable is read: nothing of that kind at `path`, a damaged file, a package
    that is not installed.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            yield _read_tensorflow(path, _only_prefix(path, path))
        elif path.is_file() and path.suffix in ('.h5', '.hdf5'):
            yield _read_keras(path, stack)
        elif path.is_file() and is_tar(path):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='timm_rs-')))
            unpack_tar(path, folder)
            yield _read_tensorflow(path, _only_prefix(folder, path))
        elif Path(f'{path}.index').is_file():
            yield _read_tensorflow(path, str(path))
        else:
            raise UserError(f'{path}: is neither the folder nor the prefix (without .index) of a TensorFlow '
                            'checkpoint, nor a .tar.gz of it, nor a Keras .h5 file')


@contextlib.contextmanager
def _or_user_error(path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise UserError(f'{path}: cannot be read: {error}') from None


def _only_prefix(folder: Path, shown: Path) -> str:
    """The one checkpoint in a folder. Some published ones have no `checkpoint` file that would name it."""
    prefixes = sorted(str(file.with_suffix('')) for file in folder.rglob('*.index'))
    if len(prefixes) != 1:
        named = ', '.join(os.path.relpath(prefix, folder) for prefix in prefixes[:3])
        found = f'{len(prefixes)} ({named}): give the path of one' if prefixes else 'none'
        raise UserError(f'{shown}: should have one TensorFlow checkpoint (*.index), and has {found}')
    return prefixes[0]


def _read_tensorflow(path: Path, prefix: str) -> Checkpoint:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # or it greets everybody
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(f'{path}: a TensorFlow checkpoint can only be read with TensorFlow: {INSTALL}') from None
    with _or_user_error(path, Exception):  # what a damaged file makes TensorFlow raise is not documented
        reader = tf.train.load_checkpoint(prefix)
    shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    read = _or_user_error(path, Exception)(reader.get_tensor)
    if OBJECT_GRAPH in shapes:
        entries = network_entries(shapes)
        return Checkpoint(str(path), {name: shapes[key] for name, key in entries.items()},
                          lambda name: read(entries[name]))
    return Checkpoint(
        str(path), {name: shape for name, shape in shapes.items() if not TRAINING_STATE.fullmatch(name)}, read)


def _read_keras(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    try:  # save() has them in a group, save_weights() has not
        found = stack.enter_context(open_hdf5(path, 'model_weights'))
    except ImportError:
        raise UserError(f'{path}: a Keras file can only be read with h5py: {INSTALL}') from None
    datasets: dict[str, Any] = {}
    for name, node in found.items():  # .../BlockGroup2__block_0__conv_1/kernel:0
        *_, layer, variable = ['', *name.split('/')]
        datasets[f'{_keras_layer(layer)}/{variable.removesuffix(":0")}'] = node
    shapes = {name: data.shape for name, data in datasets.items()}
    read = _or_user_error(path, OSError, KeyError, RuntimeError)(lambda name: datasets[name][()])
    return Checkpoint(str(path), shapes, read, is_keras=True)


def _keras_layer(name: str) -> str:
    """One name for a layer, whichever version of Keras' ResNet-RS saved it."""
    if match := KERAS_STEM.fullmatch(name):
        return match[1]
    if match := KERAS_BLOCK.fullmatch(name):
        return f'c{match[1]}_block_{match[2]}_{match[3]}'
    return name


def save_for_timm(model: nn.Module, output: str | os.PathLike[str], name: str, **provenance: object) -> None:
    """Write `model` as a folder for `timm.create_model('local-dir:...', pretrained=True)`; that needs no timm_rs.

    The configuration has the name of timm's own architecture with the same weights, and our image size and crop. Only
    networks for clips, which timm has not, keep their name and need timm_rs.

    Args:
        model: as `timm.create_model` makes it of `name`.
        output: a folder that is not there yet, or empty.
        name: model and tag, one of `PAPER_POINTS`; or a network for clips.
        **provenance: also written into the configuration, beside `name`.

    Raises:
        UserError: `output` has something in it, or cannot be written.
    """
    output = Path(os.path.abspath(output))
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(output) as folder:
            save_model(model, folder, stock_name(name.partition('.')[0]), {'model': name, **provenance})
    except OSError as error:
        raise UserError(f'{output}: cannot be written: {error.strerror}') from None


def logit_range(model: nn.Module) -> tuple[float, float]:
    """The smallest and the largest logit for one image or clip of noise, at the image size of `model`.

    Raises:
        UserError: a logit is not finite.
    """
    size = resolve_model_data_config(model)['input_size']
    with torch.inference_mode():
        logits = model.eval()(torch.randn(1, *clip_shape(model, size), generator=torch.Generator().manual_seed(0)))
    if not logits.isfinite().all():
        raise UserError(f'the converted weights give logits that are not finite, for noise of {size[-1]} pixels')
    return logits.min().item(), logits.max().item()


def create_point(name: str) -> nn.Module:
    """The model of one of the paper's points, such as 'resnetrs_101.tf_i160_in1k', with random weights.

    Raises:
        UserError: `name` is not one of `PAPER_POINTS`.
    """
    if name not in PAPER_POINTS:
        raise UserError(f"unknown model and tag '{name}': use one of {', '.join(PAPER_POINTS)}")
    return timm.create_model(name).eval()
