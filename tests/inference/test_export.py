"""Exported files: what is in them, what they compute, and what happens when they cannot be made."""
import pytest
import timm
import torch

import timm_rs.inference.export
from timm_rs.containers.programs import load_onnx
from timm_rs.errors import UserError
from timm_rs.inference.export import Exported, as_source, compare_outputs, export_model, open_export
from timm_rs.inference.source import Source, open_model
from timm_rs.transforms.create import create_transform

FILES = {'torch_export': 'model.pt2', 'onnx': 'model.onnx', 'openvino': 'model.xml'}


@pytest.fixture(scope='module')
def source():
    torch.manual_seed(0)
    source = open_model('resnetrs', num_classes=5, img_size=32, model_kwargs=dict(
        layers=(1, 1, 1, 1), width=0.125, weight_init='timm'))
    for module in source.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
    source.class_names = list('abcde')
    return source


def noise(count):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('format', FILES)
def test_a_file_computes_what_the_model_does_and_says_what_it_is(format, source, tmp_path):
    path = tmp_path / FILES[format]
    metadata, agreement = export_model(source, path, format, check_images=noise(5))
    assert agreement.error <= 1e-4
    assert (agreement.top1, agreement.images) == (1, 5)
    exported = open_export(path)
    assert exported.metadata == metadata
    assert metadata['input']['shape'] == ['batch', 3, 32, 32]
    assert (metadata['folded_batch_norms'], metadata['class_names']) == (20, list('abcde'))
    assert metadata['data_config']['mean'] == list(source.data_config['mean'])
    assert metadata['versions']['torch'] == torch.__version__
    assert compare_outputs(source.model, exported.run, noise(7)).error <= 1e-4  # any number of images
    if format == 'onnx':
        graph = load_onnx(path).graph
        assert [value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)] == [
            'batch', 'batch']
    beside = {'model.bin'} if format == 'openvino' else set()
    assert {file.name for file in tmp_path.iterdir()} == {path.name} | beside
    again = as_source(path, exported)
    assert (again.class_names, again.data_config['input_size']) == (list('abcde'), [3, 32, 32])


@pytest.mark.parametrize(('format', 'batch_size'), [('torch_export', None), ('onnx', None), ('openvino', 1)])
def test_a_network_for_clips_is_a_file_of_its_frames(format, batch_size, tmp_path):
    path, clips = tmp_path / FILES[format], torch.randn(3, 3, 5, 33, 32)
    source = open_model('resnetrs3d', num_classes=5, model_kwargs=dict(
        layers=(1, 1, 1, 1), width=0.125, num_frames=5, self_gating=True))
    source.data_config['input_size'] = (3, 33, 32)
    metadata, agreement = export_model(source, path, format, batch_size=batch_size, check_images=clips)
    assert agreement.error <= 1e-4 and metadata['folded_batch_norms'] == 19
    assert metadata['input']['shape'] == [batch_size or 'batch', 3, 5, 33, 32]
    again = as_source(path, open_export(path))
    for loads in (source, again):  # tools/predict.py and all else that has images only
        with pytest.raises(UserError, match='takes clips of 5 frames, and here are images'):
            create_transform(loads.recipe, loads.data_config, is_training=False)


@pytest.mark.parametrize(('format', 'precision'), [
    ('torch_export', 'bf16'), ('openvino', 'bf16'), ('openvino', 'int8')])
def test_lower_precision_is_smaller_and_near(format, precision, source, tmp_path):
    path = tmp_path / FILES[format]
    metadata, agreement = export_model(
        source, path, format, precision, calibration=noise(8), check_images=noise(16))
    assert metadata['precision'] == precision
    assert 1e-6 < agreement.error < 0.3  # not in float32 after all
    assert agreement.top1 > 0.5
    assert 'same top-1 in' in str(agreement)


def test_one_batch_size_and_batch_norm_can_be_kept(source, tmp_path):
    path = tmp_path / 'model.pt2'
    metadata, agreement = export_model(source, path, 'torch_export', fold=False, batch_size=3, check_images=noise(8))
    assert (metadata['folded_batch_norms'], metadata['input']['shape'], agreement.images) == (0, [3, 3, 32, 32], 6)


def test_a_file_that_computes_something_else_is_not_written(source, tmp_path, monkeypatch):
    path = tmp_path / 'model.pt2'
    path.write_text('the one before')

    def spoil(model):
        other = timm.create_model('resnetrs', layers=(1, 1, 1, 1), width=0.125, num_classes=5, weight_init='timm')
        return other.eval(), 0
    monkeypatch.setattr(timm_rs.inference.export, 'fold_batch_norm', spoil)
    with pytest.raises(UserError, match='model.pt2 is not written: it would not compute what resnetrs does'):
        export_model(source, path, 'torch_export', check_images=noise(4))
    assert path.read_text() == 'the one before'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_the_file_of_before(source, tmp_path, monkeypatch):
    path = tmp_path / 'model.pt2'
    path.write_text('the one before')

    def full(*arguments, **options):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch.export, 'save', full)
    with pytest.raises(UserError, match='model.pt2 cannot be written: No space left on device'):
        export_model(source, path, 'torch_export')
    assert [file.read_text() for file in tmp_path.iterdir()] == ['the one before']


class Branches(torch.nn.Module):
    num_classes = 5

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_torch_cannot_follow_is_named(source, tmp_path):
    odd = Source('odd', Branches(), source.recipe, source.data_config, None)
    with pytest.raises(UserError, match='Branches cannot be exported by torch.export'):
        export_model(odd, tmp_path / 'model.pt2', 'torch_export', fold=False)


@pytest.mark.parametrize('name', ['model.pt2', 'model.onnx', 'model.xml'])
def test_damaged_files_are_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b'nonsense')
    with pytest.raises(UserError, match=f'{name} cannot be read, or was not made by tools/export.py'):
        open_export(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match='is no export: those end with .pt2, .onnx, .xml'):
        open_export(tmp_path / 'model.pth')
    with pytest.raises(UserError, match='does not exist'):
        open_export(tmp_path / 'model.onnx')


@pytest.mark.parametrize('changes', [
    dict(preprocessing='x'), dict(input_img_mode=3), dict(class_names=[1]), dict(data_config=None),
    dict(data_config=dict(input_size=[3, 1 << 40, 32])), dict(data_config=dict(input_size=[3, 32, 32], mean='x'))])
def test_what_a_file_says_of_itself_must_be_possible(changes, tmp_path):
    metadata = dict(model='x', preprocessing='timm', input_img_mode=None, class_names=None, data_config=dict(
        input_size=[3, 32, 32], mean=[0.5], std=[0.5], interpolation='bicubic', crop_pct=1.0, crop_mode='center'))
    path = tmp_path / 'a.pt2'
    assert as_source(path, Exported(metadata, None)).recipe.in_chans == 3
    with pytest.raises(UserError, match='a.pt2'):
        as_source(path, Exported(metadata | changes, None))
