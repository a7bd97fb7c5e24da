"""On a GPU: pytest -m cuda -n 0. TIMM_RS_CUDA_TESTS=cpu runs what also makes sense without one, to try the tests."""

import copy
import csv
import os
import signal

import pytest
import torch
import torch._dynamo
from conftest import TINY, assert_equal

from timm_rs.data.datasets import create_datasets
from timm_rs.data.loader import create_train_loader
from timm_rs.device.torch_device import Device
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.classification import Classification
from timm_rs.training import train
from timm_rs.training.build import build_training
from timm_rs.training.engine import train_updates
from timm_rs.training.runlog import Progress
from timm_rs.training.state import Position

DEVICE = os.environ.get('TIMM_RS_CUDA_TESTS', 'cuda')
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # before the first product: some tests are deterministic
pytestmark = [pytest.mark.cuda,
              pytest.mark.skipif(DEVICE == 'cuda' and not torch.cuda.is_available(), reason='needs a CUDA GPU'),
              pytest.mark.filterwarnings('ignore:This DataLoader will create:UserWarning'),
              pytest.mark.filterwarnings('ignore:.*TensorFloat32.*:UserWarning')]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
ONE = [*TINY, '--device', DEVICE, '--lr', 0.01, '--model-ema', '--model-ema-decay', 0.9, '--log-interval', 2]
OPTIMIZERS = {'sgd': [], 'adamw': ['--opt', 'adamw', '--lr', 0.001], 'rmsproptf': ['--opt', 'rmsproptf', '--lr', 0.001]}
HARD = ['--drop', 0.2, '--drop-path', 0.1, '--mixup', 0.2, '--cutmix', 1.0, '--reprob', 0.5, '--clip-grad', 1.0]


def content(folder):
    state = torch.load(folder / 'last.pth.tar', weights_only=True)
    del state['args']
    return state


