import errno
import os
import random
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from timm_rs.errors import UserError
from timm_rs.training import checkpoint
from timm_rs.training.checkpoint import Checkpoints, load_weights, read_checkpoint
from timm_rs.training.resume import random_state, restore_random_state


def names(folder):
    """The checkpoints in `folder`, each with its checksum beside it."""
    files = {path.name for path in folder.iterdir()}
    found = [name for name in files if name.endswith('.pth.tar')]
    assert files == {*found, *(f'{name}.sha256' for name in found)}
    return sorted(name.removesuffix('.pth.tar') for name in found)


def best_epoch(folder):
    return torch.load(folder / 'model_best.pth.tar', weights_only=True)['epoch']


@pytest.mark.parametrize(('lower_is_better', 'best', 'kept'), [(False, 1, [1, 3]), (True, 2, [0, 2])])
def test_the_best_and_the_last_are_kept(tmp_path, lower_is_better, best, kept):
    checkpoints = Checkpoints(tmp_path, keep=2, lower_is_better=lower_is_better)
    for epoch, metric in enumerate([2.0, 9.0, 1.0, 3.0, 2.5]):
        checkpoints.save({'state_dict': {}}, epoch, metric)
    assert checkpoints.best[0] == best == best_epoch(tmp_path)
    assert names(tmp_path) == sorted([f'checkpoint-{epoch}' for epoch in kept] + ['last', 'model_best'])
    assert torch.load(tmp_path / 'last.pth.tar', weights_only=True)['epoch'] == 4


def test_of_equal_metrics_the_earlier_epoch_stays_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, lower_is_better=False)
    for epoch in range(3):
        checkpoints.save({'state_dict': {}}, epoch, 50.0)
    assert best_epoch(tmp_path) == 0 and names(tmp_path) == ['checkpoint-0', 'last', 'model_best']


def test_ranking_continues_after_a_restart(tmp_path):
    first = Checkpoints(tmp_path, keep=2, lower_is_better=False)
    for epoch, metric in enumerate([5.0, 9.0]):
        first.save({'state_dict': {}}, epoch, metric)
    second = Checkpoints(tmp_path, keep=2, lower_is_better=False)
    last = tmp_path / 'last.pth.tar'
    second.restore(last, read_checkpoint(last))
    second.save({'state_dict': {}}, 2, 7.0)
    assert best_epoch(tmp_path) == 1
    assert names(tmp_path) == ['checkpoint-1', 'checkpoint-2', 'last', 'model_best']


TIMES = {  # of files, in the order in which they were written
    'as written': lambda index: index,
    'all the same, as after a copy': lambda index: 0,
    'a clock that was set back': lambda index: -index,
    'a file server ahead': lambda index: 10 ** 9 + index * (-1) ** index,
}


def state(epoch, images, **more):
    return {'state_dict': {}, 'place': dict(epoch=epoch, images=images)} | more


def set_times(paths, times):
    for index, path in enumerate(paths):
        os.utime(path, (10 ** 9 + TIMES[times](index),) * 2)


@pytest.mark.parametrize('times', TIMES)
def test_the_newest_is_what_got_furthest_whatever_the_times(tmp_path, times):
    checkpoints, written = Checkpoints(tmp_path, keep=3, lower_is_better=False), []
    written.append(checkpoints.save_recovery(state(0, 8), 0, 2))
    old = written[0].read_bytes()
    for epoch in (0, 1, 10):
        checkpoints.save(state(epoch + 1, 0), epoch, 1.0)
        written.append(tmp_path / f'checkpoint-{epoch}.pth.tar')
    written[0].write_bytes(old)  # left by an earlier version
    last = tmp_path / 'last.pth.tar'
    last.write_bytes(last.read_bytes())  # a file of its own, as copies are
    set_times([*written, last], times)
    assert checkpoints.newest_first() == [last, *written[::-1]]
    for update in (9, 10, 11):
        path = checkpoints.save_recovery(state(11, 4 * update), 11, update)
        written.append(path)
        set_times([*(found for found in written if found.exists()), last], times)
        assert path.exists() and checkpoints.newest_first()[0] == path
    assert {path.name for path in tmp_path.glob('recovery-*.tar')} == {
        'recovery-11-10.pth.tar', 'recovery-11-11.pth.tar'}
    checkpoints.save(state(12, 0), 11, 0.0)
    assert checkpoints.newest_first()[0] == last and not list(tmp_path.glob('recovery-*'))


def test_a_recovery_is_not_removed_for_others_that_are_further(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, lower_is_better=False)
    for update in (7, 8, 2, 3):  # an epoch that began anew
        path = checkpoints.save_recovery(state(0, update), 0, update)
        assert path.exists()
    assert {path.name for path in tmp_path.glob('recovery-*.tar')} == {
        'recovery-0-8.pth.tar', 'recovery-0-3.pth.tar'}


