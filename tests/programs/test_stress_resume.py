"""Runs that are killed in the worst ways and continued; packing and pulling, too, at each of their file operations."""

import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, failure, load_tool, write_images
from timm.data import create_dataset

from timm_rs.data.samples import TimmSamples
from timm_rs.data.shards.packing import pack
from timm_rs.programs.stress_resume import count_operations
from timm_rs.publish.pull import pull


@pytest.mark.stress
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(('trials', 'options'), [
    (10, ['--seed', '1']), (10, ['--kinds', 'pseudo']), (6, ['--kinds', 'segmentation', 'depth']),
    (6, ['--kinds', 'faster_rcnn', 'retinanet']), (6, ['--kinds', 'videos', 'frames'])],
    ids=['all kinds', 'pseudo labels', 'pixels', 'boxes', 'videos'])
def test_disturbed_runs_end_as_if_they_had_not_been(tmp_path, trials, options):
    command = [sys.executable, ROOT / 'tools/stress_resume.py', '--trials', str(trials), '--csv',
               tmp_path / 'trials.csv']
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f'{trials} of {trials} equal'
    with open(tmp_path / 'trials.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['processes'] for row in rows] == trials // 2 * ['1', '2'] and all(row['hits'] for row in rows)


def exit_code(task, record, fatal=None):
    """That of a process which does `task`, and dies at its file operation `fatal`."""
    pid = os.fork()
    if not pid:
        count_operations(record, fatal)
        try:
            task()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_everywhere(task, clear, record):
    """Do `task` again and again, each time killed at the next place, and after each do it once undisturbed."""
    for fatal in itertools.count():
        clear()
        code = exit_code(task, record, fatal)
        if not code:
            assert fatal == 2 * record.stat().st_size > 10
            return
        assert code == -signal.SIGKILL
        assert exit_code(task, record) == 0, fatal
        yield fatal


def content(folder):
    """Names and bytes, but for those of the index, which has the times of the shards."""
    return {str(path.relative_to(folder)): b'' if path.name == 'train-index.npz' else path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@pytest.mark.stress
def test_packing_killed_at_any_file_operation_goes_on_to_the_same_files(tmp_path):
    write_images(tmp_path / 'images', dict(cat=4, dog=5))
    samples = TimmSamples(create_dataset('', root=str(tmp_path / 'images')))
    pack(samples, tmp_path / 'whole', 'train', num_shards=2)
    whole = content(tmp_path / 'whole')
    for fatal in killed_everywhere(lambda: pack(samples, tmp_path / 'part', 'train', num_shards=2),
                                   lambda: shutil.rmtree(tmp_path / 'part', ignore_errors=True), tmp_path / 'record'):
        assert content(tmp_path / 'part') == whole, fatal


@pytest.mark.stress
def test_a_pull_killed_at_any_file_operation_goes_on_to_the_same_files(hub, tmp_path):
    files = {'config.json': b'{"architecture": "resnet18"}', 'model.safetensors': os.urandom(200_000), 'a/b.txt': b''}
    hub.add('me/model', files)

    def clear():
        for folder in ('pulled', 'cache'):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)

    def bring():  # what is there is whole, and never pulled over
        (tmp_path / 'pulled').exists() or pull('me/model', tmp_path / 'pulled')

    pull('me/model', tmp_path / 'whole')
    for fatal in killed_everywhere(bring, clear, tmp_path / 'record'):
        assert content(tmp_path / 'pulled') == content(tmp_path / 'whole'), fatal
        assert not list(tmp_path.glob('.*')), fatal


def test_what_differs_is_found_by_its_place():
    difference = load_tool('stress_resume').first_difference
    first = {'a': [1, {'b': torch.tensor([1.0, 2.0])}], 'c': 'x'}
    assert difference(first, {'a': [1, {'b': torch.tensor([1.0, 2.0])}], 'c': 'x'}) is None
    assert difference(first, {'a': [1, {'b': torch.tensor([1.0, 2.0000002])}], 'c': 'x'}).split() == ['a', '1', 'b']
    assert difference(first, first | {'c': 'y'}).split() == ['c']
    assert difference(first, {'a': first['a'], 'd': 'x'}).split() == ['c']
    assert difference(first, {'a': first['a']})


def test_no_trials_are_refused(capsys):
    assert '--trials: must be at least 1, got 0' in failure(load_tool('stress_resume'), capsys, '--trials', 0)
