"""The official 3D networks, against goldens that TensorFlow made; and against TensorFlow itself, where that is."""
import csv
import lzma
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch
from conftest import EXPECTED, failure, load_tool
from expected.tf2_resnet_rs_3d import (
    CLIPS,
    GOLDEN_LOGITS,
    NETWORKS,
    SLOT,
    VALUE,
    Official,
    clip,
    drawn,
    label,
)

from timm_rs.errors import UserError
from timm_rs.publish.convert import Checkpoint, load_official_weights, variable_names
from timm_rs.publish.convert_3d import AVERAGED, create_network, network_entries

LOGITS = dict(np.load(EXPECTED / 'tf2_logits_3d.npz'))


def listing(network):
    """Entry -> shape of the checkpoint that the official trainer saves of a network."""
    with lzma.open(EXPECTED / 'tf2_variables_3d.csv.xz', 'rt') as file:
        return {row['variable']: tuple(int(size) for size in row['shape'].split('x') if size)
                for row in csv.DictReader(file) if row['network'] == network}


def checkpoint(shapes):
    """As `open_checkpoint` yields it, of entries with these shapes and drawn values."""
    entries = network_entries(shapes)
    return Checkpoint('SRC', {name: shapes[key] for name, key in entries.items()},
                      lambda name: drawn(entries[name], shapes[entries[name]]))


def converted(network, shapes=None, weights=None):
    name, content = NETWORKS[network][0], checkpoint(shapes or listing(network))
    model = create_network(name, 'SRC', content.shapes)
    load_official_weights(model, content, weights)
    return model


def logits_of(model, pixels):
    """Logits for clips in TensorFlow's layout."""
    with torch.inference_mode():
        return model(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)).numpy()


def relative_error(ours, theirs):
    assert np.abs(theirs).max() > 1 and theirs.std() > 0.1  # a signal has come through
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize('network', NETWORKS)
def test_logits_are_those_of_tensorflow(network):
    for weights in ('ema', 'raw'):
        cases = [size for name, size, of in GOLDEN_LOGITS if (name, of) == (network, weights)]
        model = converted(network, weights=weights) if cases else None
        for size in cases:
            error = relative_error(logits_of(model, clip(size)), LOGITS[label(network, size, weights)])
            print(f'{network}, {size}, {weights}: {error:.1e}')
            assert error < 1e-5, size


def test_golden_logits_tell_what_could_be_confused():
    even, odd = CLIPS[0], CLIPS[1]
    for first, second in (('gated', 'rs'), ('rs', 'baseline')):
        assert np.abs(LOGITS[label(first, even, 'ema')] - LOGITS[label(second, even, 'ema')]).max() > 0.1
    assert np.abs(LOGITS[label('gated', odd, 'ema')] - LOGITS[label('gated', odd, 'raw')]).max() > 0.1


@pytest.mark.parametrize('network', NETWORKS)
def test_each_variable_has_one_place_and_no_place_stays_empty(network):
    name, kwargs, _ = NETWORKS[network]
    with torch.device('meta'):
        model = timm.create_model(name, **kwargs)
    names, shapes = variable_names(model), checkpoint(listing(network)).shapes
    assert {key for key in model.state_dict() if not key.endswith('num_batches_tracked')} == names.keys()
    assert sorted([*names.values(), *(name + AVERAGED for name in names.values())]) == sorted(shapes)


def as_saved(layout, shapes):
    """The entries of `shapes` as they would be called in another kind of checkpoint, without averages."""
    prefix = {'tf.train.Checkpoint': 'model/', 'save_weights': ''}[layout]
    return {(key if key.startswith('_') else prefix + key.replace('backbone/', 'layer_with_weights-0/').removeprefix(
        'model/')): shape for key, shape in shapes.items()
            if SLOT not in key and not key.startswith(('global_step', 'save_counter'))}


@pytest.mark.parametrize('layout', ['tf.train.Checkpoint', 'save_weights'])
def test_a_network_is_found_wherever_it_was_in_the_checkpoint(layout):
    trainers = listing('gated')
    saved = as_saved(layout, trainers)
    assert network_entries(saved).keys() == {
        name for name in network_entries(trainers) if not name.endswith(AVERAGED)}
    assert len(set(saved) & set(trainers)) == 1 + 2 * (layout == 'tf.train.Checkpoint')  # the graph, the classifier


