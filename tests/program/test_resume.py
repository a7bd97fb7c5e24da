"""A run that is stopped anywhere and continued is the run that was not stopped, bit for bit."""

import os
import shutil
import signal

import pytest
import torch
from conftest import TINY, assert_equal, load_tool
from forks import die_in_the_second_epoch, in_forks

import timm_rs.training.run
from timm_rs.data import loader as fast_loader
from timm_rs.files import read_csv
from timm_rs.training import train
from timm_rs.training.checkpoint import Checkpoints

HARD = ['--drop', 0.2, '--drop-path', 0.1, '--mixup', 0.2, '--cutmix', 1.0, '--reprob', 0.5, '--aa', 'rand-m9-n2']
BASE = [*TINY, '--batch-size', 4, '--model-ema', '--log-interval', 2, '--lr', 0.01, '--checkpoint-interval-minutes', 0]
UPDATES = 6  # in an epoch of 24 images

# A worker more than this machine has cores is no reason for a test to fail.
pytestmark = [pytest.mark.filterwarnings('ignore:This DataLoader will create:UserWarning'),
              # whose state timm does not save, but we do
              pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated:FutureWarning')]


@pytest.fixture
def train_and_stop(run, image_folder, monkeypatch):
    """Train until a signal comes after so many updates, or in an epoch's evaluation; on and on until it ends."""
    updates, evaluate = train.train_updates, train.validate

    def call(name, *arguments, data=image_folder, after=(), evaluating=(), number=signal.SIGTERM):
        def stopping_updates(training, loader, device, position, progress):
            for reported in updates(training, loader, device, position, progress):
                if position.update in left:
                    left.remove(position.update)
                    os.kill(os.getpid(), number)
                yield reported

        def stopping_evaluation(*arguments):
            if arguments[0].optimizer.param_groups and evaluations and evaluations.pop(0):
                os.kill(os.getpid(), number)
            return evaluate(*arguments)

        left, evaluations = list(after), list(evaluating)
        monkeypatch.setattr(train, 'train_updates', stopping_updates)
        monkeypatch.setattr(train, 'validate', stopping_evaluation)
        outs = []
        while True:
            torch.manual_seed(len(outs))  # nothing may depend on what this process has done before
            result = run(*BASE, '--data-dir', data, *arguments, '--experiment', name, '--resume', 'auto')
            outs.append(result.out)
            if result.code != 128 + number:
                assert result.code == 0, result.err
                assert len(outs) == 1 + len(after) + sum(evaluating)
                return outs
            assert f'stopped by {number.name}' in result.out
    return call


def content(path):
    state = torch.load(path, weights_only=True)
    del state['args']  # has the name of the run
    return state


def assert_same_run(whole, part):
    """The last and the best checkpoint (weights, average, optimizer, random states), the summary, what was kept."""
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        assert_equal(content(whole / name), content(part / name), name)
    for name in ('summary.csv', 'predictions.csv', 'samples.png'):
        there = [(folder / name).read_bytes() for folder in (whole, part) if (folder / name).exists()]
        assert len(there) != 1 and len(set(there)) <= 1, name
    first, second = ({path.name for path in folder.iterdir() if 'recovery' not in path.name}
                     for folder in (whole, part))
    assert first == second


@pytest.mark.parametrize('extra', [
    [],
    HARD,
    ['--workers', 2, *HARD],
    ['--grad-accum-steps', 4, '--sched-on-updates', '--warmup-epochs', 1, *HARD],  # windows of 4 and 2 batches
    pytest.param(['--amp', '--amp-dtype', 'bfloat16', '--channels-last'], marks=pytest.mark.long),  # emulated, mostly
    ['--amp', '--amp-dtype', 'float16', '--clip-grad', 1.0],
    ['--opt', 'adamw', '--sched', 'plateau', '--patience-epochs', 0, '--eval-metric', 'loss'],
    ['--sched', 'step', '--decay-epochs', 1, '--lr-noise', 0.0, 1.0, '--mixup', 0.5, '--mixup-off-epoch', 1],
    ['--val-split', ''],
], ids=['plain', 'all randomness', '2 workers', 'accumulation', 'bfloat16', 'float16', 'plateau', 'noise', 'no split'])
def test_a_run_stopped_within_each_epoch_is_the_one_that_was_not(train_and_stop, tmp_path, monkeypatch, extra):
    monkeypatch.setattr(fast_loader, 'num_cores', lambda: 2)
    train_and_stop('whole', *extra)
    places = (1, 3) if '--grad-accum-steps' in extra else (2, UPDATES + 3)
    outs = train_and_stop('part', *extra, after=places)
    assert 'resuming from' in outs[1] and 'epochs 1 to 2' in outs[1] and 'epochs 2 to 2' in outs[2]
    assert_same_run(tmp_path / 'runs/whole', tmp_path / 'runs/part')


def test_a_run_stopped_after_any_update_is_the_one_that_was_not(train_and_stop, tmp_path):
    train_and_stop('whole', *HARD)
    train_and_stop('part', *HARD, after=range(1, 2 * UPDATES + 1), number=signal.SIGUSR1)
    assert_same_run(tmp_path / 'runs/whole', tmp_path / 'runs/part')


def test_what_a_version_before_ours_did_not_count_is_not_said_of_that_epoch(run, image_folder, tmp_path):
    arguments = [*BASE, '--data-dir', image_folder, '--recovery-interval', 1]
    cut = [*arguments, '--output', tmp_path / 'runs', '--experiment', 'a']
    assert in_forks(cut, [{}], die_in_the_second_epoch) == [-signal.SIGKILL]
    path = next((tmp_path / 'runs/a').glob('recovery-1-*.tar'))
    state = torch.load(path, weights_only=True)
    del state['place']['right']
    state['processes'][0]['unreported'] = state['processes'][0]['unreported'][:3]
    torch.save(state, tmp_path / 'old.pth.tar')
    result = run(*arguments, '--resume', tmp_path / 'old.pth.tar', '--experiment', 'b', '--epochs', 3,
                 '--allow-recipe-change')
    assert result.code == 0, result.err
    shares = [row['train_top1'] for row in read_csv(tmp_path / 'runs/b/summary.csv')]
    assert shares[1] == '' and all(0 <= float(share) <= 100 for share in (shares[0], shares[2]))


@pytest.mark.parametrize('evaluating', [[1], [0, 1]], ids=['first epoch', 'last epoch'])
def test_a_run_stopped_while_it_evaluates_is_the_one_that_was_not(train_and_stop, tmp_path, evaluating):
    train_and_stop('whole', *HARD)
    train_and_stop('part', *HARD, evaluating=evaluating, number=signal.SIGINT)
    assert_same_run(tmp_path / 'runs/whole', tmp_path / 'runs/part')


def test_training_on_shards_continues_within_them(train_and_stop, image_folder, tmp_path, capsys):
    load_tool('pack_dataset').main([str(image_folder), str(tmp_path / 'packed')])
    arguments = ['--dataset', 'wds/packed', *HARD]
    train_and_stop('whole', *arguments, data=tmp_path / 'packed')
    train_and_stop('part', *arguments, data=tmp_path / 'packed', after=(2, UPDATES + 3))
    assert_same_run(tmp_path / 'runs/whole', tmp_path / 'runs/part')


def test_checkpoints_within_an_epoch_come_by_number_of_updates_and_change_nothing(
        run, image_folder, tmp_path, monkeypatch):
    arguments = [*BASE, *HARD, '--data-dir', image_folder]
    assert run(*arguments, '--experiment', 'whole').code == 0
    saved, save = tmp_path / 'saved', Checkpoints.save_recovery

    def save_and_copy(*some):
        path = save(*some)
        shutil.copytree(path.parent, saved / path.name, dirs_exist_ok=True)
        return path
    monkeypatch.setattr(Checkpoints, 'save_recovery', save_and_copy)
    result = run(*arguments, '--recovery-interval', 4, '--experiment', 'part')
    assert result.code == 0, result.err
    folder = tmp_path / 'runs/part'
    assert_same_run(tmp_path / 'runs/whole', folder)
    assert not list(folder.glob('recovery-*'))  # an epoch that is saved is further
    assert {path.name for path in saved.iterdir()} == {
        'recovery-0-4.pth.tar', 'recovery-1-2.pth.tar', 'recovery-1-6.pth.tar'}
    shutil.rmtree(folder)
    shutil.copytree(saved / 'recovery-1-2.pth.tar', folder)  # back to a place within the second epoch
    result = run(*arguments, '--experiment', 'part', '--resume', 'auto')
    assert result.code == 0 and 'recovery-1-2.pth.tar (resnetrs, epoch 2)' in result.out
    whole, part = (content(tmp_path / f'runs/{name}/last.pth.tar') for name in ('whole', 'part'))
    assert_equal(whole['state_dict'], part['state_dict'])


def test_checkpoints_within_an_epoch_come_by_time(run, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, 'save', lambda *_: None)  # which removes them
    result = run(*TINY, '--data-dir', image_folder, '--checkpoint-interval-minutes', 1e-9, '--experiment', 'a')
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / 'runs/a').glob('recovery-*.tar')} == {
        'recovery-1-2.pth.tar', 'recovery-1-3.pth.tar'}  # the newest two


