"""Dropout, stochastic depth and label smoothing as the recipes switch them on, against their closed forms."""

import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT
from timm.layers import DropPath
from timm.models.resnet import Bottleneck

from timm_rs.device.torch_device import Device
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks.classification import Classification
from timm_rs.training.build import build_model

FOLDER = ROOT / 'train_recipes'
TINY = dict(model='resnetrs', num_classes=10, channels_last=False)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def recipe(name, **changes):
    return dataclasses.replace(Recipe(**read_file(FOLDER / f'{name}.yaml')), **changes)


def build(values):
    return build_model(values, Device('cpu'), Classification(values))[0]


@pytest.mark.parametrize('values', [
    recipe('rs50', **TINY, model_kwargs=dict(layers=(1, 1, 1, 1))),
    Recipe(model='efficientnet_rs_b0', num_classes=10, drop=0.4),
], ids=['resnet', 'efficientnet'])
def test_dropout_sits_between_pool_and_classifier_with_the_recipes_rate(values):
    # Rates: Table 8. Place: resnet_model.py, after the global average pool.
    model, seen = build(values), {}
    model.global_pool.register_forward_hook(lambda module, args, output: seen.update(pooled=output.flatten(1)))
    model.get_classifier().register_forward_pre_hook(lambda module, args: seen.update(classified=args[0]))
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        model.train()(images)
        dropped = seen['classified'] == 0
        scaled = seen['pooled'] / (1 - values.drop)
        assert torch.allclose(seen['classified'][~dropped], scaled[~dropped])
        dropped = dropped[seen['pooled'] != 0]  # ReLU leaves zeros of its own
        deviation = (values.drop * (1 - values.drop) / len(dropped)) ** 0.5
        assert dropped.float().mean().item() == pytest.approx(values.drop, abs=4 * deviation)
        model.eval()(images)
        assert torch.equal(seen['classified'], seen['pooled'])


def expected_drops(depth, rule):
    with torch.device('meta'):
        model = timm.create_model(f'resnetrs_{depth}', drop_path_rate=0.1, drop_path_rule=rule, weight_init='timm')
    return sum(module.drop_prob for module in model.modules() if isinstance(module, DropPath))


@pytest.mark.parametrize(('depth', 'blocks'), [(200, 4.74), (270, 6.54), (350, 8.48), (420, 10.16)])
def test_expected_number_of_dropped_blocks_is_that_of_the_releases_rates(depth, blocks):
    # Sum over blocks of 0.1 * {2, 3, 4, 5} / 5, with Table 11's blocks per stage.
    assert expected_drops(depth, 'stage') == pytest.approx(blocks, abs=1e-9)


def test_timms_rule_drops_a_third_fewer_blocks():
    assert expected_drops(200, 'block') == pytest.approx(0.1 / 2 * 66)  # linear from 0 to 0.1 over 66 blocks


def test_stages_drop_whole_samples_at_their_rates_and_scale_the_others_up():
    rate, samples = 0.5, 256
    model = build(recipe('rs350', **TINY, drop_path=rate, model_kwargs=dict(
        layers=(2, 2, 2, 2), width=0.125, zero_init_last=False)))
    kept = {}

    def record(stage):
        def hook(module, args, output):
            branch, after = args[0].flatten(1), output.flatten(1)
            alive = after.ne(0).any(1)
            keep = 1 - module.drop_prob if module.training else 1
            assert torch.allclose(after[alive], branch[alive] / keep, atol=1e-6)
            kept.setdefault(stage, []).append(alive)
        return hook

    for number, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), start=1):
        for block in stage:
            block.drop_path.register_forward_hook(record(number))
    with torch.no_grad():
        for _ in range(4):
            model.train()(torch.randn(samples, 3, 32, 32))
        seen = {stage: torch.cat(masks) for stage, masks in kept.items()}
        for stage, mask in seen.items():
            probability = rate * (stage + 1) / 5  # resnet_model.py: initial rate * {2, 3, 4, 5} / 5
            assert len(mask) == 2 * 4 * samples
            deviation = (probability * (1 - probability) / len(mask)) ** 0.5
            assert 1 - mask.float().mean().item() == pytest.approx(probability, abs=4 * deviation)
        kept.clear()
        model.eval()(torch.randn(64, 3, 32, 32))
        assert torch.cat(sum(kept.values(), [])).all()


def test_stochastic_depth_comes_after_squeeze_and_excitation_and_before_the_addition():
    # resnet_model.py, bottleneck_block: SE, then drop_connect, then the shortcut, then ReLU.
    model = build(recipe('rs350', **TINY, drop_path=1.0, model_kwargs=dict(
        layers=(1, 1, 1, 1), width=0.125, zero_init_last=False)))
    block, seen = model.layer4[0], {}
    assert isinstance(block, Bottleneck) and block.drop_path.drop_prob == 1
    block.se.register_forward_hook(lambda module, args, output: seen.update(excited=output))
    block.drop_path.register_forward_hook(lambda module, args, output: seen.update(branch=args[0], after=output))
    block.downsample.register_forward_hook(lambda module, args, output: seen.update(shortcut=output.clone()))
    block.register_forward_hook(lambda module, args, output: seen.update(output=output))
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    assert seen['branch'] is seen['excited'] and seen['branch'].any()
    assert torch.equal(seen['output'], seen['shortcut'].relu())  # the branch is gone, the shortcut is not


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
    logits, labels = 3 * torch.randn(6, 1000, dtype=torch.float64), torch.randint(1000, (6,))
    targets = (1 - 0.1) * F.one_hot(labels, 1000).double() + 0.1 / 1000
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    loss = Classification(recipe('rs50')).criterion(logits, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
