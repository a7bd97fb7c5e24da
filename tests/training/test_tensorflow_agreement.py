"""What TensorFlow trained (tests/expected/make_training.py), trained again through the code that train.py runs."""

import dataclasses
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import EXPECTED
from torch import nn

from timm_rs.device.torch_device import Device
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.classification import Classification
from timm_rs.training.build import create_training
from timm_rs.training.engine import train_updates
from timm_rs.training.runlog import Progress
from timm_rs.training.schedule import create_schedule
from timm_rs.training.state import Position

FOLDER = EXPECTED
GOLDENS = dict(np.load(FOLDER / 'training.npz'))
UPDATES_PER_EPOCH = len(GOLDENS['images'])
BOUND = 1e-5

SGD = Recipe(
    epochs=20, warmup_epochs=5, warmup_lr=0.0, sched_on_updates=True, lr=0.1, weight_decay=4e-5, smoothing=0.1,
    bn_momentum=1.0, bn_eps=1e-5, model_ema=True, model_ema_decay=0.9999, model_ema_warmup=True, ema_ramp='tf',
    schedule='tf', log_interval=1, device='cpu')
RECIPES = {
    'sgd': SGD,
    'sgd_release': dataclasses.replace(SGD, weight_decay_rule='tf'),
    'rmsprop': dataclasses.replace(
        SGD, opt='rmsproptf', opt_eps=1e-3, lr=0.002, sched='step', decay_rate=0.97, decay_epochs=2.4,
        weight_decay=1e-5, weight_decay_rule='tf', bn_momentum=0.01, bn_eps=1e-3),
}


class Recorder(Progress):
    """A silent progress that keeps the losses."""

    def __init__(self, recipe):
        super().__init__(UPDATES_PER_EPOCH, 0, recipe.epochs, enabled=False)
        self.losses = []

    def report(self, update, loss, lr, num_images, skipped=0):
        assert not skipped
        self.losses.append(loss)


def network(recipe):
    def norm(channels):
        return nn.BatchNorm2d(channels, eps=recipe.bn_eps, momentum=recipe.bn_momentum)

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(),
        nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False), norm(10), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5))


LAYERS = {'conv2d': 0, 'batch_normalization': 1, 'conv2d_1': 3, 'batch_normalization_1': 4, 'dense': 8}
NAMES = {'kernel': 'weight', 'bias': 'bias', 'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean',
         'moving_variance': 'running_var'}


def from_tensorflow(prefix):
    """The variables `prefix`/NAME as a state dict of `network`."""
    state = {}
    for key, value in GOLDENS.items():
        if key.startswith(prefix + '/'):
            layer, name = key.removeprefix(prefix + '/').split('/')
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T  # HWIO to OIHW, in-out to out-in
            state[f'{LAYERS[layer]}.{NAMES[name]}'] = torch.from_numpy(np.ascontiguousarray(value))
    return state


def train(recipe):
    """(model, averaged model, losses, learning rates) after all epochs, by the functions train.py calls."""
    torch.manual_seed(0)
    model = network(recipe)
    model.load_state_dict(from_tensorflow('initial'), strict=False)  # strict: torch also counts batches
    device = Device('cpu')
    training = create_training(model, {}, recipe, device, Classification(recipe))
    optimizer = training.optimizer
    training.schedule, num_epochs = create_schedule(optimizer, recipe, UPDATES_PER_EPOCH)
    rates = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]['lr']))
    images = torch.from_numpy(GOLDENS['images']).permute(0, 1, 4, 2, 3).float() / 128 - 1
    loader = list(zip(images, torch.from_numpy(GOLDENS['labels']).long(), strict=True))
    progress = Recorder(recipe)
    position = Position()
    for epoch in range(num_epochs):
        position.start_epoch(epoch)
        list(train_updates(training, loader, device, position, progress))
    return model, training.ema.module, np.array(progress.losses), np.array(rates)


def distance(model, prefix):
    """The largest difference of any weight or statistic of `model` from TensorFlow's."""
    theirs, ours = from_tensorflow(prefix), model.state_dict()
    assert theirs.keys() == {name for name in ours if 'num_batches' not in name}
    return max((ours[name] - value).abs().max().item() for name, value in theirs.items())


@pytest.mark.parametrize('run', RECIPES)
def test_120_updates_give_tensorflows_rates_losses_weights_and_averages(run):
    model, average, losses, rates = train(RECIPES[run])
    assert len(losses) == len(rates) == 120
    np.testing.assert_allclose(rates, GOLDENS[f'{run}/lr'], rtol=0, atol=1e-6 * RECIPES[run].lr)
    np.testing.assert_allclose(losses, GOLDENS[f'{run}/loss'], rtol=0, atol=BOUND)
    assert distance(model, f'{run}/final') < BOUND
    assert distance(average, f'{run}/ema') < BOUND


def test_120_updates_move_the_weights_and_the_averages_apart():
    for run in RECIPES:  # else agreement would mean little
        initial, final, average = (from_tensorflow(prefix) for prefix in ('initial', f'{run}/final', f'{run}/ema'))
        for name, value in initial.items():
            assert (final[name] - value).abs().max() > 100 * BOUND, name
            assert (final[name] - average[name]).abs().max() > 10 * BOUND, name


@pytest.mark.parametrize(('run', 'change'), [
    ('sgd', dict(opt='momentum')),  # without nesterov
    ('sgd', dict(weight_decay=0.0)),
    ('sgd', dict(weight_decay_rule='tf')),
    ('sgd', dict(schedule='timm')),
    ('sgd', dict(smoothing=0.0)),
    ('sgd', dict(ema_ramp='timm')),
    ('sgd', dict(model_ema_warmup=False)),
    ('sgd', dict(bn_momentum=0.1)),
    ('sgd_release', dict(weight_decay_rule='timm')),
    ('rmsprop', dict(opt='rmsprop')),  # torch's: epsilon outside the root, mean square from 0
    ('rmsprop', dict(opt_eps=1e-4)),
    ('rmsprop', dict(weight_decay=0.0)),
    ('rmsprop', dict(sched='cosine')),
], ids=lambda value: value if isinstance(value, str) else '-'.join(f'{name}={it}' for name, it in value.items()))
def test_the_bound_is_tight_enough_to_notice(run, change):
    model, average, _, _ = train(dataclasses.replace(RECIPES[run], **change))
    assert max(distance(model, f'{run}/final'), distance(average, f'{run}/ema')) > 50 * BOUND


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('tensorflow') is None, reason='TensorFlow is not installed')
def test_committed_goldens_are_what_tensorflow_gives(tmp_path):
    command = [sys.executable, FOLDER / 'make_training.py', tmp_path / 'again.npz']
    subprocess.run(command, check=True, capture_output=True)
    again = np.load(tmp_path / 'again.npz')
    assert GOLDENS.keys() == set(again)
    for name, value in GOLDENS.items():
        np.testing.assert_allclose(again[name], value, rtol=0, atol=BOUND, err_msg=name)