def test_without_averaged_statistics_the_last_ones_stand_in():
    trainers = listing('rs')
    partial = {key: shape for key, shape in trainers.items() if not ('moving_' in key and SLOT in key)}
    entries = network_entries(partial)
    assert entries.keys() == network_entries(trainers).keys()
    place = 'layer_with_weights-1/moving_mean'
    assert entries[place + AVERAGED] == entries[place] == f'backbone/{place}{VALUE}'


def altered(network='rs', **changes):
    """The entries of a network with some removed (None) or of another shape."""
    return {key: shape for key, shape in (listing(network) | changes).items() if shape is not None}


KERNEL = f'backbone/layer_with_weights-7/_spatial_conv/kernel{VALUE}'


@pytest.mark.parametrize(('name', 'shapes', 'message'), [
    ('resnetrs3d_50', altered(**{KERNEL: None}), 'SRC: lacks layer_with_weights-7/_spatial_conv/kernel$'),
    ('resnetrs3d_50', altered(**{KERNEL: (3, 3, 3, 64, 64)}), r'\(3, 3, 3, 64, 64\) instead of \(1, 3, 3, 64, 64\)'),
    ('resnetrs3d_50', altered(**{f'other/kernel{VALUE}': (2, 2)}), 'no place for: other/kernel$'),
    ('resnetrs3d_101', altered(), 'SRC: holds a resnetrs3d_50, not a resnetrs3d_101: use --model resnetrs3d_50'),
    ('resnetrs3d_50', altered('baseline'), 'SRC: holds a resnet3d_50, not a resnetrs3d_50: use --model resnet3d_50'),
    ('resnetrs3d_50', {}, 'SRC: holds 0 blocks and no classifier; only resnet3d_50, resnetrs3d_50, '),
    ('resnetrs3d_50', as_saved('save_weights', altered()), 'SRC: has no averaged weights'),
], ids=['lacks', 'shape', 'no place', 'depth', 'kind', 'empty', 'no averages'])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(name, shapes, message):
    content = checkpoint(shapes)
    with pytest.raises(UserError, match=message):
        load_official_weights(create_network(name, 'SRC', content.shapes), content)


def test_a_tag_is_refused_where_there_are_none(tmp_path, capsys):
    tool = load_tool('convert_checkpoint')
    assert 'resnetrs3d_50 has no tags: leave out --tag k400' in failure(
        tool, capsys, '--model', 'resnetrs3d_50', '--tag', 'k400', tmp_path, '--output', tmp_path / 'out')
    assert "unknown model and tag 'resnetrs_50'" in failure(
        tool, capsys, '--model', 'resnetrs_50', tmp_path, '--output', tmp_path / 'out')


# ---- where TensorFlow and its models are ------------------------------------------------------------------------

@pytest.fixture(scope='module', params=NETWORKS)
def official(request):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pytest.importorskip('tensorflow')
        if 'official' not in sys.modules and find_spec('official') is None:
            pytest.skip('tf-models-official is not installed')
        return request.param, Official(request.param)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # TensorFlow's own
def test_the_tool_converts_what_the_official_trainer_saves(official, tmp_path, capsys):
    network, saved = official
    assert saved.shapes == listing(network)
    prefix = saved.save(tmp_path / 'ckpt')
    for weights in ('ema', 'raw'):
        output = tmp_path / weights
        load_tool('convert_checkpoint').main(
            ['--model', NETWORKS[network][0], '--weights', weights, '--output', str(output), '--check', prefix])
        out, err = capsys.readouterr()
        assert f'{NETWORKS[network][0]}, {weights} weights; load them with import timm_rs' in out and err == ''
        assert 'each in its place' in out and 'logits of noise are finite' in out
        model = timm.create_model(f'local-dir:{output}', pretrained=True).eval()
        for size in CLIPS:
            error = relative_error(logits_of(model, clip(size)), saved.run(clip(size), weights))
            print(f'{network}, {size}, {weights}: {error:.1e}')
            assert error < 1e-5, size


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_committed_goldens_are_what_tensorflow_gives(official):
    network, saved = official
    for name, size, weights in GOLDEN_LOGITS:
        if name == network:
            assert relative_error(LOGITS[label(name, size, weights)], saved.run(clip(size), weights)) < 1e-5
