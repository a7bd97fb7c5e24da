import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models.resnet import Bottleneck
from torch import nn

from timm_rs.models import LAYERS, ResNetRS, resnetrs, resnetrs_50
from timm_rs.models.complexity import measure_complexity

DEPTHS = (50, 101, 152, 200, 270, 350, 420)
TINY = (1, 1, 1, 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    return timm.create_model('resnetrs', layers=TINY, width=0.25, num_classes=10)


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize('depth', DEPTHS)
def test_state_dict_has_the_keys_and_shapes_of_timms_resnetrs(depth):
    with torch.device('meta'):
        ours = timm.create_model(f'resnetrs_{depth}', weight_init='timm')  # quicker on the meta device
        assert shapes(ours) == shapes(timm.create_model(f'resnetrs{depth}'))


def test_weights_of_timms_resnetrs_give_identical_logits():
    theirs = timm.create_model('resnetrs50').eval()
    for module in theirs.modules():  # so that the branches with zero gammas count as well
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    ours = timm.create_model('resnetrs_50', pretrained=True,
                             pretrained_cfg_overlay=dict(state_dict=theirs.state_dict())).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_generic_entrypoint_builds_depth_layers_and_width():
    assert [len(stage) for stage in stages(resnetrs(width=0.25))] == [3, 4, 6, 3]
    assert [len(stage) for stage in stages(resnetrs(depth=26, width=0.25))] == [2, 2, 2, 2]
    model = resnetrs(layers=[1, 2, 1, 3], width=0.5)
    assert [len(stage) for stage in stages(model)] == [1, 2, 1, 3]
    assert model.conv1[0].out_channels == 16
    assert model.num_features == 1024


def test_squeeze_ratio_is_a_quarter_at_any_width():
    model = resnetrs(layers=TINY, width=0.3)
    for channels, stage in zip((64, 128, 256, 512), stages(model), strict=True):
        assert stage[0].se.fc1.out_channels == int(4 * int(channels * 0.3) * 0.25)


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(depth=51), 'depth=51 is unknown.*26, 50, 101, 152, 200, 270, 300, 350, 400, 420'),
    (dict(depth=50, layers=TINY), 'depth=50 and layers=.*one of the two'),
    (dict(layers=(3, 4, 6)), 'four stages'),
    (dict(layers=(3, 4, 0, 3)), 'four stages'),
    (dict(width=0), 'width=0 .*1/32'),
    (dict(width=-1.0), 'width=-1.0 .*1/32'),
    (dict(width=0.03), 'width=0.03 .*1/32'),
    (dict(width=math.nan), 'width=nan .*1/32'),
    (dict(drop_path_rule='linear'), "drop_path_rule='linear' is unknown: use 'stage' or 'block'"),
    (dict(weight_init='he'), "weight_init='he' is unknown: use 'official' or 'timm'"),
])
def test_impossible_arguments_raise_an_error_that_names_the_remedy(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('resnetrs', **kwargs)


@pytest.mark.parametrize('kwargs', [dict(depth=26), dict(layers=TINY)])
def test_named_depths_refuse_another_depth(kwargs):
    with pytest.raises(ValueError, match="use the model 'resnetrs'"):
        resnetrs_50(**kwargs)


def stages(model):
    return model.layer1, model.layer2, model.layer3, model.layer4


def drop_rates(**kwargs):
    model = ResNetRS(layers=(1, 2, 2, 1), width=0.25, **kwargs)
    return [[block.drop_path.drop_prob if block.drop_path else 0.0 for block in stage]
            for stage in stages(model)]


def test_stage_rule_gives_every_block_of_a_stage_the_official_rate():
    assert drop_rates(drop_path_rate=0.1) == [
        pytest.approx(rates) for rates in ([0.04], [0.06, 0.06], [0.08, 0.08], [0.1])]


def test_block_rule_is_timms_linear_rule():
    assert drop_rates(drop_path_rate=0.1, drop_path_rule='block') == [
        pytest.approx(rates) for rates in ([0.0], [0.02, 0.04], [0.06, 0.08], [0.1])]


def test_without_rate_no_block_is_dropped():
    assert not any(isinstance(module, DropPath) for module in ResNetRS(layers=TINY, width=0.25).modules())


def test_convolutions_start_from_the_official_truncated_normal():
    convolutions = [m for m in resnetrs(layers=TINY).modules() if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        fan_in = conv.weight[0].numel()
        deviation = fan_in ** -0.5
        # Cut at two deviations of the untruncated normal, whose deviation is 1 / 0.8796 times larger.
        bound = 2 * deviation / 0.87962566103423978
        assert conv.weight.abs().max() <= bound * 1.0001
        assert conv.weight.abs().max() > 0.9 * bound
        assert conv.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert conv.bias is None or not conv.bias.any()
    assert sum(conv.bias is not None for conv in convolutions) == 8  # two of each squeeze-and-excitation


def test_batch_norms_start_at_one_and_the_last_of_each_block_at_zero(tiny):
    for module in tiny.modules():
        if isinstance(module, Bottleneck):
            assert not module.bn3.weight.any()
            assert (module.bn2.weight == 1).all()
    assert (tiny.bn1.weight == 1).all()
    assert not tiny.bn1.bias.any()
    kept = resnetrs(layers=TINY, width=0.25, zero_init_last=False)
    assert all((stage[0].bn3.weight == 1).all() for stage in stages(kept))


def test_classifier_starts_small_and_so_does_a_new_one():
    model = resnetrs(layers=TINY)
    for _ in range(2):
        assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not model.fc.bias.any()
        model.reset_classifier(500)
    assert model.fc.out_features == 500


def test_timm_initialisation_is_timms(tiny):
    torch.manual_seed(1)
    ours = timm.create_model('resnetrs_50', weight_init='timm', num_classes=2)
    torch.manual_seed(1)
    theirs = timm.create_model('resnetrs50', num_classes=2)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_batch_norm_arguments_reach_every_batch_norm(tiny):
    def momentum_and_eps(model):
        return {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}

    assert momentum_and_eps(tiny) == {(0.1, 1e-5)}
    model = resnetrs(layers=TINY, width=0.25, bn_momentum=1.0, bn_eps=1e-3)
    assert momentum_and_eps(model) == {(1.0, 1e-3)}


@pytest.mark.parametrize('in_chans', [1, 4])
@pytest.mark.parametrize('num_classes', [0, 10])
def test_weight_file_loads_and_adapts_to_channels_and_classes(tmp_path, tiny, in_chans, num_classes):
    source = tiny.eval()
    save_file(source.state_dict(), tmp_path / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'model.safetensors'), num_classes=10)
    args = dict(pretrained=True, pretrained_cfg_overlay=overlay, layers=TINY, width=0.25)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        same = timm.create_model('resnetrs', **args).eval()
        assert torch.equal(same(images), source(images))
        adapted = timm.create_model('resnetrs', **args, in_chans=in_chans, num_classes=num_classes).eval()
        assert torch.equal(adapted.layer4[0].conv3.weight, source.layer4[0].conv3.weight)
        assert adapted.conv1[0].weight.shape[1] == in_chans
        if in_chans == 1:  # the channels of the stem are summed
            gray = images[:, :1]
            assert torch.allclose(adapted.forward_features(gray),
                                  source.forward_features(gray.expand(-1, 3, -1, -1)), atol=1e-4)
        assert adapted(torch.randn(2, in_chans, 64, 64)).shape == (2, num_classes or source.num_features)


def test_features_only_gives_five_levels():
    model = timm.create_model('resnetrs_50', features_only=True, width=0.25)
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    features = model(torch.randn(1, 3, 64, 64))
    assert [f.shape[-1] for f in features] == [32, 16, 8, 4, 2]
    assert [f.shape[1] for f in features] == model.feature_info.channels()


def test_layers_table_gives_the_depth_its_name_says():
    for depth, layers in LAYERS.items():
        assert abs(depth - (3 * sum(layers) + 2)) <= 4  # 270 and 300 are names of 272 and 296 layers


@pytest.mark.parametrize(('depth', 'kwargs', 'params_m', 'img_size', 'gmacs'), [
    (50, dict(squeeze_excite=False, resnet_d=False), 25.557, 224, 4.09),  # as He et al. 2015, in timm's resnet50
    (200, dict(squeeze_excite=False, resnet_d=False), 64.674, 256, 19.60),
    (200, dict(resnet_d=False), 93.154, 256, 19.63),
])
def test_the_ablations_plain_networks_have_the_known_cost(depth, kwargs, params_m, img_size, gmacs):
    cost = measure_complexity(timm.create_model('resnetrs', depth=depth, weight_init='timm', **kwargs), img_size)
    assert round(cost.params / 1e6, 3) == params_m
    assert round(cost.macs / 1e9, 2) == gmacs


def test_without_squeeze_excite_and_resnet_d_it_is_timms_resnet():
    with torch.device('meta'):
        ours = timm.create_model('resnetrs', depth=50, squeeze_excite=False, resnet_d=False, weight_init='timm')
        theirs = timm.create_model('resnet50')
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.pretrained_cfg['first_conv'] == 'conv1'