@pytest.mark.parametrize('name', ['last', 'checkpoint-2', 'recovery-3-1'])
def test_a_damaged_file_keeps_the_place_of_its_name(tmp_path, name):
    checkpoints = Checkpoints(tmp_path, keep=3, lower_is_better=False)
    for epoch in range(3):
        checkpoints.save(state(epoch + 1, 0), epoch, 1.0)
    checkpoints.save_recovery(state(3, 4), 3, 1)
    before = checkpoints.newest_first()
    damaged = tmp_path / f'{name}.pth.tar'
    damaged.unlink()  # others may share its bytes
    damaged.write_bytes(b'damaged')
    after = checkpoints.newest_first()
    assert set(after) == set(before) and (after == before or name == 'last' and after[0] == damaged)


def test_what_a_kill_left_is_removed_at_the_next_start(tmp_path, monkeypatch):
    first = Checkpoints(tmp_path, keep=1, lower_is_better=False)
    first.save(state(1, 0), 0, 1.0)
    first.save_recovery(state(1, 4), 1, 1)
    mine = tmp_path / 'checkpoint-0-mine.pth.tar'
    mine.write_bytes(b'')
    monkeypatch.setattr(checkpoint, '_remove', lambda path: None)  # killed before anything is removed
    first.save(state(2, 0), 1, 2.0)
    monkeypatch.undo()
    assert (tmp_path / 'checkpoint-0.pth.tar').exists() and (tmp_path / 'recovery-1-1.pth.tar').exists()
    second, last = Checkpoints(tmp_path, keep=1, lower_is_better=False), tmp_path / 'last.pth.tar'
    second.restore(last, read_checkpoint(last))
    mine.unlink()
    assert names(tmp_path) == ['checkpoint-1', 'last', 'model_best'] and second.best == (1, 2.0)


@pytest.mark.parametrize('kept', [['model_best', 'last'], ['model_best', 'last', 'checkpoint-1']])
def test_the_best_stays_the_best_where_only_its_own_name_was_copied(tmp_path, kept):
    first = Checkpoints(tmp_path / 'a', keep=2, lower_is_better=False)
    for epoch, metric in enumerate([9.0, 5.0]):
        first.save(state(epoch + 1, 0), epoch, metric)
    (tmp_path / 'b').mkdir()
    for name in kept:
        shutil.copyfile(tmp_path / f'a/{name}.pth.tar', tmp_path / f'b/{name}.pth.tar')
    second, last = Checkpoints(tmp_path / 'b', keep=2, lower_is_better=False), tmp_path / 'b/last.pth.tar'
    second.restore(last, read_checkpoint(last))
    second.save(state(3, 0), 2, 7.0)
    assert second.best == (0, 9.0) and best_epoch(tmp_path / 'b') == 0


def test_a_full_disk_leaves_the_old_checkpoints_and_says_so(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2, lower_is_better=False)
    checkpoints.save({'state_dict': {}}, 0, 1.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(state, file):
        file.write(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(checkpoint.torch, 'save', full)
    with pytest.raises(UserError, match='No space left on device.*Earlier checkpoints are intact'):
        checkpoints.save({'state_dict': {}}, 1, 2.0)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert checkpoints.best == (0, 1.0)


@pytest.mark.parametrize('metrics', [[5.0, 9.0, 7.0], [9.0, 5.0, 7.0], [7.0, 5.0, 9.0]])
def test_an_epoch_whose_other_names_had_no_room_has_its_place_in_the_ranking_all_the_same(
        tmp_path, monkeypatch, metrics):
    checkpoints, whole = (Checkpoints(tmp_path / name, keep=2, lower_is_better=False) for name in 'ab')
    link = checkpoint.atomic_link
    for epoch, metric in enumerate(metrics):
        whole.save(state(epoch + 1, 0), epoch, metric)
        if epoch == 1:
            monkeypatch.setattr(checkpoint, 'atomic_link', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, '')))
            with pytest.raises(UserError, match='Earlier checkpoints are intact'):
                checkpoints.save(state(epoch + 1, 0), epoch, metric)
            checkpoints.save_recovery(state(2, 1), 2, 1)
            monkeypatch.setattr(checkpoint, 'atomic_link', link)
        else:
            checkpoints.save(state(epoch + 1, 0), epoch, metric)
    assert checkpoints.history == whole.history and best_epoch(tmp_path / 'a') == best_epoch(tmp_path / 'b')
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == sorted(
        path.name for path in (tmp_path / 'b').iterdir())


def test_a_worker_that_dies_while_a_checkpoint_is_saved_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2, lower_is_better=False)

    def killed(*_, **__):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')
    for name in ('atomic_link', 'load_weights_file'):  # the second is asked how far a file is
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, killed)
            with pytest.raises(RuntimeError, match='is killed by signal'):
                checkpoints.save(state(1, 0), 0, 1.0)


