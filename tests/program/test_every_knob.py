"""Every knob at and beyond its bounds: a run ends with 0, or with 2 and one line, never with a traceback."""

import dataclasses
import itertools
import math

import pytest
import timm.optim
import torch
from conftest import write_images
from timm.layers import set_fast_norm

from timm_rs.errors import exit_on_user_error
from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.knobs import FIELDS, Recipe, value_type
from timm_rs.recipe.reading import DEFAULTS, check_value
from timm_rs.training import train
from timm_rs.training.run import Run

TINY = Recipe(
    model='resnetrs', model_kwargs=dict(layers=(1, 1, 1, 1), width=0.0625), img_size=32, batch_size=4, epochs=1,
    warmup_epochs=0, workers=0, device='cpu', lr=0.01)
# What a knob needs to matter.
WITH = {
    'clip_mode': dict(clip_grad=1.0), 'amp_dtype': dict(amp=True), 'recount': dict(reprob=1.0),
    'remode': dict(reprob=1.0), 'mixup_prob': dict(mixup=0.2), 'mixup_mode': dict(mixup=0.2, cutmix=1.0),
    'mixup_switch_prob': dict(mixup=0.2, cutmix=1.0), 'mixup_off_epoch': dict(mixup=0.2),
    'smoothing': dict(mixup=0.2), 'color_jitter_prob': dict(color_jitter=0.4),
    'layer_decay_min_scale': dict(layer_decay=0.5), 'layer_decay_no_opt_scale': dict(layer_decay=0.5),
    'lr_noise_pct': dict(lr_noise=[0.0]), 'lr_noise_std': dict(lr_noise=[0.0]),
    'lr_base': dict(lr=None), 'lr_base_size': dict(lr=None), 'lr_base_scale': dict(lr=None),
    'decay_epochs': dict(sched='step'), 'decay_rate': dict(sched='step', decay_epochs=0.5),
    'decay_milestones': dict(sched='multistep'), 'patience_epochs': dict(sched='plateau'),
    'warmup_prefix': dict(warmup_epochs=1), 'warmup_lr': dict(warmup_epochs=1),
    'ema_ramp': dict(model_ema=True, model_ema_warmup=True), 'model_ema_decay': dict(model_ema=True),
    'model_ema_warmup': dict(model_ema=True), 'opt_betas': dict(opt='adamw'), 'opt_eps': dict(opt='adamw'),
    'randaugment': dict(aa='rand-m5-n2'),
    'preprocessing': dict(train_interpolation='bicubic', interpolation='bicubic'),
} | {name: dict(bce_loss=True) for name in FIELDS if name.startswith('bce_')} | {
    name: dict(epochs=3) for name in FIELDS if name.startswith('lr_cycle_')}
MORE = {'opt': timm.optim.list_optimizers(exclude_filters=['kron*', 'c*']),  # which compile for minutes; variants
        'in_chans': [2, 4], 'lr_cycle_mul': [0.5, 2.0], 'cutmix_minmax': [[0.5, 0.5], [0.8, 0.2]],
        'scale': [[1.0, 0.1]], 'ratio': [[0.1, 0.3], [2.0, 1.0]],
        'mean': [[0.5]], 'opt_betas': [[0.9, 0.9], [0.9, 0.9, 0.9]], 'input_size': [[4, 32, 32], [3, 1, 1000]],
        'input_img_mode': ['L', 'RGBA', 'CMYK', 'F', 'I', 'LA', '1', 'P']}
TOO_LARGE = ('img_size', 'input_size')  # allowed, for those who have the memory
NUMBERS = {int: (0, 1, -1, 10**12, 10**30), float: (0.0, 1.0, -1.0, 1e30, 1e-30, math.nan, math.inf, -math.inf)}


def values_of(name):
    """Values at and beyond the bounds of a knob, and some of the wrong kind."""
    kind, element, optional = value_type(name)
    metadata = FIELDS[name].metadata
    if optional:
        yield None
    yield from MORE.get(name, [])
    if kind is bool:
        yield from (False, True)
    elif kind is dict:
        yield from ({'nonsense': 1}, {'width': 'nonsense'}, {'lr': -1.0})
    elif kind is str:
        yield from (*(metadata['choices'] or ()), '', 'nonsense', *(['x' * 300] if metadata['free'] else []))
    else:
        scalar = element or kind
        bounds = [metadata[bound] for bound in ('low', 'high', 'above', 'below') if metadata[bound] is not None]
        numbers = dict.fromkeys(scalar(bound + step) for bound in bounds for step in (0, -1, 1))
        if name in TOO_LARGE:
            numbers = dict.fromkeys((0, 1, 16385))
        numbers = dict.fromkeys([*numbers, *NUMBERS.get(scalar, ('', 'nonsense', 'a\0b'))])
        if kind is list:
            length = metadata['nargs'] or len(getattr(DEFAULTS, name) or [0])
            yield from ([], [1] * (length + 1))
            yield from ([number] * length for number in numbers)
        else:
            yield from numbers


@pytest.mark.fuzz
@pytest.mark.filterwarnings('ignore')
def test_every_knob_at_and_beyond_its_bounds(tmp_path, capsys, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(lambda: (set_fast_norm(False), torch.use_deterministic_algorithms(False)))
    for split, count in (('train', 3), ('validation', 1)):
        write_images(tmp_path / 'images' / split, dict.fromkeys(('cat', 'dog', 'eel'), count))
    monkeypatch.setattr('timm_rs.training.curves.draw', lambda *_: None)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr('os.fsync', lambda _: None)
    epochs = Run.epochs
    monkeypatch.setattr(Run, 'epochs', lambda self: itertools.islice(epochs(self), 1))
    base = dataclasses.replace(TINY, data_dir=str(tmp_path / 'images'))
    wrong, refused, ran = [], 0, 0
    for name in FIELDS:
        for value in values_of(name):
            if message := refusal(name, value):
                refused += 1
                assert name in message and '\n' not in message
                continue
            ran += 1
            code, fault = outcome(dataclasses.replace(
                base, **dict(experiment=str(ran)) | WITH.get(name, {}) | {name: value}))
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
            if code not in (0, 2) or len(errors) != (code == 2):
                wrong.append(f'{name}: {value!r} ended with {code}: {fault} {errors}')
    assert not wrong, '\n'.join(wrong)
    assert refused > 200 and ran > 400


def refusal(name, value):
    try:
        check_value(name, value, 'here')
    except RecipeError as error:
        return str(error)
    return ''


def outcome(recipe):
    """The exit code of a run, and the exception where that is 1."""
    try:
        with exit_on_user_error():
            task = train.create_task(recipe)
            device = train.create_device(recipe.device, deterministic=recipe.deterministic)
            train.random_seed(recipe.seed, device.rank)
            train.run_training(recipe, task, device)
    except SystemExit as stop:
        return stop.code, ''
    except Exception as error:
        return 1, repr(error)[:300]
    return 0, ''
