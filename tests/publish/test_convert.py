"""The mapping from TensorFlow's variables, and the tool, without TensorFlow: against goldens that it made."""
import csv
import json
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, failure, load_tool
from expected.tf1_resnet_rs import AVERAGED, GOLDEN_LOGITS, draw, images

from timm_rs.errors import UserError
from timm_rs.models import PAPER_POINTS
from timm_rs.publish.convert import Checkpoint, load_official_weights, open_checkpoint, variable_names

POINT = ['--model', 'resnetrs_50', '--tag', 'tf_i160_in1k']
LOGITS = dict(np.load(ROOT / 'tests/expected/tf1_logits.npz'))


def listing(depth):
    """Name -> shape of every variable in the checkpoint that TensorFlow saves of the released network."""
    with lzma.open(ROOT / 'tests/expected/tf1_variables.csv.xz', 'rt') as file:
        return {row['variable']: tuple(int(size) for size in row['shape'].split('x') if size)
                for row in csv.DictReader(file) if row['depth'] == str(depth)}


def network(depth):
    """The listing without the state of the optimizer."""
    return {name: shape for name, shape in listing(depth).items()
            if name != 'global_step' and not name.endswith('/Momentum')}


def checkpoint(shapes, **options):
    return Checkpoint('SRC', shapes, lambda name: draw(name, shapes[name]), **options)


@pytest.fixture(scope='module')
def rs50():
    return timm.create_model('resnetrs_50').eval()


@pytest.mark.parametrize('depth', [50, 101])
def test_each_variable_of_the_release_has_one_place_and_no_place_stays_empty(depth):
    with torch.device('meta'):
        model = timm.create_model(f'resnetrs_{depth}')
    names, shapes = variable_names(model), network(depth)
    assert sorted(names.values()) == sorted(name for name in shapes if not name.endswith(AVERAGED))
    assert {name + AVERAGED for name in names.values()} == {name for name in shapes if name.endswith(AVERAGED)}
    assert {key for key in model.state_dict() if not key.endswith('num_batches_tracked')} == names.keys()


def test_numbers_follow_the_order_of_construction(rs50):
    names = variable_names(rs50)
    assert names['conv1.0.weight'] == 'conv2d/kernel'
    assert names['maxpool.1.running_var'] == 'batch_normalization_3/moving_variance'
    assert names['layer1.0.downsample.1.weight'] == 'conv2d_4/kernel'  # the shortcut before its block
    assert names['layer1.0.conv1.weight'] == 'conv2d_5/kernel'
    assert names['layer1.0.se.fc1.bias'] == 'conv2d_8/bias'
    assert names['layer1.0.se.fc2.weight'] == 'conv2d_9/kernel'
    assert names['layer1.1.conv1.weight'] == 'conv2d_10/kernel'
    assert names['layer1.1.bn1.weight'] == 'batch_normalization_8/gamma'
    assert names['layer4.2.se.fc2.bias'] == 'conv2d_87/bias'
    assert names['fc.weight'] == 'dense/kernel'


def test_timms_own_architecture_takes_the_same_variables(rs50):
    assert variable_names(timm.create_model('resnetrs50')) == variable_names(rs50)


@pytest.mark.slow
@pytest.mark.parametrize(('depth', 'size', 'weights'), GOLDEN_LOGITS)
def test_logits_are_those_of_tensorflow(depth, size, weights):
    model = timm.create_model(f'resnetrs_{depth}').eval()
    load_official_weights(model, checkpoint(network(depth)), weights)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images(size)).permute(0, 3, 1, 2)).numpy()
    golden = LOGITS[f'{depth}_{size}_{weights}']
    assert np.abs(logits - golden).max() < 1e-5 * np.abs(golden).max()


def test_golden_logits_tell_the_average_from_the_raw_weights():
    assert np.abs(LOGITS['50_75_ema'] - LOGITS['50_75_raw']).max() > 1


def altered(**changes):
    """The variables of depth 50 with some removed (None) or of another shape."""
    return {name: shape for name, shape in (network(50) | changes).items() if shape is not None}


@pytest.mark.parametrize(('shapes', 'message'), [
    (altered(**{'conv2d_7/kernel': None}), r'SRC: lacks conv2d_7/kernel$'),
    (altered(**{f'batch_normalization_5/beta{AVERAGED}': None}), f'lacks batch_normalization_5/beta{AVERAGED}$'),
    (altered(**{'dense_1/bias': (10,)}), 'no place for: dense_1/bias$'),
    (altered(**{'conv2d_5/kernel': (1, 1, 64, 65)}), r'conv2d_5/kernel \(1, 1, 64, 65\) instead of \(1, 1, 64, 64'),
    (altered(**{f'conv2d_8/bias{AVERAGED}': (63,)}), r'conv2d_8/bias.* \(63,\) instead of \(64,\)$'),
    (altered(**{'dense/bias': (1001,)}), 'SRC: has 1001 classes'),
    (network(101), '173 convolutions make it a ResNet-RS-101, and the model has 88: use resnetrs_101'),
    ({'w': (3,)}, r'SRC: lacks batch_normalization/beta, .* and \d+ more$'),
    ({}, 'SRC: lacks'),
])
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_name_of_the_variable(rs50, shapes, message):
    with pytest.raises(UserError, match=message):
        load_official_weights(rs50, checkpoint(shapes))


