"""Labels stay with their names: from training to evaluation, to going on, to prediction; and every image is counted."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from conftest import ROOT, load_tool, write_images

from timm_rs.data.class_names import FILE
from timm_rs.errors import exit_on_user_error
from timm_rs.programs import train

# Learns coloured classes in two seconds.
LEARNS = ['--model', 'test_vit', '--img-size', '32', '-b', '4', '-j', '0', '--epochs', '2', '--warmup-epochs', '0',
          '--device', 'cpu', '--lr', '0.002', '--opt', 'adamw', '--hflip', '0', '--scale', '0.8', '1']
NAMES = ('A', 'a', 'fox')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Data of three classes, red, green and blue, and the folder of a run that knows them."""
    folder = tmp_path_factory.mktemp('identity')
    for split, count in (('train', 12), ('validation', 4)):
        write_images(folder / 'D' / split, dict.fromkeys(NAMES, count), size=32, seed=count)
    train.main([*LEARNS, '--data-dir', str(folder / 'D'), '--output', str(folder), '--experiment', 'run'])
    return folder / 'D', folder / 'run'


@pytest.fixture
def data(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / 'D')


def evaluated(run, data, checkpoint, *arguments):
    """Top-1 of the checkpoint on the data, or the line that refuses it."""
    with suppress(FileNotFoundError):
        checkpoint.with_name('model_best.eval.json').unlink()
    result = run(*LEARNS, '--data-dir', data, '--eval', checkpoint, *arguments)
    assert result.code in (0, 2) and (result.code == 0 or result.err.count('\n') == 1), result.err
    return result.err or json.loads(checkpoint.with_name('model_best.eval.json').read_text())['top1']


def packed(data, folder):
    load_tool('pack_dataset').main([str(data), str(folder), '--shards', '1', '--workers', '0'])
    return folder


def test_it_has_learned_and_a_part_of_the_classes_is_mapped_by_name(run, trained, data, tmp_path):
    best = trained[1] / 'model_best.pth.tar'
    assert evaluated(run, trained[0], best) == 100
    shutil.rmtree(data / 'train')
    shutil.rmtree(data / 'validation/A')
    assert evaluated(run, data, best) == 100
    assert evaluated(run, packed(data, tmp_path / 'packed'), best, '--val-split', 'validation') == 100


@pytest.mark.parametrize('name', ['wolf', 'Fox'])
def test_other_classes_are_refused_by_name(run, trained, data, name):
    for split in ('train', 'validation'):
        (data / split / 'fox').rename(data / split / name)
    assert f'validation has classes that {trained[1]}/model_best.pth.tar lacks: {name}; it has A, a, fox' in evaluated(
        run, data, trained[1] / 'model_best.pth.tar')


def test_the_classes_of_a_checkpoint_without_them_are_those_of_the_file_beside_it(run, trained, data, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / 'run')
    for path in folder.glob('*.sha256'):
        path.unlink()
    best = folder / 'model_best.pth.tar'
    content = torch.load(best, weights_only=True)
    del content['data']
    torch.save(content, best)
    (data / 'validation/fox').rename(data / 'validation/wolf')
    assert 'lacks: wolf' in evaluated(run, data, best)
    (folder / FILE).unlink()
    assert evaluated(run, trained[0], best) == 100


def resumed(run, data, folder, *arguments):
    return run(*LEARNS, '--data-dir', data, '--output', folder.parent, '--experiment', folder.name, '--resume', 'auto',
               '--epochs', '3', '--allow-recipe-change', *arguments)


def test_going_on_with_other_classes_is_refused_whatever_is_allowed(run, trained, data, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / 'run')
    for split in ('train', 'validation'):
        (data / split / 'A').rename(data / split / 'zebra')
    result = resumed(run, data, folder)
    assert result.code == 2 and 'the data lacks A and has also zebra' in result.err
    assert (folder / FILE).read_text() == 'A\na\nfox\n'


@pytest.mark.parametrize('change', ['more', 'fewer', 'renamed'])
def test_going_on_with_other_images_is_refused_like_a_changed_recipe(run, trained, data, tmp_path, change):
    folder = shutil.copytree(trained[1], tmp_path / 'run')
    image = data / 'train/fox/0.png'
    {'more': lambda: shutil.copy(image, image.with_name('new.png')), 'fewer': image.unlink,
     'renamed': lambda: image.rename(image.with_name('new.png'))}[change]()
    result = resumed(run, data, folder, '--no-allow-recipe-change')
    assert result.code == 2 and 'the recipe is not that of' in result.err
    assert {'more': 'images 36 -> 37', 'fewer': 'images 36 -> 35', 'renamed': 'with other names'}[change] in result.err
    result = resumed(run, data, folder)
    assert result.code == 0, result.err


