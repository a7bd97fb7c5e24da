import dataclasses
import math

import pytest
import timm
import torch
from torch import nn

import timm_rs  # noqa: F401  (registers the models)
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.ema import create_ema
from timm_rs.training.schedule import create_num_epochs, create_optimizer, create_schedule, rates


def test_tensorflows_ramp_averages_weights_and_statistics_as_its_closed_form():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = create_ema(model, Recipe(model_ema=True, model_ema_decay=0.9, model_ema_warmup=True, ema_ramp='tf'),
                     Device('cpu'))
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for update in range(1, 151):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_mean.normal_()
        ema.update(model, step=update)
        decay = min(0.9, (1 + update) / (10 + update))  # the release's global_step already counts this update
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name in ('0.weight', '1.running_mean'):
        torch.testing.assert_close(ema.module.state_dict()[name].double(), expected[name], rtol=1e-5, atol=1e-5)


def test_averaging_is_off_unless_asked_for():
    assert create_ema(nn.Linear(2, 2), Recipe(), Device('cpu')) is None


@pytest.mark.parametrize(('recipe', 'world_size', 'expected'), [
    (dict(batch_size=512), 8, 1.6),  # the paper's 0.1 per 256 at 4096
    (dict(batch_size=128, grad_accum_steps=4), 1, 0.2),
    (dict(batch_size=64, lr=0.3), 8, 0.3),
    (dict(batch_size=1024, opt='adamw'), 1, 0.2),  # root scaling for adaptive optimizers, as timm
    (dict(batch_size=1024, lr_base_scale='sqrt'), 1, 0.2),
])
def test_learning_rate_follows_the_global_batch(recipe, world_size, expected):
    assert Recipe(**recipe).learning_rate(world_size) == pytest.approx(expected)