def test_missing_averages_are_not_replaced_by_raw_weights(rs50):
    raw = {name: shape for name, shape in network(50).items() if not name.endswith(AVERAGED)}
    with pytest.raises(UserError, match='SRC: has no averaged weights'):
        load_official_weights(rs50, checkpoint(raw))


def test_a_keras_file_has_no_choice_of_weights(rs50):
    with pytest.raises(UserError, match="leave out weights='raw'"):
        load_official_weights(rs50, checkpoint({}, is_keras=True), 'raw')


# The tool, with a stand-in for TensorFlow: the averages are 1 / 256 everywhere, the raw weights 0.

@pytest.fixture(scope='module')
def tool():
    return load_tool('convert_checkpoint')


@pytest.fixture
def fake_tensorflow(monkeypatch):
    fake = SimpleNamespace(opened=[], value=1 / 256)

    def load_checkpoint(prefix):
        fake.opened.append(prefix)
        shapes = listing(50)
        return SimpleNamespace(
            get_variable_to_shape_map=lambda: shapes,
            get_tensor=lambda name: np.full(shapes[name], fake.value if AVERAGED in name else 0, np.float32))

    fake.train = SimpleNamespace(load_checkpoint=load_checkpoint)
    monkeypatch.setitem(sys.modules, 'tensorflow', fake)
    return fake


@pytest.fixture
def source(tmp_path):
    """A folder like the published ones: a checkpoint, and no `checkpoint` file that would name it."""
    folder = tmp_path / 'resnet-rs-50-i160'
    folder.mkdir()
    for suffix in ('index', 'data-00000-of-00001', 'meta'):
        (folder / f'model.ckpt.{suffix}').write_text(suffix)
    return folder


def pack(folder, archive, name=None):
    with tarfile.open(archive, 'w:gz') as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, name or file.name)
    return archive


@pytest.mark.slow
def test_the_folder_it_writes_loads_with_timm_alone_and_equals_our_model(tool, fake_tensorflow, source, tmp_path,
                                                                        capsys):
    output = tmp_path / 'new' / 'rs50'
    tool.main([*POINT, str(source), '--output', str(output)])
    assert f'{output}: resnetrs_50.tf_i160_in1k, ema weights' in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ['config.json', 'model.safetensors']
    assert [path.name for path in output.parent.iterdir()] == ['rs50']
    config = json.loads((output / 'config.json').read_text())
    assert config['architecture'] == 'resnetrs50'
    assert config['timm_rs'] == {'model': 'resnetrs_50.tf_i160_in1k', 'weights': 'ema'}

    script = f"""
import sys, timm, torch
model = timm.create_model('local-dir:{output}', pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
assert 'timm_rs' not in sys.modules
assert data['input_size'] == (3, 160, 160) and data['crop_pct'] == 0.875 and data['interpolation'] == 'bicubic'
assert all((value == 1 / 256).all() for key, value in model.state_dict().items() if 'num_batches' not in key)
logits = model(torch.ones(1, 3, 64, 64))
assert logits.isfinite().all() and logits.min() > 1 / 256  # more than the bias
torch.save(logits, sys.argv[1])
"""
    subprocess.run([sys.executable, '-c', script, tmp_path / 'logits.pt'], check=True, cwd=tmp_path)
    ours = timm.create_model('resnetrs_50', pretrained=True,
                             pretrained_cfg_overlay=dict(file=str(output / 'model.safetensors'))).eval()
    with_us = timm.create_model(f'local-dir:{output}', pretrained=True).eval()
    for model in (ours, with_us):
        torch.testing.assert_close(model(torch.ones(1, 3, 64, 64)), torch.load(tmp_path / 'logits.pt'),
                                   rtol=1e-6, atol=0)


def test_folder_prefix_and_archive_lead_to_the_same_checkpoint(fake_tensorflow, source, tmp_path):
    flat = pack(source, tmp_path / 'flat.tar.gz')
    with tarfile.open(tmp_path / 'nested.tar.gz', 'w:gz') as tar:
        tar.add(source, source.name)
    for path in (source, source / 'model.ckpt', flat, tmp_path / 'nested.tar.gz'):
        with open_checkpoint(path) as opened:
            prefix = Path(fake_tensorflow.opened[-1])
            assert prefix.with_name('model.ckpt.index').is_file() and prefix.name == 'model.ckpt'
            assert opened.path == str(path)
            assert opened.shapes == network(50)
    assert not prefix.parent.exists()  # what was unpacked is gone again


def test_raw_weights_and_statistics_on_demand(tool, fake_tensorflow, source, tmp_path, capsys):
    output = tmp_path / 'rs50'
    tool.main([*POINT, str(source), '--output', str(output), '--weights', 'raw', '--check'])
    out = capsys.readouterr().out
    assert '35.692 M parameters' in out and '692 variables in the file' in out
    assert 'averaged and raw weights differ by at most 0.00391\n' in out
    assert 'logits of noise are finite' in out
    assert json.loads((output / 'config.json').read_text())['timm_rs']['weights'] == 'raw'
    with_raw = timm.create_model(f'local-dir:{output}', pretrained=True)
    assert (with_raw.fc.weight == 0).all()


