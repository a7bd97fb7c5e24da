"""Rows of the summary in the files of the real packages, read back: each once, whatever happened in between."""

import builtins
import csv
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, assert_equal

from timm_rs.errors import UserError
from timm_rs.recipe.knobs import FIELDS, Recipe
from timm_rs.training import trackers as tracking
from timm_rs.training.trackers import IDS, KINDS, Trackers, open_trackers

# What these packages do at import is not ours.
pytestmark = [pytest.mark.filterwarnings('ignore::DeprecationWarning'),
              pytest.mark.filterwarnings('ignore::ResourceWarning'),
              pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')]
ROWS = [{'epoch': epoch, 'train_loss': 2.5 - epoch, 'eval_top1': 12.5 * epoch, 'eval_loss': '', 'lr': 0.5 ** epoch}
        for epoch in range(5)]
THERE = [name for name in KINDS if importlib.util.find_spec(name)]  # trackio does not take as new a Pillow as ours
CHILD = """
import json, os, signal, sys
from pathlib import Path
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.trackers import Trackers, open_trackers
folder, rows = Path(sys.argv[1]), json.loads(sys.argv[3])
trackers = Trackers()
open_trackers(Recipe(log_to=json.loads(sys.argv[2])), folder, [], trackers)
for number in range(len(rows)):
    trackers.update(rows[:number + 1])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """All that the packages write stays below tmp_path, and they ask no network."""
    for name, value in dict(
            WANDB_MODE='offline', WANDB_SILENT='true', TRACKIO_DIR=str(tmp_path / 'trackio'),
            MLFLOW_TRACKING_URI=f'file://{tmp_path}/mlruns', MLFLOW_ALLOW_FILE_STORE='true').items():
        monkeypatch.setenv(name, value)
    if 'trackio' in sys.modules:  # which reads it when it is imported
        from trackio import utils
        monkeypatch.setattr(utils, 'TRACKIO_DIR', tmp_path / 'trackio')
    folder = tmp_path / 'runs/a'
    folder.mkdir(parents=True)
    return folder


# ---- reading back -----------------------------------------------------------------------------------------------

def from_tensorboard(folder, _):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return scalars(EventAccumulator(str(folder / 'tensorboard')))


def scalars(events):
    events.Reload()
    return [(event.step, name, event.value) for name in events.Tags()['scalars'] for event in events.Scalars(name)]


def from_wandb(folder, id):
    """What the newest folder for `wandb sync` has: records of protobuf in blocks of LevelDB's log.

    Newest by its name, with the second, and a number behind the id where there are two: what a killed run has left may
    still be written to.
    """
    from wandb.proto.wandb_internal_pb2 import Record
    newest = max(folder.glob(f'wandb/offline-run-*-{id}*'), key=lambda path: (
        path.name.split('-')[2], int(path.name.partition(f'{id}-')[2] or 0)))
    [data] = [path.read_bytes() for path in newest.glob('*.wandb')]
    place, whole, found = 7, b'', []
    while place + 7 <= len(data):
        if (1 << 15) - place % (1 << 15) < 7:
            place += (1 << 15) - place % (1 << 15)
        _, length, kind = struct.unpack('<IHB', data[place:place + 7])
        whole += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or the last part of one
            record, whole = Record.FromString(whole), b''
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found += [(items['_step'], name, value) for name, value in items.items() if name[0] != '_']
            assert not record.HasField('run') or record.run.run_id == id
    return [item for item in found if item[1] != 'epoch']


def from_trackio(_, id):
    from trackio import SQLiteStorage
    return [(row['step'], name, value) for row in SQLiteStorage.get_logs('timm_rs', id)
            for name, value in row.items() if name not in ('step', 'epoch', 'timestamp')]


def from_mlflow(_, id):
    import mlflow
    client = mlflow.MlflowClient()
    return [(metric.step, name, metric.value) for name in client.get_run(id).data.metrics
            for metric in client.get_metric_history(id, name)]


READ = dict(tensorboard=from_tensorboard, wandb=from_wandb, trackio=from_trackio, mlflow=from_mlflow)


def assert_holds(folder, name, rows):
    """Every number of every row is there, and once."""
    ids = json.loads((folder / IDS).read_text())
    expected = sorted((int(row['epoch']), column, float(value)) for row in rows for column, value in row.items()
                      if column != 'epoch' and value != '')
    found = sorted(READ[name](folder, ids[name]))
    assert [item[:2] for item in found] == [item[:2] for item in expected]
    assert [item[2] for item in found] == pytest.approx([item[2] for item in expected], rel=1e-6)


def opened(folder, rows, *names, **values):
    trackers = Trackers()
    open_trackers(Recipe(log_to=list(names), **values), folder, rows, trackers)
    return trackers


# ---- each alone -------------------------------------------------------------------------------------------------

def test_every_tracker_of_the_recipe_is_there_and_read_back():
    assert tuple(KINDS) == tuple(READ) == FIELDS['log_to'].metadata['choices']


def test_starts_within_one_second_are_told_apart(here, monkeypatch):
    if 'tensorboard' in THERE:  # whose files have a number at the end of their names: 10 comes before 9
        from tensorboard.summary.writer import event_file_writer
        monkeypatch.setattr(event_file_writer, '_global_uid', event_file_writer.AtomicCounter(8))
    for count in range(1, 6):
        opened(here, ROWS[:count], *THERE).close(failed=True)
        for name in THERE:
            assert_holds(here, name, ROWS[:count])


def test_a_killed_run_goes_on_with_its_curves_and_each_point_is_there_once(here):
    # Not through the service of this process, which would take a while to see that the other has died.
    environment = {name: value for name, value in os.environ.items() if name != 'WANDB_SERVICE'}
    dead = subprocess.run([sys.executable, '-c', CHILD, str(here), json.dumps(THERE), json.dumps(ROWS[:2])], cwd=ROOT,
                          capture_output=True, text=True, env=environment)
    assert dead.returncode == -9, dead.stderr
    ids = (here / IDS).read_text()
    trackers = opened(here, ROWS[:3], *THERE)  # one more than it was told of: the kill came before that
    trackers.update(ROWS[:4])
    trackers.close(failed=True)
    assert (here / IDS).read_text() == ids
    for name in THERE:
        assert_holds(here, name, ROWS[:4])
    trackers = opened(here, ROWS[:3], *THERE)  # from the checkpoint before: an epoch is trained again
    for count in (4, 5, 5):
        trackers.update(ROWS[:count])
    trackers.close(failed=False)
    for name in THERE:
        assert_holds(here, name, ROWS)


def test_a_tensorboard_that_watches_sees_no_point_twice(here):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    first = opened(here, ROWS[:3], 'tensorboard')
    watching = event_accumulator.EventAccumulator(str(here / 'tensorboard'))
    assert len(scalars(watching)) == 9
    opened(here, ROWS[:2], 'tensorboard').update(ROWS[:4])
    first.close(failed=True)
    assert sorted(scalars(watching)) == sorted(from_tensorboard(here, ''))
    assert len(scalars(watching)) == 12


def test_the_id_that_wandb_is_given_is_kept(here):
    pytest.importorskip('wandb')
    opened(here, [], 'wandb', wandb_resume_id='abc123').close(failed=False)
    assert json.loads((here / IDS).read_text()) == {'wandb': 'abc123'}


def test_two_runs_of_one_name_have_curves_of_their_own(here):
    pytest.importorskip('trackio')
    other = here.parents[1] / 'b/a'
    other.mkdir(parents=True)
    for folder, rows in ((here, ROWS[:2]), (other, ROWS[2:4])):
        opened(folder, rows, 'trackio').close(failed=False)
    assert_holds(here, 'trackio', ROWS[:2])
    assert_holds(other, 'trackio', ROWS[2:4])


# ---- what goes wrong --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'module'), [
    ('tensorboard', 'torch.utils.tensorboard'), ('wandb', 'wandb'), ('trackio', 'trackio'), ('mlflow', 'mlflow')])
def test_a_package_that_is_missing_is_one_line(here, monkeypatch, name, module):
    genuine = builtins.__import__

    def importing(wanted, *arguments, **options):
        if wanted == module:
            raise ModuleNotFoundError(f'No module named {module!r}')
        return genuine(wanted, *arguments, **options)
    monkeypatch.setattr(builtins, '__import__', importing)
    for rows in ([], ROWS):
        with pytest.raises(UserError, match=f'log_to {name} needs a package that is not installed: pip install {name}'):
            opened(here, rows, name)


class Fragile:
    """A tracker that draws random numbers, and fails at its `fails_at`th call."""

    id, last, calls, fails_at = 'x', -1, 0, 99

    def __init__(self, about=None):
        self.call()

    def call(self, *_, **__):
        random.random()
        torch.rand(1)
        type(self).calls += 1
        if self.calls >= self.fails_at:
            raise OSError(28, 'No space left on device')

    log = close = call


@pytest.fixture
def fragile(monkeypatch):
    monkeypatch.setitem(KINDS, 'mlflow', Fragile)
    monkeypatch.setattr(Fragile, 'calls', 0)
    return Fragile


def test_one_that_cannot_be_used_is_an_error_at_the_beginning_and_a_warning_later(here, fragile, monkeypatch, capsys):
    monkeypatch.setattr(fragile, 'fails_at', 1)
    with pytest.raises(UserError, match='log_to mlflow cannot be used: .*No space left'):
        opened(here, [], 'mlflow')
    assert opened(here, ROWS, 'mlflow').open == {}
    assert capsys.readouterr().out.count('warning: mlflow cannot be used') == 1


def test_ids_that_cannot_be_written_are_one_line(here, fragile, monkeypatch):
    def full(path):
        raise OSError(28, 'No space left on device', str(path))
    monkeypatch.setattr(tracking, 'atomic_write', full)
    with pytest.raises(UserError, match=f'{IDS} cannot be used: No space left on device'):
        opened(here, [], 'mlflow')
    assert fragile.calls == 2  # made, and closed


@pytest.mark.parametrize('fails_at', [99, 2, 4])
def test_a_tracker_changes_nothing_of_the_training_also_when_it_fails(
        run, image_folder, tmp_path, fragile, monkeypatch, fails_at):
    monkeypatch.setattr(fragile, 'fails_at', fails_at)
    arguments = [*TINY, '--data-dir', image_folder, '--drop', '0.5', '--aa', 'rand-m9-n2']
    assert run(*arguments, '--experiment', 'plain').code == 0
    logged = run(*arguments, '--experiment', 'logged', '--log-to', 'mlflow')
    assert logged.code == 0
    assert logged.out.count('warning: mlflow takes no more of this run') == (fails_at < 99)
    first, second = (torch.load(tmp_path / f'runs/{name}/last.pth.tar', weights_only=True)
                     for name in ('plain', 'logged'))
    for key in ('state_dict', 'optimizer', 'processes'):
        assert_equal(first[key], second[key], key)


# ---- whole runs -------------------------------------------------------------------------------------------------

def test_a_run_that_was_stopped_and_continued_is_one_curve_everywhere(run, image_folder, here, monkeypatch):
    arguments = [*TINY, '--data-dir', image_folder, '--epochs', 3, '--experiment', 'a', '--resume', 'auto', '--log-to',
                 *THERE]
    update, counts = Trackers.update, []

    def killed(self, rows):
        counts.append(len(rows))
        if len(rows) == 2:
            raise KeyboardInterrupt  # between the checkpoint and the trackers
        update(self, rows)
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Trackers, 'update', killed)
        assert run(*arguments).code == 130 and counts == [0, 1, 2]
    result = run(*arguments)
    assert result.code == 0 and 'resuming from' in result.out, result.err
    with open(here / 'summary.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for name in THERE:
        assert_holds(here, name, rows)
