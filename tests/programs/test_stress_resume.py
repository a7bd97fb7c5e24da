import csv
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, failure, load_tool


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(tmp_path):
    command = [sys.executable, ROOT / 'tools/stress_resume.py', '--trials', '10', '--csv', tmp_path / 'trials.csv']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == '10 of 10 equal'
    with open(tmp_path / 'trials.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['processes'] for row in rows] == 5 * ['1', '2'] and all(int(row['kills']) for row in rows)


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