def summary(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(('optimizer', 'precision'), [
    ('sgd', 'float32'), ('sgd', 'bfloat16'), ('sgd', 'float16'), ('adamw', 'float16'), ('rmsproptf', 'bfloat16')])
def test_a_gpu_learns_what_a_cpu_learns(run, image_folder, tmp_path, optimizer, precision):
    amp = ['--amp', '--amp-dtype', precision, '--channels-last'] if precision != 'float32' else []
    for name, device in (('there', DEVICE), ('here', 'cpu')):
        result = run(*ONE, *OPTIMIZERS[optimizer], '--data-dir', image_folder, '--experiment', name, '--device', device,
                     *(amp if name == 'there' else []))
        assert result.code == 0, result.err
    for row, other in zip(summary(tmp_path / 'runs/there'), summary(tmp_path / 'runs/here'), strict=True):
        assert float(row['train_loss']) == pytest.approx(float(other['train_loss']), rel=0.05)
        assert float(row['eval_raw_loss']) == pytest.approx(float(other['eval_raw_loss']), rel=0.15)
    evaluated = run(*ONE, '--data-dir', image_folder, '--eval', tmp_path / 'runs/there/last.pth.tar', *amp)
    assert evaluated.code == 0 and 'top-1' in evaluated.out


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_checkpoints_go_to_the_cpu_and_back(run, image_folder, tmp_path, optimizer):
    for epochs, device in enumerate((DEVICE, 'cpu', DEVICE), start=1):
        result = run(*ONE, *OPTIMIZERS[optimizer], '--data-dir', image_folder, '--experiment', 'a', '--resume', 'auto',
                     '--epochs', epochs, '--sched', 'constant', '--warmup-epochs', 0, '--device', device,
                     '--allow-recipe-change')
        assert result.code == 0, result.err
        state = content(tmp_path / 'runs/a')
        assert state['epoch'] == epochs - 1
        is_fused = bool(state['optimizer']['param_groups'][0].get('fused'))
        assert is_fused == (device == 'cuda' and optimizer != 'rmsproptf')


def stop_after(monkeypatch, update):
    genuine = train.train_updates

    def stopping(training, loader, device, position, progress):
        for reported in genuine(training, loader, device, position, progress):
            if position.update == update:
                os.kill(os.getpid(), signal.SIGTERM)
            yield reported
    monkeypatch.setattr(train, 'train_updates', stopping)


@pytest.mark.parametrize('arguments', [HARD, [*HARD, *OPTIMIZERS['rmsproptf'], '--amp', '--amp-dtype', 'bfloat16']],
                         ids=['sgd', 'rmsproptf'])
def test_stopped_and_resumed_is_the_same_to_the_bit(run, image_folder, tmp_path, monkeypatch, arguments):
    argv = [*ONE, *arguments, '--data-dir', image_folder, '--deterministic', '--checkpoint-interval-minutes', 0]
    torch.manual_seed(0)
    assert run(*argv, '--experiment', 'whole').code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run(*argv, '--experiment', 'cut').code == 143
    torch.manual_seed(1)
    assert run(*argv, '--experiment', 'cut', '--resume', 'auto').code == 0
    assert_equal(content(tmp_path / 'runs/whole'), content(tmp_path / 'runs/cut'))
    assert summary(tmp_path / 'runs/whole') == summary(tmp_path / 'runs/cut')


@pytest.fixture(autouse=True)
def leave_as_found():
    """What --deterministic and torch.compile leave behind in this process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch._dynamo.reset()


def build(device, recipe):
    torch.manual_seed(0)
    training = build_training(recipe, device, Classification(recipe))
    device.prepare(training.model, training.optimizer, training.average)
    return training, training.data_config


def tiny_recipe(image_folder, **values):
    return Recipe(**dict(
        model='resnetrs', model_kwargs=dict(layers=(1, 1, 1, 1), width=0.125), img_size=32, batch_size=4, workers=0,
        data_dir=str(image_folder), num_classes=3, lr=0.01, model_ema=True, model_ema_decay=0.9) | values)


@needs_gpu
@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'rmsproptf'])
@pytest.mark.parametrize('hard', [
    {}, dict(drop=0.2, drop_path=0.1, mixup=0.2, cutmix=1.0, reprob=0.5, grad_accum_steps=2, clip_grad=1.0),
    dict(amp=True, amp_dtype='float16'), dict(amp=True, amp_dtype='bfloat16', channels_last=True)],
    ids=['plain', 'everything', 'float16', 'bfloat16'])
def test_the_host_never_waits_between_reports(image_folder, opt, hard):
    device, recipe = Device('cuda'), tiny_recipe(image_folder, opt=opt, log_interval=100, **hard)
    training, data_config = build(device, recipe)
    train_set, _, _ = create_datasets(recipe)
    loader = create_train_loader(train_set, recipe, data_config, Classification(recipe), 3, device)
    position, progress = Position(), Progress(6, 0, 2, enabled=False)
    list(train_updates(training, loader, device, position, progress))  # kernels are loaded, which waits
    loader.set_epoch(1)
    made = 0
    try:
        updates = train_updates(training, loader, device, position, progress)
        next(updates)
        torch.cuda.set_sync_debug_mode('error')
        while made < (1 if recipe.grad_accum_steps > 1 else 4):  # the last of the epoch reports
            assert not next(updates)
            made += 1
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert made


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'rmsproptf'])
@pytest.mark.parametrize('bad', [0, 2])
def test_an_update_that_is_not_finite_leaves_no_bit_changed(image_folder, opt, bad):
    device = Device(DEVICE)
    recipe = tiny_recipe(image_folder, opt=opt, channels_last=True, log_interval=1)
    training, _ = build(device, recipe)
    images, targets = torch.randn(4, 4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    images[bad, 0, 0, 0, 0] = torch.nan
    batches = [(some.to(device.torch_device), targets.to(device.torch_device)) for some in images]

    def everything():
        return copy.deepcopy([training.model.state_dict(), training.optimizer.state_dict()['state'],
                              training.ema.module.state_dict()])
    position, states = Position(), [everything()]
    for _ in train_updates(training, batches, device, position, Progress(4, 0, 1, enabled=False)):
        states.append(everything())
    assert position.skipped == 1 and position.skipped_in_a_row == 0
    if bad:  # afterwards an optimizer keeps what it did not keep before
        for state in (states[bad][1], states[bad + 1][1]):
            for values in state.values():
                values.pop('step', None)  # some count on the host, which does not hear of it
        assert_equal(states[bad], states[bad + 1])
    else:
        assert_equal(states[0][::2], states[1][::2])
    assert all(value.isfinite().all() for value in training.tensors())


@needs_gpu
def test_too_large_a_batch_is_told_with_the_batch_to_try(run, image_folder):
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**28) / total))
    try:
        result = run(*ONE, '--data-dir', image_folder, '--model-kwargs', 'layers=(1,1,1,1)', 'width=1.0', '--img-size',
                     1024, '--experiment', 'a')
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.code == 2 and result.err.count('\n') == 1, result.err
    assert '--batch-size 4 --grad-accum-steps 2' in result.err and 'continue with --experiment a' in result.err


@needs_gpu
def test_batches_arrive_as_on_the_cpu(image_folder):
    recipe = tiny_recipe(image_folder, aa='rand-m9-n2')
    batches = {}
    for name in ('cpu', 'cuda'):
        device = Device(name)
        _, data_config = build(device, recipe)
        train_set, _, _ = create_datasets(recipe)
        loader = create_train_loader(train_set, recipe, data_config, Classification(recipe), 3, device)
        batches[name] = [(images.cpu(), targets.cpu()) for images, targets in loader]
        images, targets, _ = next(iter(loader.loader))
        assert images.is_pinned() == targets.is_pinned() == (name == 'cuda')  # so that their way overlaps the work
    for (images, targets), (others, labels) in zip(batches['cuda'], batches['cpu'], strict=True):
        torch.testing.assert_close(images, others)
        assert torch.equal(targets, labels)


@needs_gpu
@pytest.mark.parametrize(('mode', 'accumulate'), [('default', 2), ('reduce-overhead', 1), ('reduce-overhead', 2)])
def test_compiled_it_resumes_to_the_bit_and_compiles_nothing_after_the_first_update(
        run, image_folder, tmp_path, monkeypatch, mode, accumulate):
    genuine = train.train_updates

    def strict(training, loader, device, position, progress):
        for reported in genuine(training, loader, device, position, progress):
            monkeypatch.setattr(torch._dynamo.config, 'error_on_recompile', True)  # in evaluation, too
            yield reported
    monkeypatch.setattr(train, 'train_updates', strict)
    monkeypatch.setattr(train, 'build_training', lambda *arguments: (  # a run starts with nothing compiled
        torch._dynamo.reset(), monkeypatch.setattr(torch._dynamo.config, 'error_on_recompile', False),
        build_training(*arguments))[-1])
    test_stopped_and_resumed_is_the_same_to_the_bit(run, image_folder, tmp_path, monkeypatch, [
        '--torchcompile', 'inductor', '--torchcompile-mode', mode, '--drop-path', 0.1, '--grad-accum-steps', accumulate,
        '--batch-size', 4, '--validation-batch-size', 6])
