"""Training with torch_xla: one compilation, no transfers within an interval, the same results as on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from annotated_trees import write_depth, write_voc
from conftest import ROOT, write_images, write_pseudo
from test_resume import assert_same_run

from timm_rs.programs import train
from timm_rs.training.runlog import Progress

pytestmark = [pytest.mark.xla, pytest.mark.timeout(900)]
SMALL = ['--model', 'resnetrs', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--img-size', '32',
         '--workers', '0', '--epochs', '2', '--warmup-epochs', '0', '--checkpoint-interval-minutes', '0']
HARD = ['--drop', '0.2', '--drop-path', '0.1', '--mixup', '0.2', '--cutmix', '1.0', '--mixup-prob', '0.8', '--reprob',
        '0.5', '--aa', 'rand-m9-n2', '--model-ema', '--model-ema-warmup', '--clip-grad', '1.0', '--amp', '--amp-dtype',
        'bfloat16', '--lr', '1.0', '--warmup-epochs', '1', '--warmup-lr', '0', '--sched-on-updates',
        '--cooldown-epochs', '1', '--log-interval', '3', '--recovery-interval', '4']
# Smooth activations: at the kink of a ReLU rounding becomes a difference. Dropout would draw on the device.
CURVE = ['--recipe', 'train_recipes/quickstart.yaml', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125',
         'act_layer=silu', '--img-size', '32', '--epochs', '3', '--lr', '0.02', '--drop', '0', '--workers', '0',
         '--val-split', '', '--log-interval', '1', '--bn-group-size', '16']


@pytest.fixture(scope='module', autouse=True)
def torch_xla():
    pytest.importorskip('torch_xla', reason='needs torch_xla, and the torch that goes with it', exc_type=ImportError)


def batch(num_devices: int, num_images: int = 8) -> list[str]:
    return ['--batch-size', str(num_images // num_devices)]


def train_on_xla(output: Path, num_devices: int, **scenarios: list) -> dict[str, list[dict]]:
    """The results of tests/program/xla_program.py, with its runs below `output`."""
    runs = {name: [([*map(str, argv), '--device', 'xla', '--output', str(output)], stop_after)
                   for argv, stop_after in runs] for name, runs in scenarios.items()}
    environment = os.environ | dict(CPU_NUM_DEVICES=str(num_devices), PYTHONPATH=str(ROOT))
    ended = subprocess.run(
        [sys.executable, 'tests/program/xla_program.py', output / 'results.json'], cwd=ROOT, env=environment,
        input=json.dumps(runs), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return json.loads((output / 'results.json').read_text())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Three classes, 20 training and 7 validation images each: 7 batches of 8 and the rest, 2 and the rest."""
    folder = tmp_path_factory.mktemp('images')
    for split, count in (('train', 20), ('validation', 7)):
        write_images(folder / split, dict.fromkeys(('cat', 'dog', 'eel'), count), size=40, seed=count)
    return ['--data-dir', str(folder)]


@pytest.fixture(scope='module')
def on_one(data, tmp_path_factory):
    """Results of one device."""
    small = [*SMALL, *HARD, *data, *batch(1), '--grad-accum-steps', '2', '--grad-checkpointing', '--log-interval', '1']
    return train_on_xla(tmp_path_factory.mktemp('one'), 1, curve=[([*CURVE, *batch(1, 64)], 0)],
                        accumulate=[(small, 0)])


@pytest.fixture(scope='module')
def on_four(data, tmp_path_factory):
    """Results of four devices, and the folder with the runs."""
    output = tmp_path_factory.mktemp('four')
    small = [*SMALL, '--model-ema', *data]
    train.main([*small, *batch(1), '--device', 'cpu', '--epochs', '1', '--output', str(output),
                '--experiment', 'from_cpu'])
    hard = [*SMALL, *HARD, *data, *batch(4)]
    part = [*hard, '--experiment', 'part', '--resume', 'auto']
    return train_on_xla(
        output, 4, curve=[([*CURVE, *batch(4, 64)], 0)],
        resume=[([*hard, '--experiment', 'whole'], 0), (part, 3), (part, 9), (part, 0)],
        both_ways=[([*small, *batch(4), '--experiment', 'from_cpu', '--resume', 'auto',
                     '--allow-recipe-change'], 0),
                   ([*small, *batch(4), '--experiment', 'to_cpu'], 4)]), output


