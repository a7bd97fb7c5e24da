"""train.py from end to end, on small real files."""

import csv
import datetime
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import ROOT, TINY, assert_equal, write_images
from forks import TRAIN, ForkedPython
from PIL import Image
from timm.models import load_checkpoint

import timm_rs.device.torch_device
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.training import runlog


def read_summary(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


def load(path):
    return torch.load(path, weights_only=True)


def equal(first, second):
    """Bit-for-bit equality of nested dicts and lists of tensors and plain values."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def test_training_leaves_a_run_in_timms_layout(run, image_folder, tmp_path):
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--model-ema', '--checkpoint-hist', 1,
                 '--lr', 0.01, '--epochs', 3)
    assert result.code == 0, result.err
    folder = tmp_path / 'runs/a'
    rows = read_summary(folder)
    assert [row['epoch'] for row in rows] == ['0', '1', '2']
    assert list(rows[0])[:6] == ['epoch', 'train_loss', 'train_top1', 'eval_loss', 'eval_top1', 'eval_raw_loss']
    assert list(rows[0])[-1] == 'lr'
    best = max(rows, key=lambda row: (float(row['eval_top1']), -int(row['epoch'])))
    checkpoints = ['last.pth.tar', 'model_best.pth.tar', f'checkpoint-{best["epoch"]}.pth.tar']
    files = {path.name for path in folder.iterdir()} - {'mistakes.png'}
    assert files == {'args.yaml', 'class_names.txt', 'summary.csv', 'curves.png', 'samples.png', 'predictions.csv',
                     'classes.csv', 'confusion.png', *checkpoints,
                     *(f'{name}.sha256' for name in checkpoints)}
    assert Image.open(folder / 'curves.png').size > (600, 200)
    last = load(folder / 'last.pth.tar')
    assert {'epoch', 'arch', 'state_dict', 'state_dict_ema', 'optimizer', 'version', 'args', 'metric'} <= last.keys()
    assert (last['epoch'], last['arch'], last['version'], last['args']['epochs']) == (2, 'resnetrs', 2, 3)
    assert load(folder / 'model_best.pth.tar')['epoch'] == int(best['epoch'])
    assert yaml.safe_load((folder / 'args.yaml').read_text())['num_classes'] == 3
    assert Recipe(**read_file(folder / 'args.yaml')).lr == 0.01


def test_timm_loads_the_checkpoint_with_and_without_the_average(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--model-ema', '--model-ema-warmup').code == 0
    path = tmp_path / 'runs/a/last.pth.tar'
    model = timm.create_model('resnetrs', layers=(1, 1, 1, 1), width=0.125, num_classes=3)
    for use_ema, key in ((True, 'state_dict_ema'), (False, 'state_dict')):
        load_checkpoint(model, str(path), use_ema=use_ema)
        assert equal(dict(model.state_dict()), dict(load(path)[key]))
    assert not equal(load(path)['state_dict'], load(path)['state_dict_ema'])


def test_eval_repeats_the_validation_of_training_and_writes_json(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--model-ema', '--epochs', 1).code == 0
    folder = tmp_path / 'runs/a'
    result = run(*TINY, '--data-dir', image_folder, '--eval', folder / 'last.pth.tar')
    assert result.code == 0, result.err
    written = json.loads((folder / 'last.eval.json').read_text())
    row = read_summary(folder)[0]
    assert written['top1'] == float(row['eval_top1'])
    assert written['loss'] == pytest.approx(float(row['eval_loss']), rel=1e-6)
    assert (written['weights'], written['num_samples'], written['img_size']) == ('ema', 15, 32)
    assert f'top-1 {written["top1"]:.3f} %' in result.out


def test_eval_needs_no_training_images(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    shutil.rmtree(image_folder / 'train')
    result = run(*TINY, '--data-dir', image_folder, '--eval', tmp_path / 'runs/a/last.pth.tar')
    assert result.code == 0, result.err


def test_resume_equals_an_uninterrupted_run(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--model-ema', '--drop', 0.2, '--drop-path', 0.1, '--mixup', 0.2,
                 '--reprob', 0.2, '--sched-on-updates', '--epochs', 4]
    assert run(*arguments, '--experiment', 'whole').code == 0
    part = tmp_path / 'runs/part'
    shutil.copytree(tmp_path / 'runs/whole', part)
    for name in ('last', 'model_best', 'checkpoint-2', 'checkpoint-3'):
        (part / f'{name}.pth.tar').unlink()
        (part / f'{name}.pth.tar.sha256').unlink()
    shutil.copy(part / 'checkpoint-1.pth.tar', part / 'last.pth.tar')  # as if stopped after two epochs
    result = run(*arguments, '--experiment', 'part', '--resume', 'auto')
    assert result.code == 0, result.err
    assert 'resuming from' in result.out and 'epochs 3 to 4' in result.out
    whole, resumed = load(tmp_path / 'runs/whole/last.pth.tar'), load(part / 'last.pth.tar')
    for key in whole.keys() - {'args'}:
        assert equal(whole[key], resumed[key]), key
    assert (part / 'summary.csv').read_text() == (tmp_path / 'runs/whole/summary.csv').read_text()


def test_a_run_ends_early_where_nothing_becomes_better_also_when_it_was_resumed(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--lr', '0', '--bn-momentum', '0', '--epochs', '6']
    for name, options, epochs in (('a', ['--patience', '2'], 3), ('b', ['--epochs', '2'], 2), ('c', [], 6)):
        result = run(*arguments, *options, '--experiment', name)
        assert result.code == 0 and ('ended early' in result.out) == (name == 'a'), result
        assert len((tmp_path / f'runs/{name}/summary.csv').read_text().splitlines()) == 1 + epochs
    resumed = run(*arguments, '--patience', '2', '--experiment', 'b', '--resume', 'auto', '--allow-recipe-change')
    assert resumed.code == 0 and 'eval_top1 has not become better in 2 evaluations' in resumed.out, resumed.err
    for name in 'ab':
        assert len((tmp_path / f'runs/{name}/summary.csv').read_text().splitlines()) == 4
    assert 'ended early' in run(*arguments, '--patience', '2', '--experiment', 'a', '--resume', 'auto').out


def test_resume_by_path_continues_in_the_same_folder(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    folder = tmp_path / 'runs/a'
    result = run(*TINY, '--data-dir', image_folder, '--resume', folder / 'last.pth.tar', '--output', tmp_path / 'runs',
                 '--experiment', 'a', '--allow-recipe-change')  # 2 epochs instead of 1
    assert result.code == 0, result.err
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1']


def test_resume_auto_without_a_checkpoint_starts_from_scratch(run, image_folder, tmp_path):
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'new', '--resume', 'auto', '--epochs', 1)
    assert result.code == 0, result.err
    assert (tmp_path / 'runs/new/last.pth.tar').exists()


def test_resuming_a_finished_run_changes_no_result(run, image_folder, tmp_path):
    def results():
        folder = tmp_path / 'runs/a'
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in ('.tar', '.csv')}

    arguments = [*TINY, '--data-dir', image_folder, '--experiment', 'a']
    assert run(*arguments).code == 0
    before = results()
    assert 'nothing left to train' in run(*arguments, '--resume', 'auto').out
    assert before == results() and len(before) == 7


def test_gradient_accumulation_equals_a_larger_batch(run, image_folder, tmp_path):
    # A network without batch norm, whose output would depend on the batch.
    arguments = ['--model', 'test_convnext', '--img-size', 32, '--device', 'cpu',
                 '--workers', 0, '--epochs', 1, '--warmup-epochs', 0, '--no-aug', '--smoothing', 0, '--lr', 0.01,
                 '--data-dir', image_folder]
    assert run(*arguments, '--batch-size', 8, '--experiment', 'large').code == 0
    assert run(*arguments, '--batch-size', 4, '--grad-accum-steps', 2, '--experiment', 'small').code == 0
    large, small = (load(tmp_path / f'runs/{name}/last.pth.tar')['state_dict'] for name in ('large', 'small'))
    for name in large:
        torch.testing.assert_close(large[name], small[name], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_no_weight(run, image_folder, tmp_path):
    for name, extra in (('plain', []), ('saving', ['--grad-checkpointing'])):
        assert run(*TINY, '--data-dir', image_folder, '--epochs', 1, '--experiment', name, *extra).code == 0
    plain, saving = (load(tmp_path / f'runs/{name}/last.pth.tar')['state_dict'] for name in ('plain', 'saving'))
    for name in plain:
        if 'running' not in name and 'tracked' not in name:  # recomputed batches are counted twice
            torch.testing.assert_close(plain[name], saving[name])


@pytest.mark.parametrize('extra', [
    ['--amp', '--amp-dtype', 'bfloat16', '--channels-last'],
    ['--amp', '--amp-dtype', 'float16'],
    ['--mixup', '0.2', '--cutmix', '1.0', '--mixup-off-epoch', '1'],
    ['--bce-loss', '--clip-grad', '1.0'],
    ['--clip-grad', '0.01', '--clip-mode', 'agc', '--opt', 'rmsproptf', '--sched', 'step', '--lr', '1.0e-4'],
    ['--aa', 'rand-m15-n2-p1.0-mmax15', '--reprob', '0.5', '--val-interval', '2'],
    ['--opt', 'lamb', '--opt-eps', '1e-6', '--layer-decay', '0.9', '--sched', 'none', '--lr', '1e-3'],
    ['--in-chans', '1', '--mean', '0.5', '--std', '0.5', '--workers', '1'],
    ['--val-split', '', '--model-ema', '--head-init-scale', '0.1', '--head-init-bias', '-1'],
    ['--eval-metric', 'loss', '--no-aug', '--sync-bn', '--bn-momentum', '0.5'],
], ids=lambda extra: ' '.join(extra)[:40])
def test_every_switch_trains(run, image_folder, tmp_path, extra):
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', *extra)
    assert result.code == 0, result.err
    state = load(tmp_path / 'runs/a/last.pth.tar')
    assert state['epoch'] == 1
    assert all(value.isfinite().all() for value in state['state_dict'].values())


@pytest.mark.slow
def test_torch_compile_trains_and_keeps_plain_names(run, image_folder, tmp_path):
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--torchcompile', 'aot_eager', '--epochs', 1)
    assert result.code == 0, result.err
    assert not [name for name in load(tmp_path / 'runs/a/last.pth.tar')['state_dict'] if '_orig_mod' in name]


@pytest.mark.parametrize(('given', 'is_emulated', 'is_float32'), [
    ([], True, True), (['--amp'], True, False), ([], False, False)])
def test_a_recipes_bfloat16_is_for_devices_that_have_it(
        run, image_folder, tmp_path, monkeypatch, given, is_emulated, is_float32):
    monkeypatch.setattr(timm_rs.device.torch_device, 'cpu_emulates_bfloat16', lambda: is_emulated)
    (tmp_path / 'half.yaml').write_text('amp: true\namp_dtype: bfloat16\n')
    arguments = [*TINY, '--data-dir', image_folder, '--epochs', 1, '--recipe', tmp_path / 'half.yaml']
    result = run(*arguments, '--experiment', 'a', *given)
    assert result.code == 0, result.err
    assert ('computing in float32 (--amp insists' in result.out) == is_float32
    assert run(*arguments, '--experiment', 'b', '--no-amp').code == 0
    weights = [load(tmp_path / f'runs/{name}/last.pth.tar')['state_dict'] for name in 'ab']
    assert equal(*weights) == is_float32
    assert yaml.safe_load((tmp_path / 'runs/a/args.yaml').read_text())['amp']  # goes on as it is on other devices


def test_frozen_parts_keep_every_bit_and_the_run_goes_on_as_ever(run, tiny_run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--pretrained-path', tiny_run / 'last.pth.tar', '--freeze',
                 'backbone', '--model-ema', '--model-ema-decay', '0.5', '--sched', 'constant']
    whole = run(*arguments, '--experiment', 'whole')
    assert whole.code == 0, whole.err
    assert 'parameters are frozen' in whole.out
    before = load(tiny_run / 'last.pth.tar')['state_dict_ema']
    after = load(tmp_path / 'runs/whole/last.pth.tar')
    for state in (after['state_dict'], after['state_dict_ema']):
        changed = {name for name, value in before.items() if not torch.equal(value, state[name])}
        assert changed == {'fc.weight', 'fc.bias'}
    assert run(*arguments, '--experiment', 'part', '--epochs', '1').code == 0
    resumed = run(*arguments, '--experiment', 'part', '--resume', 'auto', '--allow-recipe-change')
    assert resumed.code == 0, resumed.err
    assert_equal(load(tmp_path / 'runs/part/last.pth.tar')['state_dict'], after['state_dict'])


def test_model_ema_follows_tensorflows_ramp(run, image_folder, tmp_path):
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--model-ema', '--model-ema-warmup',
                 '--ema-ramp', 'tf', '--epochs', 1, '--lr', 0)
    assert result.code == 0, result.err
    state = load(tmp_path / 'runs/a/last.pth.tar')  # three updates: weights stand still, statistics move
    assert equal(state['state_dict']['fc.weight'], state['state_dict_ema']['fc.weight'])
    assert not equal(state['state_dict']['bn1.running_mean'], state['state_dict_ema']['bn1.running_mean'])


@pytest.mark.parametrize('name', ['rs50', 'enet_rs_b4_i192'])
def test_paper_recipe_starts_from_a_folder_of_jpegs(run, image_folder, tmp_path, name):
    # The recipe as it stands, but for what makes it small enough here: fewer pixels, images and epochs.
    recipe = ROOT / f'train_recipes/{name}.yaml'
    result = run('--recipe', recipe, '--data-dir', image_folder, '--img-size', 32, '-b', 8, '--epochs', 1,
                 '--warmup-epochs', 0, '--workers', 0, '--experiment', name)
    assert result.code == 0, result.err
    state = load(tmp_path / f'runs/{name}/last.pth.tar')
    *_, bias = state['state_dict'].values()  # of the classifier
    assert state['arch'] == read_file(recipe)['model'] and bias.shape == (3,)


def test_show_prints_each_value_with_its_source_and_trains_nothing(run, tmp_path):
    result = run('--recipe', ROOT / 'train_recipes/rs350.yaml', '--show', '--epochs', 5)
    assert result.code == 0
    lines = {line.partition(':')[0].strip(): line for line in result.out.splitlines() if ':' in line}
    assert '5' in lines['epochs'] and lines['epochs'].endswith('# command line')
    assert '4.0e-05' in lines['weight_decay'] and lines['weight_decay'].endswith('rs350.yaml')
    assert '128' in lines['batch_size'] and lines['batch_size'].endswith('# default')
    assert not list(tmp_path.iterdir())


# ---- bad input --------------------------------------------------------------------------------------------------

def refused(result, *parts):
    """One line on stderr, status 2, and each of `parts` in it."""
    assert result.code == 2, result
    assert result.err.startswith('error: ') and result.err.count('\n') == 1, result.err
    for part in parts:
        assert part in result.err, result.err


def test_missing_data_is_refused(run, tmp_path):
    refused(run(*TINY), 'no data: give --data-dir')
    refused(run(*TINY, '--data-dir', tmp_path / 'nowhere'), 'nowhere does not exist')


def test_empty_folder_is_refused(run, tmp_path):
    (tmp_path / 'images/train').mkdir(parents=True)
    (tmp_path / 'images/val').mkdir()
    refused(run(*TINY, '--data-dir', tmp_path / 'images'), 'images/train is empty')
    (tmp_path / 'images/train/cat').mkdir()
    refused(run(*TINY, '--data-dir', tmp_path / 'images'), 'there are no images in', '1 a folder without images')


def test_images_without_class_folders_are_refused(run, tmp_path):
    write_images(tmp_path / 'images', {'train': 3, 'val': 3})
    refused(run(*TINY, '--data-dir', tmp_path / 'images'), 'directly in', 'one folder per class')


def test_missing_validation_split_is_refused_instead_of_validating_on_training_data(run, image_folder):
    shutil.rmtree(image_folder / 'validation')
    refused(run(*TINY, '--data-dir', image_folder), 'has no split validation', '--val-split ""')


def test_class_only_in_validation_is_refused(run, image_folder):
    write_images(image_folder / 'validation', {'fox': 2})
    refused(run(*TINY, '--data-dir', image_folder), 'classes that training lacks: fox')


def test_class_missing_in_validation_does_not_shift_the_labels(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    for name in ('cat', 'dog'):
        shutil.rmtree(image_folder / 'validation' / name)
    folder = tmp_path / 'runs/a'
    assert run(*TINY, '--data-dir', image_folder, '--eval', folder / 'last.pth.tar').code == 0
    state = load(folder / 'last.pth.tar')['state_dict']
    state['fc.weight'].zero_()
    state['fc.bias'].copy_(torch.tensor([0., 0., 9.]))  # always answers the third class, eel
    torch.save(state, folder / 'eel.pth.tar')
    assert run(*TINY, '--data-dir', image_folder, '--eval', folder / 'eel.pth.tar').code == 0
    assert json.loads((folder / 'eel.eval.json').read_text())['top1'] == 100


def test_of_a_folder_the_best_is_evaluated(run, tiny_run):
    result = run(*TINY, '--data-dir', tiny_run.parent / 'pets', '--eval', tiny_run, '--crop-pct', 1.0)
    assert result.code == 0 and str(tiny_run / 'model_best.eval.json') in result.out


def test_num_classes_that_disagrees_with_the_data_is_refused(run, image_folder):
    refused(run(*TINY, '--data-dir', image_folder, '--num-classes', 10), 'num_classes is 10', '3 classes', 'cat')


def test_batch_larger_than_the_dataset_is_refused(run, image_folder):
    refused(run(*TINY, '--data-dir', image_folder, '-b', 64), '24 images', 'lower --batch-size')


@pytest.mark.parametrize(('arguments', 'parts'), [
    (['--model', 'resnetrs_51', '--model-kwargs'], ['resnetrs_51']),
    (['--model-kwargs', 'depth=51'], ['51', '50, 101, 152']),
    (['--model-kwargs', 'colour=3'], ['colour']),
    (['--opt', 'sgdd'], ['sgdd']),
    (['--opt-kwargs', 'colour=3'], ['colour']),
    (['--sched', 'plateau', '--sched-on-updates'], ['schedule plateau', 'per epoch']),
    (['--sched', 'wsd'], ['schedule wsd', 'decay_epochs']),
    (['--aa', 'rand-q9'], ['augmentation settings']),
    (['--train-interpolation', 'cubic'], ['augmentation settings']),
    (['--mixup', '0.2', '-b', '3'], ['even batch_size, got 3']),
    (['--mean', '0.1', '0.2'], ['mean needs a value for each of 3 channels, or one for all, got [0.1, 0.2]']),
    (['--std', '0.1', '0.2', '--in-chans', '1'], ['std needs a value for each of 1 channels']),
    (['--in-chans', '4'], ['input_img_mode L does not go with 4 input channels: give --input-img-mode RGBA or CMYK']),
    (['--in-chans', '2', '--loader', 'timm'], ['give --input-img-mode LA']),
    (['--in-chans', '5'], ['5 input channels: images have 1 to 4 of them']),
    (['--input-img-mode', 'F'], ['input_img_mode F does not go with 3 input channels: give --input-img-mode RGB or']),
    (['--opt', 'adahessian'], ['adahessian needs second derivatives']),
    (['--opt', 'adamw', '--opt-betas', '0.9'], ['adamw takes 2 opt_betas, got [0.9]']),
    (['--smoothing', '1'], ['smoothing must be at least 0 and below 1, got 1.0']),
    (['--cutmix-minmax', '0.5', '0.5'], ['cutmix_minmax [0.5, 0.5] leaves no size to draw at 32 px']),
    (['--lr-cycle-mul', '0.5', '--cooldown-epochs', '9'], ['schedule cosine cannot be built']),
    (['--lr-noise', '0', '--lr-noise-std', '99', '--lr-noise-pct', '0.1'], ['hardly any noise is within that limit']),
    (['--lr', 'nan'], ['command line: lr must be finite, got nan']),
    (['--torchcompile', 'nonsense'], ['torchcompile nonsense']),
    (['-b', '1', '--img-size', '16'], ['batch norm needs more than one value per channel']),
    (['--experiment', 'x' * 300], ['File name too long']),
    (['--eval', '.'], ['. holds no model_best.pth.tar']),
    (['--device', 'gpu'], ['unknown device gpu']),
    (['--device', 'tpu'], ['device tpu needs torch_tpu']),
    (['--aug-repeats', '3'], ['aug_repeats', 'torchrun']),
    (['--device-modules', 'no_such_module'], ['no_such_module']),
    (['--initial-checkpoint', 'no.pth.tar'], ['no.pth.tar does not exist']),
    (['--pretrained-path', 'no.safetensors'], ['no.safetensors does not exist']),
    (['--resume', 'no.pth.tar'], ['no.pth.tar does not exist']),
    (['--resume', 'auto'], ['--resume auto needs --experiment']),
    (['--freeze', 'head'], ['freeze head cannot be done', 'backbone']),
    (['--recipe', 'no.yaml'], ['no.yaml does not exist']),
    (['--dataset', 'torch/no_such'], ['torch/no_such']),
    (['--dataset', 'nonsense'], ['unknown dataset nonsense', 'torch/']),
    (['--dataset', 'torhc/cifar10'], ['unknown dataset torhc/cifar10']),
    (['--dataset', 'wds'], ['unknown dataset wds', 'wds/']),
    (['--lr', '1.0e9', '--experiment', 'nan', '--max-nonfinite-steps', '2'],
     ['not finite in 3 updates in a row', 'lower the learning rate', 'the last good checkpoint:']),
])
def test_bad_argument_is_refused(run, image_folder, arguments, parts):
    result = run(*TINY, '--data-dir', image_folder, *arguments)
    refused(result, *parts)
    assert 'Pretrained mean/std' not in result.err  # timm's own words, before it is told


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_asking_for_a_missing_gpu_is_refused_but_the_default_falls_back(run, image_folder):
    arguments = [word for word in TINY if word not in ('--device', 'cpu')]
    refused(run(*arguments, '--data-dir', image_folder, '--device', 'cuda'), 'no CUDA GPU', '--device cpu')
    result = run(*arguments, '--data-dir', image_folder, '--epochs', 1)
    assert result.code == 0 and 'training on the CPU' in result.out


def test_output_that_cannot_be_written_is_refused(run, image_folder, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    refused(run(*TINY, '--data-dir', image_folder, '--output', tmp_path / 'file'), 'file', 'change --output')


def test_a_finished_run_is_not_overwritten(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1]
    assert run(*arguments).code == 0
    before = (tmp_path / 'runs/a/last.pth.tar').read_bytes()
    refused(run(*arguments), 'already holds a run', '--resume auto')
    assert (tmp_path / 'runs/a/last.pth.tar').read_bytes() == before


def test_unnamed_runs_of_one_second_get_folders_of_their_own(run, image_folder, tmp_path, monkeypatch):
    class Still(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)
    monkeypatch.setattr(runlog.datetime, 'datetime', Still)
    for _ in range(3):
        assert run(*TINY, '--data-dir', image_folder, '--epochs', 1).code == 0
    name = '20260102-030405-resnetrs-32'
    assert sorted(path.name for path in (tmp_path / 'runs').iterdir()) == [name, f'{name}-2', f'{name}-3']


def test_checkpoint_of_another_architecture_is_refused_and_the_old_run_stays(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    path = tmp_path / 'runs/a/last.pth.tar'
    before = (path.with_name('args.yaml').read_text(), path.read_bytes())
    other = [*TINY, '--data-dir', image_folder, '--model-kwargs', 'layers=(1,1,2,1)', 'width=0.125']
    for option, experiment in (('--eval', 'a'), ('--resume', 'a'), ('--initial-checkpoint', 'b')):
        result = run(*other, option, path, '--experiment', experiment, '--allow-recipe-change')
        refused(result, 'last.pth.tar (resnetrs, epoch 1) does not fit', 'layer3.1', '--model-kwargs')
    assert before == (path.with_name('args.yaml').read_text(), path.read_bytes())


def test_checkpoint_with_another_number_of_classes_is_refused(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    for split in ('train', 'validation'):
        write_images(image_folder / split, {'fox': 4})
    result = run(*TINY, '--data-dir', image_folder, '--eval', tmp_path / 'runs/a/last.pth.tar')
    refused(result, 'has classes that', 'last.pth.tar lacks: fox; it has cat, dog, eel')


def test_truncated_checkpoint_is_refused_and_names_the_others(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    path = tmp_path / 'runs/a/last.pth.tar'
    content = path.read_bytes()
    path.with_name('last.pth.tar.sha256').unlink()  # else that would say so first
    path.with_name('checkpoint-0.pth.tar').unlink()  # it shares its bytes with last
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--resume', 'auto'),
                'no checkpoint of the run', 'last.pth.tar cannot be read', 'checkpoint-N')
    (tmp_path / 'runs/a/notes.pth.tar').write_text('not a checkpoint')
    refused(run(*TINY, '--data-dir', image_folder, '--eval', tmp_path / 'runs/a/notes.pth.tar'), 'cannot be read')
    refused(run(*TINY, '--data-dir', image_folder, '--eval', tmp_path / 'runs/a/lost.pth.tar'), 'does not exist',
            'model_best.pth.tar')


def test_checkpoint_that_would_run_code_is_refused(run, image_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / 'executed',))
    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pth.tar')
    refused(run(*TINY, '--data-dir', image_folder, '--eval', tmp_path / 'evil.pth.tar'), 'evil.pth.tar')
    assert not (tmp_path / 'executed').exists()


def test_weights_alone_cannot_be_resumed(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1).code == 0
    torch.save(load(tmp_path / 'runs/a/last.pth.tar')['state_dict'], tmp_path / 'weights.pth.tar')
    arguments = [*TINY, '--data-dir', image_folder, '--experiment', 'b', '--epochs', 1]
    refused(run(*arguments, '--resume', tmp_path / 'weights.pth.tar'), 'weights only', '--initial-checkpoint')
    assert run(*arguments, '--initial-checkpoint', tmp_path / 'weights.pth.tar').code == 0


def test_program_exits_with_status_2_and_no_traceback(tmp_path):
    result = subprocess.run([sys.executable, ROOT / 'train.py', '--data-dir', tmp_path / 'nowhere', '--device', 'cpu'],
                            capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == f'error: data folder {tmp_path / "nowhere"} does not exist\n'


@pytest.mark.slow
def test_interrupt_says_how_to_continue_and_leaves_a_checkpoint(image_folder, tmp_path):
    command = [TRAIN, *TINY, '--data-dir', image_folder, '--output', tmp_path, '--experiment', 'a', '--epochs', 100_000]
    with ForkedPython(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while 'epoch 2/100000 done' not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (130, '')
    assert 'continue with --experiment a --resume auto' in out
    assert load(tmp_path / 'a/last.pth.tar')['epoch'] >= 1


# ---- several processes ------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_two_processes_train_and_count_every_validation_image_once(run, image_folder, tmp_path):
    # 15 validation images over two processes: one share is padded, and must not count twice.
    arguments = [*TINY, '--data-dir', str(image_folder), '--batch-size', '4', '--model-ema', '--output', str(tmp_path)]
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
                str(ROOT / 'train.py')]
    result = subprocess.run([*torchrun, *arguments, '--experiment', 'two'], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert '2 x cpu' in result.stdout
    row = read_summary(tmp_path / 'two')[-1]
    single = run(*TINY, '--data-dir', image_folder, '--eval', tmp_path / 'two/last.pth.tar')
    assert single.code == 0, single.err
    written = json.loads((tmp_path / 'two/last.eval.json').read_text())
    assert written['num_samples'] == 15
    assert written['top1'] == pytest.approx(float(row['eval_top1']), abs=1e-4)
    assert written['loss'] == pytest.approx(float(row['eval_loss']), rel=1e-5)
