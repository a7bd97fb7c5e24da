"""Tasks with a target for every pixel go through the whole program as classification does."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_trees import save_mask, write_depth, write_voc
from conftest import TINY, failure, load_tool
from forks import check_killed_and_resumed, in_two_processes
from PIL import Image

from timm_rs.programs import train

ARGUMENTS = [*TINY, '--pyramid-channels', '8', '--head-convs', '1', '--scale-jitter', '0.5', '2.0', '--colour', '0.2',
             '--batch-size', '4', '--lr', '0.05', '--model-ema', '--model-ema-decay', '0.5']
HARDER = ['--decoder', 'fused', '--workers', '2', '--amp', '--amp-dtype', 'bfloat16', '--grad-accum-steps', '2',
          '--eval-at', 'network', '--bn-group-size', '2', '--clip-grad', '1', '--drop-path', '0.2']
WRITERS = dict(segmentation=('voc', write_voc), depth=('depth_folders', write_depth))


@pytest.fixture(scope='module', params=WRITERS)
def data(request, tmp_path_factory):
    """The arguments of a task, and of its data: 16 training and 5 validation images."""
    layout, write = WRITERS[request.param]
    root = write(tmp_path_factory.mktemp(request.param) / 'data')
    return ['--task', request.param, '--dataset', layout, '--data-dir', str(root)]


@pytest.fixture(scope='module')
def whole(data):
    """The folder of a finished run of the task that nobody has disturbed."""
    folder = Path(data[-1]).with_name('runs')
    train.main([*ARGUMENTS, *data, '--output', str(folder), '--experiment', 'whole'])
    return folder / 'whole'


def rows_of(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize('more', [[], pytest.param(HARDER, marks=pytest.mark.long)], ids=['plain', 'harder'])
def test_it_is_killed_resumes_to_the_bit_and_evaluates(run, data, whole, more, tmp_path):
    arguments = [*ARGUMENTS, *data, *more, '--output', tmp_path]
    if more:
        assert run(*arguments, '--experiment', 'whole').code == 0
        whole = tmp_path / 'whole'
    check_killed_and_resumed(run, arguments, whole, tmp_path / 'cut')

    evaluated = run(*arguments, '--eval', tmp_path / 'cut/last.pth.tar')
    assert evaluated.code == 0, evaluated.err
    results, last = json.loads((tmp_path / 'cut/last.eval.json').read_text()), rows_of(whole)[-1]
    measured = {name.removeprefix('eval_'): float(value) for name, value in last.items()
                if name.startswith('eval_') and not name.startswith('eval_raw')}
    assert len(measured) > 1 and results['num_samples'] == 5
    assert {name: results[name] for name in measured} == pytest.approx(measured, rel=1e-6)


@pytest.mark.slow
def test_two_processes_count_every_image_once(run, data, tmp_path):
    arguments = [*ARGUMENTS, *data, '--epochs', '1', '--output', tmp_path, '--experiment', 'two']
    assert in_two_processes(arguments) == [0, 0]
    single = run(*ARGUMENTS, *data, '--eval', tmp_path / 'two/last.pth.tar')
    assert single.code == 0, single.err
    results, row = json.loads((tmp_path / 'two/last.eval.json').read_text()), rows_of(tmp_path / 'two')[-1]
    assert results['num_samples'] == 5
    for name in row.keys() - {'epoch', 'train_loss', 'lr'}:
        if not name.startswith('eval_raw'):
            assert results[name.removeprefix('eval_')] == pytest.approx(float(row[name]), rel=1e-5)


def test_a_classifiers_checkpoint_gives_the_backbone(run, data, whole, tiny_run, tmp_path):
    checkpoint, task = tiny_run / 'last.pth.tar', [*ARGUMENTS, *data, '--epochs', '1']
    started = run(*task, '--lr', '0', '--bn-momentum', '0', '--experiment', 'a', '--initial-checkpoint', checkpoint)
    assert started.code == 0, started.err
    assert 'gives the backbone; left out: fc.bias, fc.weight' in started.out
    before = torch.load(checkpoint, weights_only=True)['state_dict_ema']
    after = torch.load(tmp_path / 'runs/a/last.pth.tar', weights_only=True)['state_dict']
    for name, value in before.items():
        if not name.startswith('fc.') and 'num_batches' not in name:
            torch.testing.assert_close(after[f'backbone.{name}'], value)
    again = run(*task, '--initial-checkpoint', whole / 'last.pth.tar')
    assert again.code == 0 and 'left out: head.' in again.out, again.err
    other = run(*task, '--model-kwargs', 'layers=(1,1,1,2)', 'width=0.125', '--initial-checkpoint', checkpoint)
    assert other.code == 2 and 'does not fit this model' in other.err and other.err.count('\n') == 1


def test_bad_annotations_are_named_and_training_goes_on(run, tmp_path):
    root = write_voc(tmp_path / 'voc')
    mask = np.array(Image.open(root / 'SegmentationClass/val_000.png'))
    save_mask(np.rot90(mask), root / 'SegmentationClass/val_000.png')
    save_mask(np.full_like(mask, 77), root / 'SegmentationClass/train_000.png')
    (root / 'SegmentationClass/train_001.png').unlink()
    arguments = [*ARGUMENTS, '--task', 'segmentation', '--data-dir', root, '--epochs', '1']
    result = run(*arguments, '--experiment', 'a')
    assert result.code == 0, result.err
    with open(tmp_path / 'runs/a/bad_samples.csv', newline='') as file:
        reasons = {row['name'].rpartition('/')[2]: row['reason'] for row in csv.DictReader(file)}
    assert reasons.keys() == {'train_000.jpg', 'train_001.jpg', 'val_000.jpg'}
    assert 'label 77, but the classes are 0 to 2' in reasons['train_000.jpg']
    assert 'no such file' in reasons['train_001.jpg'] and 'is one of them turned?' in reasons['val_000.jpg']
    refused = run(*arguments, '--max-bad-samples', '2')
    assert refused.code == 2 and '3 images are bad, more than the 2 allowed' in refused.err


def test_a_run_draws_pictures_and_is_refused_where_classes_of_images_are_wanted(whole, tmp_path, capsys):
    folder, photo = whole, tmp_path / 'photo.png'
    Image.new('RGB', (50, 30), (200, 20, 20)).save(photo)
    load_tool('predict').main([str(folder), str(photo), '--pictures', str(tmp_path / 'drawn')])
    assert capsys.readouterr().out.endswith(f': {tmp_path}/drawn/photo.png\n')
    assert Image.open(tmp_path / 'drawn/photo.png').size == (50, 30)
    words = 'for networks that say something of a whole image'
    for name, argv in (('export', (folder, '--format', 'onnx', '--output', tmp_path / 'a.onnx')),
                       ('push_to_hub', (folder, '--repo-id', 'a/b', '--dry-run')),
                       ('pseudo_label', ('label', photo.parent, tmp_path / 'labels', '--teacher', folder))):
        assert words in failure(load_tool(name), capsys, *argv), name
    assert '--csv is for classes' in failure(load_tool('predict'), capsys, folder, photo, '--csv', tmp_path / 'x.csv')
