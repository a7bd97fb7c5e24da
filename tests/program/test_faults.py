"""What goes wrong in long runs, made to go wrong."""

import builtins
import contextlib
import errno
import gc
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from forks import TRAIN, ForkedPython, run_forked

from timm_rs.training import checkpoint, train
from timm_rs.training.checkpoint import Checkpoints, read_checkpoint
from timm_rs.training.interruption import Interruption

AUTO = ['--experiment', 'a', '--resume', 'auto']


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def arguments(image_folder):
    return [*TINY, '--data-dir', image_folder]


@contextlib.contextmanager
def started(*arguments, folder, ranks=1, before='', **environment):
    """train.py in processes of their own, as torchrun starts them when there are several; `before`: lines of Python."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        group = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(probe.getsockname()[1]), WORLD_SIZE=str(ranks))
    processes = []
    for rank in range(ranks):
        variables = environment | (group | dict(RANK=str(rank), LOCAL_RANK=str(rank)) if ranks > 1 else {})
        processes.append(ForkedPython([before + TRAIN, *arguments, '--output', folder], text=True, env=variables,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(process, words):
    while words not in (line := process.stdout.readline()):
        assert line, process.stderr.read()


# ---- saving -----------------------------------------------------------------------------------------------------

def fail_in(monkeypatch, attempts):
    """A disk that is full half-way through these attempts to save, numbered from 0."""
    genuine, count = torch.save, iter(range(1000))

    def save(content, file):
        if next(count) in attempts:
            file.write(b'half')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        genuine(content, file)
    monkeypatch.setattr(checkpoint.torch, 'save', save)


def test_a_full_disk_is_told_and_the_next_save_makes_up_for_it(run, arguments, tmp_path, monkeypatch):
    assert run(*arguments, '--epochs', 3, '--experiment', 'whole').code == 0
    fail_in(monkeypatch, {1})
    result = run(*arguments, '--epochs', 3, '--experiment', 'a')
    assert result.code == 0, result.err
    assert result.out.count('No space left on device. Earlier checkpoints are intact') == 1
    assert 'tries again at the next occasion' in result.out
    whole, part = (load(tmp_path / f'runs/{name}/last.pth.tar') for name in ('whole', 'a'))
    assert all(torch.equal(whole['state_dict'][name], value) for name, value in part['state_dict'].items())
    summaries = [(tmp_path / f'runs/{name}/summary.csv').read_bytes() for name in ('whole', 'a')]
    assert summaries[0] == summaries[1]


def test_a_run_whose_last_save_failed_ends_with_an_error_and_can_be_continued(run, arguments, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_in(patch, {1})
        result = run(*arguments, '--experiment', 'a')
    assert result.code == 2 and 'No space left on device' in result.err and result.err.count('\n') == 1
    assert load(tmp_path / 'runs/a/last.pth.tar')['epoch'] == 0
    assert run(*arguments, *AUTO).code == 0
    assert load(tmp_path / 'runs/a/last.pth.tar')['epoch'] == 1


def test_a_file_system_that_takes_no_more_leaves_the_old_checkpoint(tmp_path):
    """A real limit, met inside torch's writer."""
    checkpoints = Checkpoints(tmp_path, keep=2, lower_is_better=False)
    checkpoints.save({'state_dict': {}}, 0, 1.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    program = f'''
import resource, signal, torch
from pathlib import Path
from timm_rs.errors import exit_on_user_error
from timm_rs.training.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with exit_on_user_error():
    Checkpoints(Path({str(tmp_path)!r}), 2, False).save({{'state_dict': {{'a': torch.zeros(100_000)}}}}, 1, 2.0)
'''
    code, _, err = run_forked(program)
    assert code == 2 and 'could not be written' in err and 'Earlier checkpoints are intact' in err, (code, err)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(('name', 'number'), [
    ('args.yaml', errno.ENOSPC), ('class_names.txt', errno.EROFS), ('summary.csv', errno.EDQUOT),
    ('last.pth.tar', errno.ENOSPC), ('last.pth.tar.sha256', errno.EIO), ('checkpoint-1.pth.tar', errno.EACCES),
    ('model_best.pth.tar.sha256', errno.ENOENT), ('bad_samples.csv', errno.ENOSPC), ('.lock', errno.ENOSPC),
    ('curves.png', errno.ENOSPC)])
def test_whatever_cannot_be_written_ends_in_a_line(run, arguments, image_folder, tmp_path, monkeypatch, name, number):
    data = shutil.copytree(image_folder, tmp_path / 'data')
    next(data.glob('train/*/*')).write_bytes(b'no image')
    genuine = builtins.open

    def refusing(path, mode='r', *some, **more):
        plain = Path(path).name if isinstance(path, str | os.PathLike) else ''
        if set(mode) & set('wa') and (plain == name or plain.startswith(f'.{name}.')):
            raise OSError(number, os.strerror(number), str(path))
        return genuine(path, mode, *some, **more)
    monkeypatch.setattr(builtins, 'open', refusing)

    def no_link(*_):
        raise OSError(errno.EPERM, 'there are no links here')
    monkeypatch.setattr(os, 'link', no_link)  # so that what would be one is opened, too
    result = run(*arguments, '--data-dir', data, '--experiment', 'a')
    if name == 'curves.png':
        assert result.code == 0 and 'warning: ' in result.out and 'curves.png could not be drawn: ' in result.out
    else:
        assert result.code == 2 and result.err.count('\n') == 1, result.err
        assert os.strerror(number) in result.err and str(tmp_path / 'runs/a') in result.err
        assert 'curves.png' not in result.err


def test_a_folder_removed_while_the_run_goes_on_comes_back(run, arguments, tmp_path, monkeypatch):
    genuine = train.validate

    def removing(*some):
        shutil.rmtree(tmp_path / 'runs/a')
        return genuine(*some)
    monkeypatch.setattr(train, 'validate', removing)
    result = run(*arguments, '--experiment', 'a')
    assert result.code == 0, result.err
    assert load(tmp_path / 'runs/a/last.pth.tar')['epoch'] == 1
    assert (tmp_path / 'runs/a/summary.csv').read_text().count('\n') == 3


def test_sha256sum_agrees_with_the_checksums(run, arguments, tmp_path):
    assert run(*arguments, '--experiment', 'a', '--recovery-interval', 2).code == 0
    folder = tmp_path / 'runs/a'
    digests = sorted(path.name for path in folder.glob('*.sha256'))
    assert [name.removesuffix('.sha256') for name in digests] == sorted(path.name for path in folder.glob('*.tar'))
    subprocess.run(['sha256sum', '-c', '--strict', *digests], cwd=folder, check=True, capture_output=True)


def test_neither_the_best_nor_the_newest_is_ever_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, lower_is_better=False)
    for epoch, metric in enumerate([3.0, 9.0, 1.0, math.nan, 2.0]):
        for update in (1, 2, 3):
            path = checkpoints.save_recovery({'state_dict': {}}, epoch, update)
            assert checkpoints.newest_first()[0] == path and read_checkpoint(path)['epoch'] == epoch
        checkpoints.save({'state_dict': {}}, epoch, metric)
        assert checkpoints.newest_first()[0].name == 'last.pth.tar'
        best = 0 if epoch == 0 else 1
        assert read_checkpoint(tmp_path / 'model_best.pth.tar')['epoch'] == best
        assert read_checkpoint(tmp_path / f'checkpoint-{best}.pth.tar')['epoch'] == best
        assert not list(tmp_path.glob('recovery-*.tar'))  # an epoch that is saved has gone further


