"""The official 3D networks in TensorFlow 2's checkpoints, which name variables by their place among Keras' layers.

Official code: tensorflow/models, `official/vision/modeling/backbones/resnet_3d.py` and `layers/nn_blocks_3d.py`.
"""
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

import timm
from torch import nn

from timm_rs.errors import UserError
from timm_rs.models import LAYERS, ResNetRS3d
from timm_rs.models.resnet_rs_3d import FIXED_NAMES

AVERAGED = '/ExponentialMovingAverage'
OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'  # the entry by which such a checkpoint is known
TRAINING_STATE = re.compile(rf'{OBJECT_GRAPH}|(optimizer|global_step|save_counter)/.+')
# As the official trainer saves them, as tf.train.Checkpoint(model=...) does, and as model.save_weights() does.
BACKBONE = re.compile(r'(?:backbone|(?:model/)?layer_with_weights-0)/(layer_with_weights-\d+/.+)')
CLASSIFIER = re.compile(r'(?:model/)?layer_with_weights-1/(kernel|bias)')

# Layers of a block: ours, and the attributes of TensorFlow's.
BLOCK = {
    'downsample.0': '_shortcut_conv', 'downsample.1': '_norm0',
    'conv1': '_temporal_conv', 'bn1': '_norm1', 'conv2': '_spatial_conv', 'bn2': '_norm2',
    'conv3': '_expand_conv', 'bn3': '_norm3', 'gate.fc': '_self_gating/_transformer_w',
    'se.fc1': '_squeeze_excitation/_se_reduce', 'se.fc2': '_squeeze_excitation/_se_expand',
}


def network_entries(keys: Iterable[str]) -> dict[str, str]:
    """Variable of the network -> entry of the checkpoint, without the training state.

    A variable is called 'dense/kernel' or 'layer_with_weights-6/_temporal_conv/kernel', with `AVERAGED` behind it for
    its average, wherever the network was in the checkpoint. What is unknown keeps its name.
    """
    found = {}
    for key in keys:
        variable, _, slot = key.removesuffix('/.ATTRIBUTES/VARIABLE_VALUE').partition('/.OPTIMIZER_SLOT/')
        if TRAINING_STATE.fullmatch(key) or (slot and not slot.endswith('/average')):
            continue
        if match := BACKBONE.fullmatch(variable):
            variable = match[1]
        elif match := CLASSIFIER.fullmatch(variable):
            variable = f'dense/{match[1]}'
        found[variable + AVERAGED if slot else variable] = key
    if any(name.endswith(AVERAGED) for name in found):
        for name in [name for name in found if name.rpartition('/')[2].startswith('moving_')]:
            found.setdefault(name + AVERAGED, found[name])  # trainable_weights_only, evaluated with the last statistics
    return found


def layers_of(model: ResNetRS3d) -> Iterator[tuple[str, str, str]]:
    """The layers that have variables: name in our state dict, kind of layer, name as in `network_entries`."""
    places = (f'layer_with_weights-{number}' for number in count())
    stem = (('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1')) if isinstance(
        model.conv1, nn.Sequential) else (('conv1', 'bn1'),)
    for conv, norm in stem:
        yield conv, 'conv2d', next(places)
        yield norm, 'batch_normalization', next(places)
    for stage in (1, 2, 3, 4):
        for number, _ in enumerate(model.get_submodule(f'layer{stage}').children()):
            place = next(places)
            for ours, theirs in BLOCK.items():
                yield (f'layer{stage}.{number}.{ours}', 'batch_normalization' if 'norm' in theirs else 'conv2d',
                       f'{place}/{theirs}')
    yield 'fc', 'dense', 'dense'


def create_network(name: str, path: str, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Model `name` with random weights, of the classes and with or without the gates that a checkpoint has.

    Args:
        name: of a network for clips of fixed depth, such as 'resnetrs3d_50'.
        path: of the checkpoint.
        shapes: of its variables, by the names of `network_entries`.

    Raises:
        UserError: it holds another network.
    """
    blocks = sum(variable.endswith('/_temporal_conv/kernel') for variable in shapes)
    kind = 'resnetrs3d' if any('/_squeeze_excitation/' in variable for variable in shapes) else 'resnet3d'
    found = next((f'{kind}_{depth}' for depth, layers in LAYERS.items() if sum(layers) == blocks), None)
    if 'dense/bias' not in shapes or found not in FIXED_NAMES:
        raise UserError(f'{path}: holds {blocks} blocks and {"a" if "dense/bias" in shapes else "no"} classifier; only '
                        f'{", ".join(FIXED_NAMES)} with their classifier can be converted')
    if name != found:
        raise UserError(f'{path}: holds a {found}, not a {name}: use --model {found}')
    gated = {'self_gating': True} if any('/_self_gating/' in variable for variable in shapes) else {}
    return timm.create_model(name, num_classes=shapes['dense/bias'][0], **gated).eval()