def test_weights_that_do_not_fit_are_named():
    model = nn.Linear(2, 3)
    cases = {
        r'bias is \(4,\) there and \(3,\) here': nn.Linear(2, 4).state_dict(),
        'are missing \\(first: bias': nn.Linear(2, 3, bias=False).state_dict(),
        'unknown to it \\(first: extra': model.state_dict() | {'extra': torch.zeros(1)},
    }
    for message, state in cases.items():
        with pytest.raises(UserError, match=f'file x does not fit this model: .*{message}'):
            load_weights(model, state, 'file x')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.'])
def test_weights_of_a_wrapped_model_load(prefix):
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_weights(target, {prefix + name: value for name, value in source.state_dict().items()}, 'file x')
    assert torch.equal(source.weight, target.weight)


def test_random_state_survives_a_file(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    random.gauss(0, 1), np.random.randn()  # leaves half of a pair of normal numbers in store
    torch.save({'state_dict': {}, 'random_state': random_state()}, tmp_path / 'state.pth.tar')
    expected = draw()
    assert draw() != expected
    restore_random_state(read_checkpoint(tmp_path / 'state.pth.tar')['random_state'])
    assert draw() == expected


def test_safetensors_and_bare_state_dicts_are_read_alike(tmp_path):
    from safetensors.torch import save_file
    state = nn.Linear(2, 3).state_dict()
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'a.pth')
    for name in ('a.safetensors', 'a.pth'):
        assert torch.equal(read_checkpoint(tmp_path / name)['state_dict']['weight'], state['weight'])
    (tmp_path / 'a.safetensors').write_bytes((tmp_path / 'a.safetensors').read_bytes()[:50])
    with pytest.raises(UserError, match='a.safetensors cannot be read'):
        read_checkpoint(tmp_path / 'a.safetensors')


WEIGHTS = {'weight': torch.ones(2, 3), 'bias': torch.zeros(2)}
OTHERS = {'weight': torch.zeros(2, 3), 'bias': torch.zeros(2)}
WRAPPED = {f'module.{name}': value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize('content', [
    {'state_dict': WEIGHTS, 'args': Namespace(model='resnet50')},
    {'model': WEIGHTS},
    {'model': WRAPPED, 'optimizer': {}, 'epoch': 3, 'args': Namespace(model='resnet50')},
    {'state_dict': OTHERS, 'state_dict_ema': WEIGHTS},
    {'model': OTHERS, 'model_ema': WRAPPED | {'n_averaged': torch.tensor(3)}, 'lr_scheduler': {}},
    {'model_ema': WEIGHTS},
    {'state_dict_ema': WEIGHTS, 'state_dict': None},
    {'model': 'resnet50', 'state_dict': WRAPPED, 'state_dict_ema': None},
    WRAPPED,
], ids=lambda content: ' '.join(content))
def test_the_layouts_that_timm_reads_are_read(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    found, model = read_checkpoint(tmp_path / 'a.pth'), nn.Linear(3, 2)
    load_weights(model, found.get('state_dict_ema') or found['state_dict'], 'a.pth')
    assert torch.equal(model.weight, torch.ones(2, 3))
    assert not isinstance(found.get('args'), Namespace)


@pytest.mark.parametrize('content', [
    {'model': 'resnet50'}, {'state_dict': Namespace(weight=torch.ones(1))}, {'state_dict': {'weight': 'text'}},
    {'state_dict': {3: torch.ones(1)}}, {'state_dict': WEIGHTS, 'state_dict_ema': 'text'}, {'epoch': 3}, Namespace()])
def test_what_is_no_layout_of_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='a.pth'):
        read_checkpoint(tmp_path / 'a.pth')


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class EvilState(Namespace):  # a Namespace by another name
    def __setstate__(self, state):
        Path(state['path']).touch()


@pytest.mark.parametrize('hide', [
    lambda evil: evil, lambda evil: Namespace(model=evil), lambda evil: Namespace(**{'__setstate__': evil}),
    lambda evil: EvilState(path=str(evil.path)), lambda evil: {'deep': [Namespace(model=Namespace(a=[evil]))]}])
@pytest.mark.parametrize('zipped', [True, False])
def test_nothing_but_a_namespace_is_let_through(tmp_path, hide, zipped):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': WEIGHTS, 'args': hide(Evil(tmp_path / 'executed'))}, path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match='a.pth'):
        read_checkpoint(path)
    assert not (tmp_path / 'executed').exists()
    assert Namespace not in torch.serialization.get_safe_globals()  # for this file only


def test_a_part_of_a_zip_of_several_is_one_line(tmp_path):
    path = tmp_path / 'x.pth.tar'
    torch.save({'state_dict': {}}, path)
    content = bytearray(path.read_bytes())
    end = content.rindex(b'PK\x06\x06')  # the end of a large archive, whose locator says how many disks there are
    content[content.index(b'PK\x06\x07', end) + 16] = 9
    path.write_bytes(content)
    with pytest.raises(UserError, match='cannot be read'):
        read_checkpoint(path)