def test_cosine_starts_at_step_0_and_warm_up_replaces_its_first_epochs():
    # docs of the official TF2 code: the cosine's clock starts at step 0, warm-up ramps from 0 over its first epochs.
    recipe = Recipe(lr=1.6, epochs=20, warmup_epochs=5, warmup_lr=0.0, sched_on_updates=True)
    optimizer = create_optimizer(nn.Linear(2, 2), recipe, 1)
    schedule, num_epochs = create_schedule(optimizer, recipe, updates_per_epoch=10)
    assert num_epochs == 20
    rates = [optimizer.param_groups[0]['lr']]
    for update in range(1, 200):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]['lr'])
    expected = [1.6 * t / 50 if t < 50 else 0.8 * (1 + math.cos(math.pi * t / 200)) for t in range(200)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(('schedule', 'end'), [('timm', 1.6), ('tf', 0.8 * (1 + math.cos(math.pi * 5 / 350)))])
def test_warm_up_ends_on_the_base_rate_in_timm_and_on_the_cosine_in_tensorflow(schedule, end):
    # The paper's run: 350 epochs of 312 updates. The two differ by 0.05 % during the warm-up and not afterwards.
    recipe = Recipe(lr=1.6, epochs=350, warmup_epochs=5, warmup_lr=0.0, sched_on_updates=True, schedule=schedule)
    rates = rates_at(recipe, 312, (0, 1, 780, 1559, 1560, 1561, 60_000, 109_199))
    cosine = [0.8 * (1 + math.cos(math.pi * t / 109_200)) for t in (1560, 1561, 60_000, 109_199)]
    assert rates == pytest.approx([0, end / 1560, end / 2, end * 1559 / 1560, *cosine], rel=1e-9)
    assert 1.6 / cosine[0] == pytest.approx(1.0005, abs=1e-5)


@pytest.mark.parametrize('change', [dict(min_lr=0.2, warmup_lr=0.1), dict(lr_k_decay=2.0)])
def test_tensorflows_warm_up_meets_the_cosine_whatever_its_shape(change):
    recipe = Recipe(lr=1.6, epochs=20, warmup_epochs=5, sched_on_updates=True, schedule='tf', **change)
    before, end, without = *rates_at(recipe, 1000, (4999, 5000)), rates_at(
        dataclasses.replace(recipe, warmup_epochs=0), 1000, (5000,))[0]
    assert end == without
    assert before == pytest.approx(end, rel=3e-4)


@pytest.mark.parametrize('change', [
    {}, dict(sched='step', decay_rate=0.9, decay_epochs=1), dict(lr_noise=[0.0, 1.0]), dict(layer_decay=0.5)])
def test_rates_for_the_picture_are_those_that_updates_have(change):
    recipe = Recipe(**dict(lr=1.6, epochs=8, warmup_epochs=2, sched_on_updates=True) | change)
    optimizer = create_optimizer(timm.create_model('test_resnet'), recipe, 1)
    schedule, _ = create_schedule(optimizer, recipe, updates_per_epoch=10)
    drawn = rates(schedule, 10, 3, most=5)
    assert [place for place, _ in drawn] == [0, 0.6, 1.2, 1.8, 2.4, 3]
    assert optimizer.param_groups[0]['lr'] == drawn[0][1]
    for place, rate in drawn[1:]:
        schedule.step_update(round(10 * place))
        assert optimizer.param_groups[0]['lr'] == rate
    assert len(rates(schedule, 10, 3)) == 31


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated:FutureWarning')
@pytest.mark.parametrize('change', [dict(sched='plateau'), dict(sched='none'), dict(sched='cosine')])
def test_a_rate_that_stands_still_or_follows_the_metric_is_not_computed_beforehand(change):
    recipe = Recipe(**dict(lr=1.6, epochs=8, sched_on_updates=False) | change)
    schedule, _ = create_schedule(create_optimizer(nn.Linear(2, 2), recipe, 1), recipe, updates_per_epoch=10)
    assert rates(schedule, 10, 3) == []


def rates_at(recipe, updates_per_epoch, updates):
    optimizer = create_optimizer(nn.Linear(2, 2), recipe, 1)
    schedule, _ = create_schedule(optimizer, recipe, updates_per_epoch)
    rates = []
    for update in updates:
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


def test_efficientnets_rate_is_tensorflows_staircase_after_five_epochs_of_warm_up():
    # efficientnet/utils.py, build_learning_rate: 0.97 ** floor(t / (2.4 epochs)) counted from the first update.
    recipe = Recipe(lr=0.256, epochs=350, warmup_epochs=5, warmup_lr=0.0, sched='step', decay_rate=0.97,
                    decay_epochs=2.4, sched_on_updates=True, opt='rmsproptf', opt_eps=1e-3)
    steps = {math.ceil(k * 748.8) + near for k in range(1, 145) for near in (-1, 0, 1)}
    updates = sorted(steps | set(range(0, 350 * 312, 97)))
    expected = [0.256 * t / 1560 if t < 1560 else 0.256 * 0.97 ** (10 * t // 7488) for t in updates]
    assert rates_at(recipe, 312, updates) == pytest.approx(expected, rel=1e-12)
    assert recipe.lr * 0.97 ** 2 == pytest.approx(rates_at(recipe, 312, (1560,))[0])  # two steps went under the ramp


def decays(model, **values):
    """(parameters that decay, parameters that do not), by name."""
    optimizer = create_optimizer(model, Recipe(weight_decay=4e-5, **values), 1)
    groups = optimizer.param_groups
    decay = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    assert len(decay) == len(list(model.parameters())) and set(decay.values()) == {4e-5, 0}
    decaying = {name for name, parameter in model.named_parameters() if decay[id(parameter)]}
    return decaying, {name for name, _ in model.named_parameters()} - decaying


@pytest.mark.parametrize('name', ['resnetrs_50', 'efficientnet_rs_b4'])
@pytest.mark.parametrize(('rule', 'biases_decay'), [('timm', False), ('tf', True)])
def test_kernels_decay_and_batch_norms_do_not_and_biases_do_as_in_the_release_on_demand(name, rule, biases_decay):
    # The official code is of two minds on the biases of SE and classifier: the TF1 release decays all variables
    # outside batch norm, the TF2 code kernels only. Default: the latter, which is also timm's.
    with torch.device('meta'):
        model = timm.create_model(name)
    modules = dict(model.named_modules())
    weighted = {path for path, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))}
    kernels = {f'{path}.weight' for path in weighted}
    biases = {f'{path}.bias' for path in weighted if modules[path].bias is not None}
    norms = {f'{path}.{kind}' for path, module in modules.items() if isinstance(module, nn.BatchNorm2d)
             for kind in ('weight', 'bias')}
    assert kernels and biases and norms
    expected = (kernels | biases, norms) if biases_decay else (kernels, biases | norms)
    assert decays(model, weight_decay_rule=rule) == expected


def test_released_rule_and_layer_decay_exclude_each_other():
    with pytest.raises(UserError, match='weight_decay_rule tf and layer_decay'):
        create_optimizer(nn.Linear(2, 2), Recipe(weight_decay_rule='tf', layer_decay=0.9), 1)


def test_frozen_parameters_stay_out_of_the_released_rules_groups():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    optimizer = create_optimizer(model, Recipe(weight_decay_rule='tf'), 1)
    assert [len(group['params']) for group in optimizer.param_groups] == [1, 2]


def test_sgd_is_nesterov_and_momentum_is_not():
    for opt, nesterov in (('sgd', True), ('momentum', False)):
        groups = create_optimizer(nn.Linear(2, 2), Recipe(opt=opt), 1).param_groups
        assert {group['nesterov'] for group in groups} == {nesterov}


def test_first_decay_of_the_average_is_two_elevenths_and_the_ramp_ends_at_update_89990():
    recipe = Recipe(model_ema=True, model_ema_decay=0.9999, model_ema_warmup=True, ema_ramp='tf')
    ema = create_ema(nn.Linear(2, 2), recipe, Device('cpu'))
    assert ema.get_decay(1) == 2 / 11
    assert ema.get_decay(89_989) < 0.9999
    assert ema.get_decay(89_990) == pytest.approx(0.9999, rel=1e-12) and ema.get_decay(10 ** 6) == 0.9999


def test_unknown_optimizer_is_refused_by_name():
    with pytest.raises(UserError, match='sgdd'):
        create_optimizer(nn.Linear(2, 2), Recipe(opt='sgdd'), 1)


@pytest.mark.parametrize(('values', 'epochs'), [
    (dict(epochs=5), 5), (dict(epochs=5, warmup_epochs=2, warmup_prefix=True), 7),
    (dict(epochs=5, cooldown_epochs=3), 8)])
def test_epochs_are_those_that_a_run_trains(values, epochs):
    assert create_num_epochs(Recipe(**values)) == epochs


@pytest.mark.parametrize(('rate', 'by_rate', 'expected'), [(0.1, False, 1e-3), (0.1, True, 1e-2), (0.01, True, 1e-1)])
def test_decay_is_divided_by_the_rate_on_demand(rate, by_rate, expected):
    recipe = Recipe(lr=rate, weight_decay=1e-3, weight_decay_by_rate=by_rate)
    groups = create_optimizer(nn.Linear(2, 2), recipe, 1).param_groups
    assert sorted(group['weight_decay'] for group in groups) == pytest.approx([0.0, expected])


def test_decay_divided_by_no_rate_is_refused():
    with pytest.raises(UserError, match='divides by the learning rate, which is 0'):
        create_optimizer(nn.Linear(2, 2), Recipe(lr=0.0, weight_decay_by_rate=True), 1)


def test_the_rule_of_the_code_for_images_is_refused_for_clips():
    model = timm.create_model('resnetrs3d', layers=(1, 1, 1, 1), width=0.125)
    with pytest.raises(UserError, match='their code for clips decays what timm does: leave it out'):
        create_optimizer(model, Recipe(weight_decay_rule='tf'), 1)