# ---- loading ----------------------------------------------------------------------------------------------------

def damage(path):
    """Turn one byte in the middle, as a bad disk does; files that share its bytes stay whole."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.unlink()
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, arguments, tmp_path):
    assert run(*arguments, '--experiment', 'a', '--recovery-interval', 2).code == 0
    folder = tmp_path / 'runs/a'
    whole = load(folder / 'last.pth.tar')
    for name in ('last', 'checkpoint-1'):
        damage(folder / f'{name}.pth.tar')
    result = run(*arguments, *AUTO)
    assert result.code == 0, result.err
    assert 'last.pth.tar is damaged: its SHA-256 is not that' in result.out and 'trying the one before' in result.out
    assert 'resuming from checkpoint' in result.out and 'checkpoint-0.pth.tar' in result.out
    again = load(folder / 'last.pth.tar')
    assert all(torch.equal(whole['state_dict'][name], value) for name, value in again['state_dict'].items())


def test_a_run_of_which_nothing_is_whole_does_not_start_over(run, arguments, tmp_path):
    assert run(*arguments, '--experiment', 'a').code == 0
    for path in (tmp_path / 'runs/a').glob('*.tar'):
        damage(path)
    before = {path: path.read_bytes() for path in (tmp_path / 'runs/a').iterdir()}
    result = run(*arguments, *AUTO)
    assert result.code == 2 and 'no checkpoint of the run in' in result.err and 'damaged' in result.err
    assert before == {path: path.read_bytes() for path in (tmp_path / 'runs/a').iterdir()}


@pytest.mark.parametrize('content', [
    {'epoch': 3, 'state_dict': 'weights', 'optimizer': 1},
    {'epoch': 'three', 'state_dict': {}, 'optimizer': {}},
    {'epoch': 0, 'state_dict': {}, 'optimizer': {}, 'args': 'none'},
    {'epoch': 0, 'optimizer': {}},
    [1, 2],
], ids=['text', 'no epoch', 'no recipe', 'no weights', 'a list'])
def test_a_foreign_checkpoint_is_refused_in_a_sentence(run, arguments, tmp_path, content):
    torch.save(content, tmp_path / 'foreign.pth.tar')
    result = run(*arguments, '--experiment', 'a', '--resume', tmp_path / 'foreign.pth.tar')
    assert result.code == 2 and 'foreign.pth.tar' in result.err and result.err.count('\n') == 1


@pytest.mark.parametrize('key', ['place', 'processes', 'optimizer', 'summary', 'history'])
def test_a_checkpoint_of_ours_with_something_else_inside_is_refused_in_a_sentence(run, arguments, tmp_path, key):
    assert run(*arguments, '--experiment', 'a', '--epochs', 1).code == 0
    path = tmp_path / 'runs/a/last.pth.tar'
    torch.save(load(path) | {key: [{'colour': 3}]}, path)
    path.with_name('last.pth.tar.sha256').unlink()
    result = run(*arguments, '--experiment', 'a', '--epochs', 1, '--resume', path)
    assert result.code == 2 and 'last.pth.tar' in result.err and result.err.count('\n') == 1


@pytest.mark.parametrize('option', ['--resume', '--initial-checkpoint', '--pretrained-path', '--eval'])
@pytest.mark.parametrize('suffix', ['.pth.tar', '.pth', '.safetensors'])
def test_a_file_made_to_run_code_is_refused_and_does_not_run_it(run, arguments, tmp_path, option, suffix):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / 'executed',))
    path = tmp_path / f'evil{suffix}'
    torch.save({'epoch': 0, 'optimizer': {}, 'state_dict': {'conv1.weight': torch.zeros(1), 'evil': Evil()}}, path)
    result = run(*arguments, '--experiment', 'a', option, path)
    assert result.code == 2 and 'evil' in result.err and result.err.count('\n') == 1, result
    assert not (tmp_path / 'executed').exists()


# ---- training ---------------------------------------------------------------------------------------------------

def spoil_updates(monkeypatch, bad):
    """Batches of numbers that are none, in the updates with these numbers; the states after each, by its number."""
    genuine, states = train.train_updates, {}

    def spoiling(training, loader, device, position, progress):
        class Loader(type(loader)):
            def __iter__(self):
                for offset, (images, targets) in enumerate(super().__iter__(), start=position.update):
                    yield images * math.nan if offset in bad else images, targets
        loader.__class__ = Loader
        for reported in genuine(training, loader, device, position, progress):
            states[position.update - 1] = {name: value.clone() for name, value in training.model.state_dict().items()}
            yield reported
    monkeypatch.setattr(train, 'train_updates', spoiling)
    return states


def is_same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize('amp', [[], ['--amp', '--amp-dtype', 'float16']], ids=['float32', 'float16'])
def test_an_update_that_would_spoil_the_weights_is_left_out_and_counted(
        run, arguments, tmp_path, monkeypatch, amp):
    states = spoil_updates(monkeypatch, {1, 2})
    result = run(*arguments, *amp, '--experiment', 'a', '--epochs', 1, '--log-interval', 1, '--model-ema')
    assert result.code == 0, result.err
    assert is_same(states[0], states[1]) and is_same(states[0], states[2])  # batch norm's statistics as well
    state = load(tmp_path / 'runs/a/last.pth.tar')
    assert state['place']['skipped'] == state['place']['skipped_in_a_row'] == 2 and '2 updates skipped' in result.out
    assert all(value.isfinite().all() for value in state['state_dict_ema'].values())
    assert math.isfinite(state['summary'][0]['train_loss'])


def test_one_bad_batch_in_an_update_of_many_takes_all_of_it_back(run, arguments, tmp_path, monkeypatch):
    spoiled = spoil_updates(monkeypatch, {1})  # the batches 0 and 1 make an update, 2 is one of its own
    result = run(*arguments, '--experiment', 'a', '--epochs', 1, '--grad-accum-steps', 2, '--lr', 0.01)
    assert result.code == 0, result.err
    assert [spoiled[update]['bn1.num_batches_tracked'].item() for update in (0, 1)] == [0, 1]
    assert load(tmp_path / 'runs/a/last.pth.tar')['place']['skipped'] == 1


def test_a_run_that_does_not_recover_stops_and_names_the_last_good_checkpoint(run, arguments, tmp_path, monkeypatch):
    spoil_updates(monkeypatch, {3, 4, 5, 6})
    result = run(*arguments, '--experiment', 'a', '--epochs', 3, '--max-nonfinite-steps', 2)
    assert result.code == 2 and 'not finite in 3 updates in a row, in epoch 2' in result.err
    assert f'the last good checkpoint: {tmp_path / "runs/a/last.pth.tar"}' in result.err
    assert all(value.isfinite().all() for value in load(tmp_path / 'runs/a/last.pth.tar')['state_dict'].values())


@pytest.mark.parametrize('amp', [[], ['--amp', '--amp-dtype', 'float16']], ids=['float32', 'float16'])
def test_gradients_that_are_never_finite_stop_the_run(run, arguments, tmp_path, monkeypatch, amp):
    genuine = train.train_updates

    def spoiling(training, *rest):
        training.model.fc.weight.register_hook(lambda gradient: gradient * math.inf)
        return genuine(training, *rest)
    monkeypatch.setattr(train, 'train_updates', spoiling)
    result = run(*arguments, *amp, '--experiment', 'a', '--epochs', 10, '--max-nonfinite-steps', 2)
    assert result.code == 2 and 'not finite in 3 updates in a row' in result.err


def test_a_run_without_any_update_ends_with_a_message(run, arguments, tmp_path, monkeypatch):
    genuine = train.train_updates

    def spoiling(training, *rest):
        training.model.fc.weight.register_hook(lambda gradient: gradient * math.inf)
        return genuine(training, *rest)
    monkeypatch.setattr(train, 'train_updates', spoiling)
    result = run(*arguments, '--experiment', 'a', '--epochs', 1)
    assert result.code == 2 and 'all 3 updates were left out' in result.err and result.err.count('\n') == 1
    assert not (tmp_path / 'runs/a/model_best.pth.tar').exists()


def test_weights_that_give_no_finite_loss_are_never_the_best(run, arguments, tmp_path):
    result = run(*arguments, '--experiment', 'a', '--epochs', 1, '--lr', 1e30, '--sched', 'none')
    assert result.code == 2 and 'no epoch ended with a loss that is finite' in result.err
    assert not (tmp_path / 'runs/a/model_best.pth.tar').exists()


@pytest.mark.parametrize(('epochs', 'told'), [(5, True), (6, False)])
def test_a_warm_up_as_long_as_the_run_is_told(run, arguments, epochs, told):
    result = run(*arguments, '--experiment', 'a', '--epochs', epochs, '--warmup-epochs', 5)
    assert ('warm-up of 5 epochs does not end within the 5 of this run: the learning rate stays below' in (
        result.out + result.err)) == told


def test_want_of_memory_gives_a_batch_size_to_try(run, arguments, monkeypatch):
    def forward(self, images):
        return torch.empty(1 << 60)
    from timm_rs.models.resnet_rs import ResNetRS
    monkeypatch.setattr(ResNetRS, 'forward', forward)
    result = run(*arguments, '--experiment', 'a')
    assert result.code == 2 and result.err.count('\n') == 1
    assert '--batch-size 4 --grad-accum-steps 2' in result.err and 'continue with --experiment a' in result.err


@pytest.mark.filterwarnings('ignore:This DataLoader will create:UserWarning')
def test_a_killed_worker_is_told_in_one_line(run, arguments, monkeypatch):
    genuine = train.train_updates

    def killing(training, loader, *rest):
        for reported in genuine(training, loader, *rest):
            for worker in loader.loader._iterator._workers:
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.2)
            yield reported
    monkeypatch.setattr(train, 'train_updates', killing)
    result = run(*arguments, '--experiment', 'a', '--workers', 1, '--epochs', 50)
    assert result.code == 2 and result.err.count('\n') == 1, result.err
    assert 'a data worker was killed' in result.err and 'fewer --workers' in result.err


@pytest.mark.filterwarnings('ignore:This DataLoader will create:UserWarning')
def test_a_worker_may_be_found_dead_before_it_is_told_and_be_told_at_the_end(run, arguments, monkeypatch):
    """What a dead worker was handing over is cut off first, and torch tells of it while the run ends for that."""
    reading = types.FunctionType(compile('raise ConnectionResetError(104, "reset")', '', 'exec'),
                                 {'__name__': 'torch.multiprocessing.reductions'})
    genuine, leave, workers = train.train_updates, Interruption.__exit__, []

    def dying(training, loader, *rest):
        for reported in genuine(training, loader, *rest):
            workers.extend(loader.loader._iterator._workers)
            yield reported
            reading()

    def leaving(self, *error):
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.5)
        leave(self, *error)
    monkeypatch.setattr(train, 'train_updates', dying)
    monkeypatch.setattr(Interruption, '__exit__', leaving)
    result = run(*arguments, '--experiment', 'a', '--workers', 1, '--epochs', 50)
    assert result.code == 2 and result.err.count('\n') == 1, result.err
    assert 'a data worker was killed' in result.err and 'fewer --workers' in result.err
    assert callable(signal.getsignal(signal.SIGCHLD))  # torch's is back, for the next run
    workers.clear()
    gc.collect()  # else torch would tell of these workers in the tests that follow


# ---- signals ----------------------------------------------------------------------------------------------------

def test_a_second_signal_ends_the_process_at_once():
    program = '''
import os, signal, sys, time
from timm_rs.training.interruption import Interruption
with Interruption(0, 0, 60) as interruption:
    os.kill(os.getpid(), signal.SIGTERM)
    print(interruption.wanted() - 1, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
'''
    assert run_forked(program) == (130, '15\n', '')


def test_what_torchrun_passes_on_is_no_second_signal(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    with Interruption(0, 0, 60) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.wanted() == 1 + signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


HANGS = {
    'in Python': 'time.sleep(60)',
    'in C': 'hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10 ** 9)',  # minutes without a line of Python
    'in a thread that holds a lock': 'lock = threading.Lock(); lock.acquire(); lock.acquire()',
}


@pytest.mark.parametrize('hang', HANGS)
def test_a_signal_ends_a_run_that_hangs(hang):
    program = f'''
import hashlib, os, signal, threading, time
from timm_rs.training.interruption import Interruption
with Interruption(0, 0, 0.5, '; lost'):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    {HANGS[hang]}
'''
    code, _, err = run_forked(program)
    assert code == 143 and err.count('\n') == 1, (code, err)
    assert 'SIGTERM came 0.5 s ago' in err and 'ended without saving; lost' in err


def test_saving_may_take_longer_than_a_hang():
    program = '''
import os, signal, time
from timm_rs.training.interruption import Interruption
with Interruption(0, 0, 0.2) as interruption:
    interruption.saving()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    interruption.obeyed.set()
    interruption.saved()
    time.sleep(0.5)
    print('saved')
'''
    assert run_forked(program) == (0, 'saved\n', '')


@pytest.mark.slow
def test_a_signal_is_obeyed_while_a_worker_hangs(arguments, tmp_path):
    with started(*arguments, '--workers', 1, '--epochs', 100_000, '--experiment', 'a', '--stop-timeout', 1,
                 folder=tmp_path) as [process]:
        wait_for(process, 'epoch 1/100000 done')
        workers = [int(child) for child in
                   Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        time.sleep(1)  # what they have made before is soon used up
        process.terminate()
        _, err = process.communicate(timeout=200)
    assert process.returncode == 143 and err.count('\n') == 1, err
    assert 'the run hangs' in err and '--resume auto' in err and '.pth.tar is lost' in err
    time.sleep(1)  # the kernel ends them in its own time
    states = [path.read_text().rpartition(')')[2].split()[0] for worker in workers
              if (path := Path(f'/proc/{worker}/stat')).exists()]
    assert workers and set(states) <= {'Z'}  # killed, at most not yet reaped


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_to_the_whole_group_saves_and_exits_with_its_code(arguments, tmp_path, number, code):
    with started(*arguments, '--workers', 1, '--epochs', 100_000, '--experiment', 'a', folder=tmp_path) as [process]:
        wait_for(process, 'epoch 1/100000 done')
        for child in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split():
            os.kill(int(child), number)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (code, '')
    assert f'stopped by {number.name} in epoch' in out and 'continue with --experiment a --resume auto' in out
    [newest, *_] = Checkpoints(tmp_path / 'a', 1, False).newest_first()
    assert newest.name.startswith('recovery-') and read_checkpoint(newest)['place']['update'] >= 3


# ---- two runs in one folder --------------------------------------------------------------------------------------

@pytest.mark.parametrize('ranks', [1, 2])
def test_a_second_run_in_a_folder_ends_with_3_and_a_kill_frees_it(run, arguments, tmp_path, ranks):
    settings = [*arguments, '--batch-size', 4, '--epochs', 100_000, '--workers', 1, '--experiment', 'a']
    with started(*settings, folder=tmp_path / 'runs', ranks=ranks) as first:
        wait_for(first[0], 'epoch 1/100000 done')
        with started(*settings, '--resume', 'auto', '--seed', 1, folder=tmp_path / 'runs', ranks=ranks) as second:
            errors = [process.communicate(timeout=200)[1] for process in second]
        assert [process.returncode for process in second] == [3] * ranks, errors
        assert all(f'process {first[0].pid} on {socket.gethostname()} since 20' in error for error in errors)
        assert 'seed: 42' in (tmp_path / 'runs/a/args.yaml').read_text()
        evaluated = run(*arguments, '--eval', tmp_path / 'runs/a/last.pth.tar')
        assert evaluated.code == 0, evaluated.err
        first[0].kill()
        first[0].wait()  # the kernel frees the lock when it has taken the process apart
        with started(*settings, '--resume', 'auto', folder=tmp_path / 'runs') as [third]:
            wait_for(third, 'resuming from checkpoint')
            wait_for(third, 'done in')


# ---- several processes ------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_when_one_process_dies_the_others_stop_and_say_so(arguments, tmp_path):
    with started(*arguments, '--epochs', 100_000, '--experiment', 'a', folder=tmp_path, ranks=2) as processes:
        wait_for(processes[0], 'epoch 1/100000 done')
        processes[1].kill()
        began = time.monotonic()
        _, err = processes[0].communicate(timeout=200)
    assert time.monotonic() - began < 30
    errors = [line for line in err.splitlines() if line.startswith('error: ')]
    assert processes[0].returncode == 2 and len(errors) == 1 and 'Traceback' not in err
    assert 'another process of this run has ended' in errors[0]


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_and_any_number_goes_on(run, arguments, tmp_path):
    settings = [*arguments, '--batch-size', 4, '--experiment', 'a']
    with started(*settings, '--epochs', 100_000, folder=tmp_path / 'runs', ranks=2) as processes:
        wait_for(processes[0], 'epoch 1/100000 done')
        processes[1].send_signal(signal.SIGTERM)
        outs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outs
    newest = read_checkpoint(Checkpoints(tmp_path / 'runs/a', 1, False).newest_first()[0])
    result = run(*settings, '--batch-size', 8, '--epochs', newest['epoch'] + 1, '--resume', 'auto',
                 '--allow-recipe-change')
    assert result.code == 0, result.err
    assert load(tmp_path / 'runs/a/last.pth.tar')['place']['update'] == 3 * (newest['epoch'] + 1)


@pytest.mark.parametrize('is_asynchronous', [False, True], ids=['the host decides', 'the device decides'])
def test_a_bad_batch_of_one_process_is_left_out_by_both(arguments, tmp_path, is_asynchronous):
    spoiling = f'''
import math, os
from timm_rs.data.loader import Loader
from timm_rs.device.torch_device import Device
Device.is_asynchronous = {is_asynchronous}
genuine = Loader.__iter__
def spoiling(self):
    for index, (images, targets) in enumerate(genuine(self)):
        yield images * math.nan if index == 1 and os.environ['RANK'] == '1' else images, targets
Loader.__iter__ = spoiling
'''
    with started(*arguments, '--batch-size', 4, '--experiment', 'a', '--epochs', 1, '--val-split', '', folder=tmp_path,
                 ranks=2, before=spoiling) as processes:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    state = load(tmp_path / 'a/last.pth.tar')
    assert state['place']['skipped'] == 1 and state['place']['update'] == 3
    assert state['place']['skipped_in_a_row'] == 0
    assert all(value.isfinite().all() for value in state['state_dict'].values())
    assert state['state_dict']['bn1.num_batches_tracked'] == 2


@pytest.mark.long
def test_torchrun_starts_again_and_the_run_goes_on(arguments, tmp_path):
    program = '''
import os, signal, sys
from timm_rs.programs.train import main
from timm_rs.training import train
genuine = train.train_updates
def dying(training, loader, device, position, progress):
    for reported in genuine(training, loader, device, position, progress):
        if position.update == 5 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            os.kill(os.getpid(), signal.SIGKILL)
        yield reported
train.train_updates = dying
main(sys.argv[1:])
'''
    (tmp_path / 'dying.py').write_text(program)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
               '--max-restarts', '1', str(tmp_path / 'dying.py'), *map(str, arguments), '--batch-size', '4',
               '--output', str(tmp_path), '--experiment', 'a', '--recovery-interval', '1']
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert result.returncode == 0, result.stderr
    assert 'resuming from checkpoint' in result.stdout and 'recovery-1-1' in result.stdout
    assert load(tmp_path / 'a/last.pth.tar')['place']['update'] == 6