def assert_static(run: dict, lag: int = 2) -> None:
    """Nothing compiled after the first update and batch of evaluation; nothing read but reports, `lag` updates late."""
    updates, batches = run['updates'], run['batches']
    assert run['code'] == 0 and len(updates) > 5 and len(batches) > 5
    assert run['added']['on_host'] == 0
    assert sum(update['compiled'] for update in updates[1:]) == 0
    assert sum(batch['compiled'] for batch in batches[1:]) == 0
    assert sum(batch['read'] for batch in batches) <= len(batches) // 3  # the totals, once in three batches
    due = [0] * lag + [2 * update['reported'] for update in updates]  # a report is two tensors
    assert all(update['read'] <= allowed for update, allowed in zip(updates, due, strict=False))
    assert any(update['read'] for update in updates)


def test_after_the_first_update_nothing_compiles_and_nothing_is_read_between_reports(on_four):
    """Rates from 0 over 1 to 0, averaging's ramp, dropout, mixing, erasing, clipping, several evaluations, recovery."""
    assert_static(on_four[0]['resume'][0])


@pytest.mark.parametrize('model', ['resnetrs_50', 'efficientnet_rs_b4'])
def test_steps_of_whole_networks_compile_once(data, tmp_path, model):
    small = ['--model', model, '--img-size', '32', '--workers', '0', '--epochs', '1', *HARD, *data, *batch(1),
             '--warmup-epochs', '0', '--cooldown-epochs', '0', '--recovery-interval', '0']  # a checkpoint reads reports
    run, = train_on_xla(tmp_path, 1, step=[(small, 0)])['step']
    assert_static(run)
    assert run['dtypes'] == ['torch.bfloat16']


def test_pseudo_labels_go_with_the_same_graph(data, tmp_path):
    write_images(tmp_path / 'pool', {'.': 30}, size=40, seed=1)
    pseudo = ['--pseudo-dir', str(write_pseudo(tmp_path / 'P', tmp_path / 'pool')), '--epochs', '1']
    run, = train_on_xla(tmp_path, 4, step=[([*SMALL, *HARD, *data, *pseudo, '--batch-size', '4', '--warmup-epochs', '0',
                                             '--cooldown-epochs', '0', '--recovery-interval', '0'], 0)])['step']
    assert run['code'] == 0 and len(run['updates']) == 60 * 4 // 16
    assert run['added']['on_host'] == 0 and not any(update['compiled'] for update in run['updates'][1:])


def test_windows_of_any_length_share_their_graphs(on_one):
    run, = on_one['accumulate']
    assert_static(run, lag=1)  # two batches later, which is within the next update


def test_batch_norm_does_not_drag_the_residual_stream_to_float32(on_four):
    assert {tuple(run['dtypes']) for run in on_four[0]['resume']} == {('torch.bfloat16',)}


def test_stopped_and_resumed_is_the_same_to_the_bit(on_four):
    results, output = on_four
    whole, *parts = results['resume']
    assert [run['code'] for run in parts] == [143, 143, 0]
    # Loading has a small graph of its own; the step and the evaluation are those of the run before.
    assert not any(step['compiled'] for run in parts for step in (*run['updates'], *run['batches']))
    assert_same_run(output / 'whole', output / 'part')


def test_the_loss_curve_is_that_of_the_cpu(on_one, on_four, tmp_path, monkeypatch):
    losses = []
    monkeypatch.setattr(Progress, 'report', lambda progress, update, loss, *rest: losses.append(loss))
    train.main([*CURVE, *batch(1, 64), '--device', 'cpu', '--output', str(tmp_path)])
    for run in (on_one['curve'][0], on_four[0]['curve'][0]):
        assert len(losses) == len(run['losses']) >= 50
        assert max(abs(ours - theirs) for ours, theirs in zip(losses[:50], run['losses'][:50], strict=True)) < 1e-4
    assert losses[49] < losses[0] - 0.5