def test_weights_that_are_not_finite_fail_the_check(tool, fake_tensorflow, source, tmp_path, capsys):
    fake_tensorflow.value = float('nan')
    with pytest.raises(SystemExit, match='2'):
        tool.main([*POINT, str(source), '--output', str(tmp_path / 'rs50'), '--check'])
    assert capsys.readouterr().err.count('\n') == 1
    assert not (tmp_path / 'rs50').exists()


def test_without_tensorflow_one_line_says_what_to_install(tool, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    monkeypatch.setitem(sys.modules, 'h5py', None)
    keras = tmp_path / 'rs50.h5'
    keras.write_bytes(b'')
    for path in (source, keras):
        message = failure(tool, capsys, *POINT, path, '--output', tmp_path / 'out')
        assert str(path) in message and 'pip install -e ".[convert]"' in message


def test_what_is_no_checkpoint_is_named(tool, fake_tensorflow, source, tmp_path, capsys):
    (tmp_path / 'page.tar.gz').write_text('<html>Not found</html>')
    for path in (tmp_path / 'nowhere', tmp_path / 'page.tar.gz', source / 'model.ckpt.meta'):
        message = failure(tool, capsys, *POINT, path, '--output', tmp_path / 'out')
        assert f'{path}: is neither the folder nor the prefix' in message
    (tmp_path / 'empty').mkdir()
    message = failure(tool, capsys, *POINT, tmp_path / 'empty', '--output', tmp_path / 'out')
    assert 'should have one TensorFlow checkpoint (*.index), and has none' in message
    (source / 'model.ckpt-9.index').touch()
    message = failure(tool, capsys, *POINT, source, '--output', tmp_path / 'out')
    assert 'has 2 (model.ckpt, model.ckpt-9): give the path of one' in message


def test_an_archive_that_reaches_outside_of_itself_is_refused(tool, fake_tensorflow, source, tmp_path, capsys):
    for name in ('../evil.index', f'{"../" * 20}{tmp_path}/evil.index'.replace('//', '/')):
        archive = pack(source, tmp_path / 'evil.tar.gz', name)
        message = failure(tool, capsys, *POINT, archive, '--output', tmp_path / 'out')
        assert f'{archive}: cannot be read' in message and 'outside the destination' in message
    assert not list(tmp_path.parent.rglob('evil.index'))
    assert fake_tensorflow.opened == []


def test_a_truncated_archive_is_an_error(tool, fake_tensorflow, source, tmp_path, capsys):
    noise = np.random.default_rng(0).bytes(100_000)
    (source / 'model.ckpt.data-00000-of-00001').write_bytes(noise)
    archive = pack(source, tmp_path / 'cut.tar.gz')
    archive.write_bytes(archive.read_bytes()[:50_000])
    assert f'{archive}: cannot be read' in failure(tool, capsys, *POINT, archive, '--output', tmp_path / 'out')


def test_a_read_error_in_the_middle_is_one_line_too(tool, fake_tensorflow, source, tmp_path, capsys, monkeypatch):
    def cut(prefix):
        def get_tensor(name):
            raise IndexError('the data file ends here')  # as TensorFlow 2.15 does
        return SimpleNamespace(get_variable_to_shape_map=lambda: listing(50), get_tensor=get_tensor)
    monkeypatch.setattr(fake_tensorflow.train, 'load_checkpoint', cut)
    assert 'the data file ends here' in failure(tool, capsys, *POINT, source, '--output', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_output_that_is_there_already_is_left_alone(tool, fake_tensorflow, source, tmp_path, capsys):
    output = tmp_path / 'rs50'
    output.mkdir()
    (output / 'notes.txt').write_text('mine')
    assert 'not an empty folder' in failure(tool, capsys, *POINT, source, '--output', output)
    assert 'not an empty folder' in failure(tool, capsys, *POINT, source, '--output', output / 'notes.txt')
    assert 'cannot be written' in failure(tool, capsys, *POINT, source, '--output', output / 'notes.txt' / 'new')
    assert [path.read_text() for path in output.iterdir()] == ['mine']


def test_an_unknown_model_or_tag_lists_the_known_ones(tool, source, tmp_path, capsys):
    message = failure(tool, capsys, '--model', 'resnetrs_50', '--tag', 'i224', source, '--output', tmp_path / 'out')
    assert "'resnetrs_50.i224'" in message
    assert all(point in message for point in PAPER_POINTS if point.startswith('resnetrs_'))
    assert 'efficientnet' not in message


def test_help_has_an_example_and_needs_no_tensorflow():
    shown = subprocess.run([sys.executable, ROOT / 'tools/convert_checkpoint.py', '--help'], check=True,
                           capture_output=True, text=True).stdout
    assert 'example:' in shown and '--tag tf_i160_in1k' in shown
