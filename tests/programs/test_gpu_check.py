import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, failure, load_tool
from forks import ForkedPython

from timm_rs.benchmark import gpu_check
from timm_rs.benchmark.gpu_check import OUR_LINE, SETUPS, TIMMS_LINE, Part, Settings, Verdict, check, link_photos
from timm_rs.benchmark.step_process import check_setup

tool = load_tool('gpu_check')
SLEEPS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); '
                                                'print("deaf", flush=True); time.sleep(60)'], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_without_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'CHECKOUT', tmp_path)
    assert 'a checkout of timm_rs' in failure(tool, capsys, '--dry-run')


def test_a_part_that_fails_or_takes_too_long_prevents_no_other(tmp_path, monkeypatch, capsys):
    def sleeps(settings, shell):
        return shell.python('-c', SLEEPS).lines[0][1]

    def breaks(settings, shell):
        raise OSError('no space')

    def is_skipped(settings, shell):
        raise Verdict('skipped', 'no GPU')
    monkeypatch.setattr(gpu_check, 'PARTS', dict(
        a=Part(1, 'a', lambda settings, shell: f'code {shell.python("-c", "raise SystemExit(3)").code}'),
        b=Part(4, 'b', sleeps), c=Part(1, 'c', breaks), d=Part(1, 'd', is_skipped),
        e=Part(9, 'e', lambda settings, shell: shell.python('-c', 'print("fine")').lines[0][1])))
    monkeypatch.setattr('timm_rs.benchmark.timed_commands.GRACE_S', 0.2)
    settings = Settings(tmp_path, tmp_path, 0.2, True, None)
    assert not check(settings, ['a', 'b', 'c', 'd', 'e'])
    rows = read_rows(tmp_path / 'checks.csv')
    assert [row['status'] for row in rows] == ['failed', 'cut off', 'failed', 'skipped', 'ok']
    assert [rows[index]['found'] for index in (0, 2, 3, 4)] == ['code 3', 'OSError: no space', 'no GPU', 'fine']
    assert not is_running(int(rows[1]['found']))  # a child of the child that hears no SIGTERM
    assert all(row['hardware'] and row['versions'] and row['commit'] for row in rows)
    log = (tmp_path / 'log.txt').read_text()
    assert '(its time was up)' in log and log.endswith('  fine\n')
    out = capsys.readouterr().out
    assert 'part a, a: at most 1 s; all end in at most 12 s' in out and '\nb    cut off' in out
    assert check(settings, ['b', 'd', 'e'])  # cut off after it found something


def test_time_that_a_part_leaves_goes_to_the_later_ones(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(gpu_check, 'PARTS', {name: Part(1, name, lambda _, shell: limits.append(shell.left()) or 'x')
                                             for name in 'abc'})
    assert check(Settings(tmp_path, tmp_path, 1, True, None), ['a', 'b', 'c'])
    assert limits == pytest.approx([20, 30, 60], abs=5) and limits[0] <= 20


def test_a_part_that_is_cut_off_before_it_finds_anything_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, 'PARTS', dict(
        a=Part(1, 'a', lambda _, shell: shell.python('-c', 'import time; time.sleep(60)') and '')))
    assert not check(Settings(tmp_path, tmp_path, 0.005, True, None), ['a'])
    assert read_rows(tmp_path / 'checks.csv')[0]['status'] == 'cut off'


def test_sigterm_ends_the_children_too(tmp_path):
    program = f"""
from pathlib import Path
from timm_rs.benchmark import gpu_check
gpu_check.PARTS['a'] = gpu_check.Part(1, 'sleeps', lambda settings, shell: shell.python('-c', {SLEEPS!r}))
with gpu_check.scratch_folder() as scratch:
    gpu_check.check(gpu_check.Settings(Path({str(tmp_path)!r}), scratch, 2, True, None), ['a'])
"""
    process = ForkedPython([program], stdout=subprocess.PIPE)
    log, deadline = tmp_path / 'log.txt', time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_text().split()[-1:] and
                                               log.read_text().split()[-1].isdigit()):
        time.sleep(0.1)
    child = int(log.read_text().split()[-1])
    assert is_running(child)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and not is_running(child)


def test_lines_of_both_programs_are_understood():
    ours = OUR_LINE.search('epoch 1/2  update 5/64  loss 6.9  lr 1e-3  2431 img/s  waiting for data 12 %  ETA 0:00:09')
    assert (ours['speed'], ours['waiting']) == ('2431', '12')
    timms = TIMMS_LINE.search('Train: 0 [   5/64 ( 12%)]  Loss: 2.05 (2.05)  Time: 0.100s, 2560.13/s  '
                              '(1.122s,    7.13/s)  LR: 3.125e-03  Data: 0.025 (0.723)')
    assert (timms['speed'], timms['seconds'], timms['data']) == ('2560.13', '0.100', '0.025')


def test_photos_are_linked_into_classes(tmp_path):
    link_photos(tmp_path / 'jpegs', 2, 5)
    files = sorted((tmp_path / 'jpegs').rglob('*.jpg'))
    assert len(files) == 8 * (5 + 1) and len({path.resolve() for path in files}) == 2


def test_the_setups_of_the_step_exist_and_those_that_may_fail_are_apart():
    for setup in {setup for setups in SETUPS for setup in setups}:
        check_setup(setup, 'train')
    assert all(setups[0] == SETUPS[0][0] for setups in SETUPS) and not any('compile' in setup for setup in SETUPS[0])


@pytest.mark.parametrize(('argv', 'words'), [
    ([], 'torch sees no CUDA GPU here; --dry-run runs every part in small on the CPU'),
    (['--minutes', '0'], '--minutes must be above 0'),
    (['--parts', 'z'], "invalid choice: 'z'"),
    (['--timm-train', 'nowhere/train.py'], 'nowhere/train.py: no such file'),
    (['--dry-run', '--output', f'{__file__}/rows'], 'cannot be written: Not a directory; choose another --output'),
])
def test_bad_arguments_are_one_line(capsys, monkeypatch, argv, words):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert words in failure(tool, capsys, *argv)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_part_runs_in_small(tmp_path):
    command = [sys.executable, ROOT / 'tools/gpu_check.py', '--dry-run', '--minutes', '14', '--output', tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr + (tmp_path / 'log.txt').read_text()
    rows = read_rows(tmp_path / 'checks.csv')
    assert ''.join(row['part'] for row in rows) == 'abcdef'
    assert [row['status'] for row in rows] == ['ok'] * 6
    found = [row['found'] for row in rows]
    assert 'passed' in found[0] and found[1] == '1 of 1 trials equal' and 'x timm\'s loop' in found[2]
    for name, count in (('step', 4), ('train', 2), ('infer', 2)):
        assert len(read_rows(tmp_path / f'{name}.csv')) == count
    trainings = read_rows(tmp_path / 'end_to_end.csv')
    assert [row['data'] for row in trainings] == ['folder', 'shards']
    assert all(float(row['images_per_s_median']) > 0 and float(row['waiting_percent_median']) >= 0 for row in trainings)
    assert str(tmp_path) not in trainings[0]['run']
    assert len(list(tmp_path.iterdir())) == 6  # with log.txt