def test_packing_the_same_images_is_no_change(run, trained, data, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / 'run')
    result = run(*LEARNS, '--data-dir', packed(data, tmp_path / 'packed'), '--output', tmp_path, '--experiment', 'run',
                 '--resume', 'auto')
    assert result.code == 0 and 'nothing left to train' in result.out, result.err
    assert folder.exists()


def test_weights_to_start_from_keep_their_classes(run, trained, data, tmp_path):
    best = trained[1] / 'model_best.pth.tar'
    for split in ('train', 'validation'):
        shutil.rmtree(data / split / 'A')
    start = [*LEARNS, '--lr', '0', '--epochs', '1', '--data-dir', data, '--initial-checkpoint', best]
    result = run(*start, '--experiment', 'some')
    assert result.code == 0 and 'eval_top1 100' in result.out, result.out
    assert (tmp_path / 'runs/some' / FILE).read_text() == 'A\na\nfox\n'
    (data / 'train/fox').rename(data / 'train/wolf')
    result = run(*start)
    assert result.code == 2 and 'lacks: wolf' in result.err and '--pretrained-path' in result.err


def test_names_beside_a_checkpoint_that_are_not_its_own_are_refused(trained, data, tmp_path, capsys):
    folder = shutil.copytree(trained[1], tmp_path / 'run')
    predict = load_tool('predict')
    predict.main([str(folder), str(data / 'validation/fox/0.png'), '--top-k', '1'])
    assert ': fox ' in capsys.readouterr().out
    (folder / FILE).write_text('fox\na\nA\n')
    with pytest.raises(SystemExit, match='2'):
        predict.main([str(folder), str(data / 'validation/fox/0.png')])
    err = capsys.readouterr().err
    assert f'{FILE} is not of model_best.pth.tar: class 0 is fox there and A in the checkpoint' in err


@pytest.mark.long
def test_two_ranks_and_another_hash_seed_agree(trained, tmp_path):
    environment = os.environ | dict(PYTHONPATH=str(ROOT), PYTHONHASHSEED='3')
    arguments = [*LEARNS, '--data-dir', trained[0], '--output', tmp_path]
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
                    ROOT / 'train.py', *arguments, '--experiment', 'two'], check=True, env=environment)
    best = tmp_path / 'two/model_best.pth.tar'
    subprocess.run([sys.executable, ROOT / 'train.py', *arguments, '--eval', best], check=True,
                   env=environment | dict(PYTHONHASHSEED='4'))
    assert json.loads(best.with_name('model_best.eval.json').read_text())['top1'] == 100


def test_what_is_left_out_is_said_once_and_listed(run, data, tmp_path, capsys):
    for split in ('train', 'validation'):
        (data / split / 'fox/notes.txt').write_text('x')
        (data / split / '.ipynb_checkpoints').mkdir()
        shutil.copy(data / split / 'fox/0.png', data / split / '.ipynb_checkpoints/0.png')
    lines = ['left out of the training data: 1 hidden, or of a system or tool; 1 not an image, by its suffix (.txt)',
             'left out of the validation data: 1 hidden, or of a system or tool; 1 not an image, by its suffix (.txt)']
    arguments = [*LEARNS, '--epochs', '1', '--data-dir', data, '--experiment', 'a', '--max-bad-samples', '0']
    result = run(*arguments)
    assert result.code == 0 and all(result.out.count(line) == 1 for line in lines), result.err
    listed = (tmp_path / 'runs/a/bad_samples.csv').read_text()
    assert listed.count('notes.txt,"not an image, by its suffix"') == 2 and listed.count('.ipynb_checkpoints') == 2
    assert run(*arguments, '--resume', 'auto').code == 0 and (tmp_path / 'runs/a/bad_samples.csv').read_text() == listed
    evaluation = run(*LEARNS, '--data-dir', data, '--eval', tmp_path / 'runs/a/model_best.pth.tar')
    assert lines[1] in evaluation.out and lines[0] not in evaluation.out
    with exit_on_user_error():
        load_tool('scan_dataset').main([str(data), '--workers', '0', '--output', str(tmp_path / 'scan.csv')])
    assert 'left out of train: 1 hidden' in capsys.readouterr().out
    assert (tmp_path / 'scan.csv').read_text() == listed
    packed(data, tmp_path / 'packed')
    assert 'train: left out: 1 hidden' in capsys.readouterr().out
    load_tool('predict').main([str(tmp_path / 'runs/a'), str(data / 'train')])
    out, err = capsys.readouterr()
    assert out.count('\n') == 36 and 'left out of' in err


def test_shards_without_names_have_as_many_classes_as_labels(run, data, tmp_path):
    folder = packed(data, tmp_path / 'packed')
    for path in folder.glob('*-manifest.json'):
        path.unlink()
    for path in folder.glob('.index*'):
        path.unlink()
    result = run(*LEARNS, '--epochs', '1', '--dataset', 'wds/packed', '--data-dir', folder)
    assert result.code == 0 and ' 3 classes, 36 training images' in result.out, result.err
