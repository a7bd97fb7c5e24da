"""Tasks with a target for every pixel go through the whole program as classification does."""

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from annotated_trees import save_mask, write_depth, write_voc
from conftest import ROOT, TINY, assert_equal, failure, load_tool
from PIL import Image

ARGUMENTS = [*TINY, '--pyramid-channels', '8', '--head-convs', '1', '--scale-jitter', '0.5', '2.0', '--colour', '0.2',
             '--batch-size', '4', '--lr', '0.05', '--recovery-interval', '1', '--model-ema', '--model-ema-decay', '0.5']
HARDER = ['--decoder', 'fused', '--workers', '2', '--amp', '--amp-dtype', 'bfloat16', '--grad-accum-steps', '2',
          '--eval-at', 'network', '--bn-group-size', '2', '--clip-grad', '1', '--drop-path', '0.2']
DYING = '''
import os, signal, sys
from timm_rs.programs import train
genuine = train.train_updates
def dying(training, loader, device, position, progress):
    for reported in genuine(training, loader, device, position, progress):
        yield reported
        if position.epoch == 1 and position.images == 8:
            os.kill(os.getpid(), signal.SIGKILL)
train.train_updates = dying
train.main(sys.argv[1:])
'''
WRITERS = dict(segmentation=('voc', write_voc), depth=('depth_folders', write_depth))


@pytest.fixture(params=WRITERS)
def task(request, tmp_path):
    """The arguments of a task, and of its data: 16 training and 5 validation images."""
    layout, write = WRITERS[request.param]
    return ['--task', request.param, '--dataset', layout, '--data-dir', str(write(tmp_path / 'data'))]


def rows_of(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize('more', [[], HARDER], ids=['plain', 'harder'])
def test_it_trains_is_killed_resumes_to_the_bit_and_evaluates(run, task, more, tmp_path):
    folder, arguments = tmp_path / 'runs', [*ARGUMENTS, *task, *more]
    whole = run(*arguments, '--experiment', 'whole')
    assert whole.code == 0, whole.err
    killed = subprocess.run([sys.executable, '-c', DYING, *arguments, '--output', folder, '--experiment', 'cut'],
                            cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert killed.returncode == -signal.SIGKILL
    torch.manual_seed(1)
    resumed = run(*arguments, '--experiment', 'cut', '--resume', 'auto')
    assert resumed.code == 0 and 'recovery-1-' in resumed.out, resumed.err
    states = [torch.load(folder / name / 'last.pth.tar', weights_only=True) for name in ('whole', 'cut')]
    for state in states:
        del state['args']
    assert_equal(*states)
    assert (folder / 'whole/summary.csv').read_bytes() == (folder / 'cut/summary.csv').read_bytes()

    evaluated = run(*arguments, '--eval', folder / 'whole/last.pth.tar')
    assert evaluated.code == 0, evaluated.err
    results, last = json.loads((folder / 'whole/last.eval.json').read_text()), rows_of(folder / 'whole')[-1]
    measured = {name.removeprefix('eval_'): float(value) for name, value in last.items()
                if name.startswith('eval_') and not name.startswith('eval_raw')}
    assert len(measured) > 1 and results['num_samples'] == 5
    assert {name: results[name] for name in measured} == pytest.approx(measured, rel=1e-6)


@pytest.mark.slow
def test_two_processes_count_every_image_once(run, task, tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
               str(ROOT / 'train.py'), *ARGUMENTS, *task, '--epochs', '1', '--experiment', 'two']
    result = subprocess.run([*command, '--output', str(tmp_path / 'runs')], capture_output=True, text=True,
                            env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert result.returncode == 0, result.stderr
    single = run(*ARGUMENTS, *task, '--eval', tmp_path / 'runs/two/last.pth.tar')
    assert single.code == 0, single.err
    results, row = json.loads((tmp_path / 'runs/two/last.eval.json').read_text()), rows_of(tmp_path / 'runs/two')[-1]
    assert results['num_samples'] == 5
    for name in row.keys() - {'epoch', 'train_loss', 'lr'}:
        if not name.startswith('eval_raw'):
            assert results[name.removeprefix('eval_')] == pytest.approx(float(row[name]), rel=1e-5)


def test_a_classifiers_checkpoint_gives_the_backbone(run, task, tiny_run, tmp_path):
    checkpoint = tiny_run / 'last.pth.tar'
    started = run(*ARGUMENTS, *task, '--epochs', '1', '--lr', '0', '--bn-momentum', '0', '--experiment', 'a',
                  '--initial-checkpoint', checkpoint)
    assert started.code == 0, started.err
    assert 'gives the backbone; left out: fc.bias, fc.weight' in started.out
    before = torch.load(checkpoint, weights_only=True)['state_dict_ema']
    after = torch.load(tmp_path / 'runs/a/last.pth.tar', weights_only=True)['state_dict']
    for name, value in before.items():
        if not name.startswith('fc.') and 'num_batches' not in name:
            torch.testing.assert_close(after[f'backbone.{name}'], value)
    again = run(*ARGUMENTS, *task, '--epochs', '1', '--initial-checkpoint', tmp_path / 'runs/a/last.pth.tar')
    assert again.code == 0 and 'left out: head.' in again.out, again.err
    other = run(*ARGUMENTS, *task, '--model-kwargs', 'layers=(1,1,1,2)', 'width=0.125', '--initial-checkpoint',
                checkpoint)
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


def test_a_run_draws_pictures_and_is_refused_where_classes_of_images_are_wanted(run, task, tmp_path, capsys):
    assert run(*ARGUMENTS, *task, '--epochs', '1', '--experiment', 'a').code == 0
    folder, photo = tmp_path / 'runs/a', tmp_path / 'photo.png'
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