@pytest.mark.parametrize('option', ['checkpoint', 'start'])
def test_a_run_does_not_go_back_over_what_came_after(run, image_folder, tmp_path, option):
    arguments, folder = [*TINY, '--data-dir', image_folder, '--experiment', 'a'], tmp_path / 'runs/a'
    assert run(*arguments).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = run(*arguments, '--resume', *(
        [folder / 'checkpoint-0.pth.tar'] if option == 'checkpoint' else ['auto', '--start-epoch', 1]))
    assert result.code == 2 and 'last.pth.tar is further' in result.err and '--resume auto' in result.err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / 'other').mkdir()
    for name in ('last', 'checkpoint-1'):
        (folder / f'{name}.pth.tar').rename(tmp_path / f'other/{name}.pth.tar')
    result = run(*arguments, '--resume', folder / 'checkpoint-0.pth.tar')
    assert result.code == 0, result.err
    assert_equal(content(folder / 'last.pth.tar')['state_dict'],
                 content(tmp_path / 'other/last.pth.tar')['state_dict'])


@pytest.mark.parametrize(('change', 'said'), [
    (['--batch-size', 8], 'an update now takes 8 images instead of 4'),
    (['--batch-size', 2, '--grad-accum-steps', 2], ''),
])
def test_another_batch_size_keeps_the_place_in_the_data(run, image_folder, tmp_path, monkeypatch, change, said):
    seen = []
    genuine = fast_loader.TransformedSamples.__getitem__

    def noting(self, ticket):
        if self.replace:
            seen.append(ticket)
        return genuine(self, ticket)
    monkeypatch.setattr(fast_loader.TransformedSamples, '__getitem__', noting)
    monkeypatch.setattr(timm_rs.training.run, 'draw_samples', lambda *_: None)  # which reads some of them, too
    arguments = [*BASE, '--data-dir', image_folder, '--epochs', 1, '--experiment', 'a', '--recovery-interval', 2]
    with monkeypatch.context() as patches:
        patches.setattr(Checkpoints, 'save', lambda *_: None)  # which removes checkpoints within the epoch
        assert run(*arguments).code == 0
    whole = list(seen)
    folder = tmp_path / 'runs/a'
    for path in folder.glob('*.tar'):
        if path.name != 'recovery-0-4.pth.tar':
            path.unlink()
    seen.clear()
    result = run(*arguments, *change, '--resume', 'auto')
    assert result.code == 0, result.err
    assert seen == whole[16:] and len(whole) == 24
    assert said in result.out and ('an update now' in result.out) == bool(said)


