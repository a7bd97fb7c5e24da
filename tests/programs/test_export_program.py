import pytest
import torch
from conftest import failure, load_tool, write_images

from timm_rs.inference.export import open_export


@pytest.fixture(scope='module')
def export():
    return load_tool('export')


def test_a_run_becomes_an_int8_file_calibrated_on_images(export, tiny_run, tmp_path, capsys):
    write_images(tmp_path / 'photos', dict(cat=6, dog=6))
    (tmp_path / 'photos/broken.jpg').write_bytes(b'')
    output = tmp_path / 'tiny.onnx'
    export.main([str(tiny_run), '--format', 'onnx', '--precision', 'int8', '--calibration', str(tmp_path / 'photos'),
                 '--output', str(output)])
    out, err = capsys.readouterr()
    assert 'broken.jpg: empty file' in err
    assert 'in int8, 20 batch norms folded' in out
    assert 'against torch on images: largest difference' in out and 'same top-1 in' in out
    metadata = open_export(output).metadata
    assert metadata['calibration'] == '6 images'
    assert metadata['class_names']


def test_int8_without_images_says_that_it_is_useless_for_predictions(export, tmp_path, capsys):
    export.main(['resnetrs', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--img-size', '32', '--num-classes',
                 '5', '--format', 'onnx', '--precision', 'int8', '--no-check', '--output', str(tmp_path / 'tiny.onnx')])
    out, err = capsys.readouterr()
    assert 'useless for predictions' in err
    assert 'against torch' not in out
    assert open_export(tmp_path / 'tiny.onnx').metadata['calibration'] == '32 images of noise'


@pytest.mark.parametrize(('arguments', 'words'), [
    (['resnetrs_51'], 'unknown model resnetrs_51'),
    (['runs/none.pth.tar'], 'runs/none.pth.tar does not exist'),
    (['test_resnet', '--format', 'onnx', '--precision', 'bf16'], 'ONNX Runtime has no bf16 convolutions on the CPU'),
    (['test_resnet', '--format', 'torch_export', '--precision', 'int8'], 'torch.export has no int8'),
    (['test_resnet', '--output', 'model.onnx'], '--output model.onnx: files of --format torch_export end with .pt2'),
    (['test_resnet', '--output', 'none/model.pt2'], 'there is no folder none'),
    (['test_resnet', '--batch-size', '0'], '--batch-size 0: give at least 1'),
    (['test_resnet', '--weights', 'raw'], 'leave out --weights'),
    (['test_resnet', '--calibration', '.'], 'no images in the folder'),
])
def test_what_cannot_be_exported_is_one_line(export, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    format = 'torch_export' if '--format' not in arguments else arguments[arguments.index('--format') + 1]
    output = 'model.onnx' if format == 'onnx' else 'model.pt2'
    assert words in failure(export, capsys, '--format', format, '--output', output, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_of_torch_export_takes_and_gives_float32(export, tiny_run, tmp_path):
    export.main([str(tiny_run), '--format', 'torch_export', '--precision', 'bf16', '--output', str(tmp_path / 'm.pt2')])
    exported = open_export(tmp_path / 'm.pt2')
    assert exported.run(torch.randn(3, *exported.metadata['input']['shape'][1:])).dtype == torch.float32