def test_checkpoints_go_from_the_cpu_to_xla_and_back(on_four, data, capsys):
    results, output = on_four
    from_cpu, to_cpu = results['both_ways']
    assert (from_cpu['code'], to_cpu['code']) == (0, 143)
    assert len((output / 'from_cpu/summary.csv').read_text().splitlines()) == 3  # the CPU's epoch and XLA's
    train.main([*SMALL, '--model-ema', *data, *batch(1), '--device', 'cpu', '--output', str(output), '--experiment',
                'to_cpu', '--resume', 'auto'])
    assert 'resuming from' in capsys.readouterr().out
    last = torch.load(output / 'to_cpu/last.pth.tar', weights_only=True)
    assert last['place']['update'] == 14 and all(value.device.type == 'cpu' for value in last['state_dict'].values())


def run_program(data: list[str], output: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """train.py on two XLA devices, as from the command line."""
    return subprocess.run(
        [sys.executable, 'train.py', *SMALL, *data, *batch(2), '--device', 'xla', '--output', output, *arguments],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | dict(PJRT_DEVICE='CPU', CPU_NUM_DEVICES='2', XLA_FLAGS='--xla_backend_optimization_level=0')
        | environment)


@pytest.mark.parametrize(('arguments', 'environment', 'message'), [
    (['--amp'], {}, 'bfloat16'),
    (['--torchcompile', 'inductor'], {}, 'torchcompile'),
    (['--loader', 'timm'], {}, 'loader'),
    (['--bn-group-size', '3'], {}, 'bn_group_size 3'),
    ([], {'WORLD_SIZE': '2'}, 'without torchrun'),
    ([], {'PJRT_DEVICE': 'TPU'}, 'PJRT_DEVICE'),
], ids=['float16', 'torch.compile', 'loader', 'groups', 'torchrun', 'no TPU'])
def test_what_xla_cannot_do_is_one_line(data, tmp_path, arguments, environment, message):
    ended = run_program(data, tmp_path, *arguments, **environment)
    assert ended.returncode == 2
    error = ended.stderr.strip().splitlines()[-1]
    assert error.startswith('error: ') and message in error
    assert 'Traceback' not in ended.stderr


def test_metrics_are_shown_at_the_end_and_the_cache_has_its_folder(data, tmp_path):
    cache = tmp_path / 'cache'
    ended = run_program(data, tmp_path, '--epochs', '1', '--show-xla-metrics', '--compile-cache', str(cache))
    assert ended.returncode == 0, ended.stderr
    assert 'graphs compiled' in ended.stdout and 'operations on the host: none' in ended.stdout
    assert any(path.is_file() for path in cache.rglob('*'))


@pytest.mark.parametrize(('name', 'layout', 'write'), [
    ('segmentation', 'voc', write_voc), ('depth', 'depth_folders', write_depth)])
def test_tasks_with_an_answer_for_every_pixel_compile_once(tmp_path, name, layout, write):
    task = ['--task', name, '--dataset', layout, '--data-dir', write(tmp_path / 'data', num_train=28, num_val=22),
            '--decoder', 'fused', '--pyramid-channels', '8', '--head-convs', '1', '--scale-jitter', '0.5', '2', '--amp',
            '--amp-dtype', 'bfloat16', '--model-ema', '--clip-grad', '1', '--label-size', '64']
    run, = train_on_xla(tmp_path, 1, step=[([*SMALL, *task, '--batch-size', '4', '--log-interval', '3', '--lr', '0.1',
                                             '--sched-on-updates'], 0)])['step']
    assert_static(run)
    assert run['dtypes'] == ['torch.bfloat16']
    assert run['losses'][-1] < run['losses'][0]