def test_timms_loader_begins_the_epoch_anew_and_says_so(train_and_stop, tmp_path):
    outs = train_and_stop('part', '--loader', 'timm', after=(UPDATES + 2,))
    assert 'timm\'s loader cannot go on within an epoch: epoch 2 begins anew' in outs[1]
    state = content(tmp_path / 'runs/part/last.pth.tar')
    assert state['epoch'] == 1 and len(state['summary']) == 2


def test_another_recipe_is_refused_with_all_that_changed_unless_insisted_on(run, image_folder):
    arguments = [*TINY, '--data-dir', image_folder, '--experiment', 'a', '--resume', 'auto']
    assert run(*arguments, '--epochs', 1).code == 0
    result = run(*arguments, '--smoothing', 0.2, '--seed', 1)
    assert result.code == 2
    assert 'epochs 1 -> 2, ' in result.err and 'smoothing 0.1 -> 0.2' in result.err and 'seed 42 -> 1' in result.err
    assert 'workers' not in result.err and '--allow-recipe-change' in result.err
    assert run(*arguments, '--smoothing', 0.2, '--seed', 1, '--allow-recipe-change').code == 0


def test_a_run_goes_on_from_its_own_args_yaml(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--opt-kwargs', 'betas=(0.9,0.99)', '--opt', 'adamw']
    assert run(*arguments, '--experiment', 'a', '--epochs', 1).code == 0
    recipe = tmp_path / 'runs/a/args.yaml'
    result = run('--recipe', recipe, '--experiment', 'a', '--resume', 'auto')  # its tuples are lists
    assert result.code == 0 and 'resuming from' in result.out, result.err
    result = run('--recipe', recipe, '--experiment', 'a', '--resume', 'auto', '--model-kwargs', 'layers=(1,1,2,1)',
                 'width=0.125')
    assert result.code == 2
    result = run('--recipe', recipe, '--experiment', 'a', '--resume', 'auto', '--opt-kwargs', 'betas=(0.9,0.98)')
    assert result.code == 2 and "opt_kwargs {'betas': (0.9, 0.99)} -> {'betas': (0.9, 0.98)}" in result.err
