import random
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, load_tool

from timm_rs.files import read_csv

tool = load_tool('scaling')
TINY = dict(layers=[1, 1, 1, 1], width=0.125, img_size=32, device='cpu', workers=0, batch_size=8, warmup_epochs=0,
            builtin_data='', model_ema=False)


@pytest.fixture
def study(tmp_path, image_folder):
    """A file of a study on three classes, written with changes, and the options that name its folder."""
    path = tmp_path / 'study.yaml'
    content = dict(recipe='quickstart', base=TINY | dict(data_dir=str(image_folder), epochs=1), axes=dict(width=[0.25]))

    def write(**changes):
        path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
        return [str(path), '--output', str(tmp_path / 'out')]
    return write


@pytest.fixture
def call(capsys):
    def run(*argv):
        code = 0
        try:
            tool.main(list(map(str, argv)))
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return run


@pytest.mark.long
def test_a_study_goes_on_past_points_that_fail_and_trains_nothing_twice(study, call, tmp_path):
    arguments = study(axes=dict(width=[0.25, 0.01], aa=['nonsense']))
    code, out, err = call('run', *arguments, '--at-once', 2)
    assert code == 1 and 'left out: w0.01-' in err and 'width=0.01 leaves layers without channels' in err
    assert 'aa_nonsense-s42 failed with exit code 2; the end of ' in out and '\n  error: ' in out
    assert '2 of 4 runs are finished: ' in out
    results = tmp_path / 'out/results.csv'
    rows, before = read_csv(results), results.read_bytes()
    assert [(row['series'], row['width']) for row in rows] == [('width+aa', '0.125'), ('width', '0.25')]
    assert all(float(row['eval_top1']) >= 0 and row['eval_images'] == '15' for row in rows)

    # Once more: what is finished is left alone, and the others fail again
    logs = {path: path.read_bytes() for path in (tmp_path / f'out/runs/{row["run"]}.log' for row in rows)}
    code, out, err = call('run', *arguments)
    assert code == 1 and out.startswith('2 of 4 runs are finished; ')
    assert all(path.read_bytes() == said for path, said in logs.items())
    assert results.read_bytes() == before

    # The study without them, and with another seed: a line for each unfinished run, which is a command
    code, out, err = call('run', *study(seeds=[42, 43]), '--commands')
    assert code == 0 and len(out.splitlines()) == 4  # without the axis aa, runs have other names
    assert '2 runs' in err and 'belong to no point of the study' in err
    command = shlex.split(out.splitlines()[0])
    assert subprocess.run([*command, '--show'], capture_output=True, cwd=tmp_path, check=True).stdout
    assert not (tmp_path / 'out/runs' / command[command.index('--experiment') + 1]).exists()


@pytest.mark.slow
def test_a_point_whose_recipe_has_changed_is_reported_and_not_reused(study, call, tmp_path):
    arguments = study(axes={})
    assert call('run', *arguments)[0] == 0
    run, = tmp_path.glob('out/runs/*/')
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    base = yaml.safe_load((tmp_path / 'study.yaml').read_text())['base']
    code, out, err = call('run', *study(axes={}, base=base | dict(smoothing=0.2)))
    assert code == 1 and f'{run} was trained by another recipe: smoothing 0.1 -> 0.2' in err
    assert '0 of 1 runs are finished: ' in out and not read_csv(tmp_path / 'out/results.csv')
    assert before == {path: path.stat().st_mtime_ns for path in run.iterdir()}


def test_plan_prints_costs_and_writes_recipes(study, call, tmp_path):
    code, out, err = call('plan', *study(), '--flops-per-second', '1e9')
    lines = out.splitlines()
    assert code == 0 and lines[0].split()[:3] == ['run', 'series', 'GMACs']
    assert [line.split()[0] for line in lines[1:3]] == ['w0.125-l1.1.1.1-i32-e1-s42', 'w0.25-l1.1.1.1-i32-e1-s42']
    assert 'hours one after the other' in lines[3] and lines[3].startswith('2 runs, ')
    assert len(list(tmp_path.glob('out/recipes/*.yaml'))) == 2 and not (tmp_path / 'out/runs').exists()
    (tmp_path / 'out/step_ms.csv').write_text('width,step_ms\n0.25,3600000\n')
    assert call('plan', *study())[1].splitlines()[2].split()[-1] == '3'  # updates of an hour each


@pytest.mark.parametrize(('changes', 'options', 'words'), [
    (dict(axes=dict(width=[0.01])), (), 'width=0.01 leaves layers without channels'),
    (dict(axis={}), (), 'unknown key axis. Did you mean axes?'),
    ({}, ('--flops-per-second', '0'), '--flops-per-second must be a positive number'),
    ({}, ('--data-dir', 'nowhere'), 'data folder nowhere does not exist')])
def test_what_cannot_be_planned_is_one_line(study, call, changes, options, words):
    code, _, err = call('plan', *study(**changes), *options)
    assert code == 2 and words in err and err.count('error: ') == 1 and 'Traceback' not in err


# ---- a whole study, killed ----------------------------------------------------------------------------------------

class Driver:
    def __init__(self, study, output, *options):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / 'tools/scaling.py', 'run', study, '--output', output, '--at-once', '2', *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=study.parent)

    def end(self, number=None):
        """Its exit code and what it said, after a signal if there is one."""
        if number:
            self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=600)
        return self.process.returncode, said


def updates(output):
    """How many updates each run has reported, by its log."""
    return {path.stem: path.read_text().count('  update ') for path in output.glob('runs/*.log')}


@pytest.fixture
def digits(tmp_path):
    """The file of a study of six runs of two epochs on digits."""
    base = TINY | dict(builtin_data='digits', batch_size=64, log_interval=1, recovery_interval=1)
    path = tmp_path / 'digits.yaml'
    path.write_text(yaml.safe_dump(dict(
        recipe='quickstart', base=base, axes=dict(layers=[[2, 1, 1, 1]], width=[0.25]), regimes=dict(epochs=[2]),
        seeds=[1, 2])))
    return path


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('engine', ['here', 'ray'])
def test_a_study_that_is_stopped_and_killed_ends_like_one_that_was_not(digits, tmp_path, engine):
    if engine == 'ray':
        pytest.importorskip('ray', reason="pip install 'timm_rs[ray]' for the engine ray")
    whole, part, rng = tmp_path / 'whole', tmp_path / 'part', random.Random(0)
    code, said = Driver(digits, whole).end()
    assert code == 0 and '6 of 6 runs are finished: ' in said, said
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = sum(updates(part).values())
        driver = Driver(digits, part, '--engine', engine)
        while sum(updates(part).values()) < before + 10 and driver.process.poll() is None:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 2))
        code, said = driver.end(number)
        assert code == expected, said
    code, said = Driver(digits, part, '--engine', engine).end()
    assert code == 0, said
    assert (part / 'results.csv').read_bytes() == (whole / 'results.csv').read_bytes()
    assert len(read_csv(whole / 'results.csv')) == 6


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_two_drivers_at_once_train_nothing_twice(digits, tmp_path):
    output = tmp_path / 'out'
    drivers = [Driver(digits, output) for _ in range(2)]
    assert [driver.end()[0] for driver in drivers] == [0, 0]
    assert len(read_csv(output / 'results.csv')) == 6
    assert updates(output) == dict.fromkeys(updates(output), 44)  # two epochs of 22, once
