import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models import create_feature_extractor, group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from timm_rs.models import ResNetRS3d, resnetrs3d, resnetrs3d_50
from timm_rs.models.layers_3d import Bottleneck3d, SameConv3d, SameMaxPool3d, SelfGating

TINY = dict(layers=(1, 1, 1, 1), width=0.125, num_classes=10)
KINDS = {
    'rs': {}, 'gated': dict(self_gating=True), 'symmetric': dict(padding='symmetric'),
    'baseline': dict(squeeze_excite=False, resnet_d=False),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(**kwargs):
    return timm.create_model('resnetrs3d', **TINY | kwargs).eval()


def stages(model):
    return model.layer1, model.layer2, model.layer3, model.layer4


def clips(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('kwargs', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(('size', 'maps'), [
    ((8, 64, 64), [(4, 32, 32), (4, 16, 16), (4, 8, 8), (4, 4, 4), (4, 2, 2)]),
    ((5, 33, 50), [(3, 17, 25), (3, 9, 13), (3, 5, 7), (3, 3, 4), (3, 2, 2)]),
    ((1, 20, 20), [(1, 10, 10), (1, 5, 5), (1, 3, 3), (1, 2, 2), (1, 1, 1)]),
])
def test_any_clip_gives_logits_and_five_maps_that_keep_their_frames(kwargs, size, maps):
    model, x = tiny(**kwargs), clips(2, 3, *size)
    with torch.no_grad():
        last, found = model.forward_intermediates(x)
        assert [tuple(level.shape[2:]) for level in found] == maps
        assert [level.shape[1] for level in found] == [level['num_chs'] for level in model.feature_info]
        assert torch.equal(model.forward_features(x), last)
        assert torch.equal(model.forward_head(last), model(x)) and model(x).shape == (2, 10)
        assert torch.equal(model.forward_head(last, pre_logits=True), last.mean((2, 3, 4)))


def test_padding_differs_at_even_sizes_only():
    same, symmetric = tiny(), tiny(padding='symmetric')
    symmetric.load_state_dict(same.state_dict())
    with torch.no_grad():
        odd, even = clips(1, 3, 5, 33, 33), clips(1, 3, 8, 32, 32)
        assert torch.allclose(same(odd), symmetric(odd), atol=1e-5)
        assert (same(even) - symmetric(even)).abs().max() > 1e-2 * same(even).abs().max()


def test_only_layers_with_a_stride_need_padding_of_their_own():
    padded = [name for name, module in tiny().named_modules() if isinstance(module, (SameConv3d, SameMaxPool3d))]
    assert padded == ['conv1.0', 'maxpool', 'layer2.0.conv2', 'layer3.0.conv2', 'layer4.0.conv2']


def test_the_network_is_the_table_of_the_official_code():
    model = resnetrs3d(layers=(1, 2, 2, 1), self_gating=True)
    stem = [(conv.kernel_size, conv.out_channels) for conv in model.conv1 if isinstance(conv, nn.Conv3d)]
    assert stem == [((5, 3, 3), 32), ((1, 3, 3), 32), ((1, 3, 3), 64)]
    for stage, (blocks, frames) in enumerate(zip(stages(model), (1, 1, 3, 3), strict=True)):
        for number, block in enumerate(blocks):
            stride = 2 if stage and not number else 1
            assert [getattr(block, f'conv{n}').kernel_size for n in (1, 2, 3)] == [(frames, 1, 1), (1, 3, 3), (1, 1, 1)]
            assert [getattr(block, f'conv{n}').stride for n in (1, 2, 3)] == [(1, 1, 1), (1, stride, stride), (1, 1, 1)]
            assert isinstance(block.gate, SelfGating) == (number == len(blocks) - 1)
            assert block.se.fc1.out_channels == 64 * 2 ** stage
            assert isinstance(block.downsample, nn.Sequential) == (number == 0)
    plain = timm.create_model('resnet3d_50', width=0.125)
    assert (plain.conv1.kernel_size, plain.conv1.stride) == ((5, 7, 7), (2, 2, 2))
    assert not [m for m in plain.modules() if hasattr(m, 'fc1') or isinstance(m, SelfGating)]


def test_gate_comes_before_squeeze_excite_and_both_before_the_addition():
    calls = []
    block = tiny(self_gating=True, drop_path_rate=0.5).layer2[0]
    for name in ('bn3', 'gate', 'se', 'drop_path', 'act3'):
        getattr(block, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    block(clips(1, 32, 2, 8, 8))
    assert calls == ['bn3', 'gate', 'se', 'drop_path', 'act3']


def test_every_block_of_a_stage_has_the_official_rate():
    model = ResNetRS3d(layers=(1, 2, 2, 1), width=0.125, drop_path_rate=0.1)
    rates = [[block.drop_path.drop_prob for block in stage] for stage in stages(model)]
    assert rates == [pytest.approx(r) for r in ([0.04], [0.06, 0.06], [0.08, 0.08], [0.1])]
    assert not [m for m in tiny().modules() if isinstance(m, DropPath)]


def test_initialisation_is_that_of_the_official_3d_code():
    model = resnetrs3d(layers=TINY['layers'], self_gating=True)
    gates = {id(module.fc) for module in model.modules() if isinstance(module, SelfGating)}
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            is_gate = id(module) in gates
            deviation = module.weight[0].numel() ** -0.5
            bound = 0.02 if is_gate else 2 * deviation / 0.87962566103423978  # two deviations before truncation
            assert 0.9 * bound < module.weight.abs().max() <= bound * 1.0001
            spread = 0.01 * 0.87962566103423978 if is_gate else deviation
            assert module.weight.std().item() == pytest.approx(spread, rel=0.1)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm3d):
            assert (module.weight == 1).all() and not module.bias.any()  # the last of a block, too: unlike in 2D
    for num_classes in (400, 500):
        assert model.fc.weight.shape == (num_classes, 2048) and not model.fc.bias.any()
        assert 0.049 < model.fc.weight.max() <= 0.05 and -0.05 <= model.fc.weight.min() < -0.049
        model.reset_classifier(500)
    zeroed = tiny(zero_init_last=True)
    assert not any(m.bn3.weight.any() for m in zeroed.modules() if isinstance(m, Bottleneck3d))


def test_kernels_of_gates_do_not_decay_and_all_others_do():
    model = tiny(self_gating=True)
    skipped = model.no_weight_decay()
    assert skipped == {f'layer{stage}.0.gate.fc.weight' for stage in (1, 2, 3, 4)}
    free, decayed = create_optimizer_v2(model, 'sgd', lr=0.1, weight_decay=4e-5).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kernels = {name for name, parameter in model.named_parameters() if parameter.ndim > 1} - skipped
    assert {names[id(parameter)] for parameter in decayed['params']} == kernels
    assert free['weight_decay'] == 0 and 'fc.weight' in kernels and 'layer1.0.se.fc1.weight' in kernels


@pytest.mark.parametrize('kwargs', KINDS.values(), ids=KINDS)
def test_training_reaches_every_parameter_and_checkpointing_changes_nothing(kwargs):
    model, x = tiny(**kwargs).train(), clips(2, 3, 4, 32, 32)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_timms_ways_to_take_a_network_apart_work():
    model, x = tiny(), clips(1, 3, 4, 32, 32)
    with torch.no_grad():
        maps = model.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
        features = timm.create_model('resnetrs3d', **TINY, features_only=True, out_indices=(1, 3)).eval()
        features.load_state_dict(model.state_dict(), strict=False)
        assert features.feature_info.reduction() == [4, 16] and features.feature_info.channels() == [32, 128]
        assert all(torch.equal(a, b) for a, b in zip(features(x), maps, strict=True))
        pruned = tiny()
        pruned.load_state_dict(model.state_dict())
        assert pruned.prune_intermediate_layers([2]) == [2]
        assert torch.equal(pruned(x), model.forward_intermediates(x, indices=[2], intermediates_only=True)[0])
        model.reset_classifier(0)
        assert model(x).shape == (1, model.head_hidden_size) == (1, model.num_features)
        model.reset_classifier(0, '')
        assert model(x).shape == (1, model.num_features, 2, 1, 1)
        model.reset_classifier(7, 'avg')
        assert model(x).shape == (1, 7) and model.get_classifier() is model.fc
    assert tiny(num_classes=0, global_pool='')(x).shape == (1, 256, 2, 1, 1)
    groups = group_parameters(model, model.group_matcher(coarse=True))
    assert sorted(groups) == list(range(6)) and groups[5] == ['fc.weight', 'fc.bias']


def test_a_network_is_traced_laid_out_and_placed_as_others_are():
    model, x = tiny(self_gating=True), clips(2, 3, 4, 33, 32)
    with torch.no_grad():
        expected = model(x)
        traced = create_feature_extractor(model, ['fc'])(x)['fc']
        assert torch.equal(traced, expected)
        layout = model.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
        assert torch.allclose(layout, expected, atol=1e-5)
    placed = tiny(device='meta', dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in placed.parameters()} == {('meta', torch.bfloat16)}


@pytest.mark.parametrize('kwargs', [{}, KINDS['baseline']], ids=['rs', 'baseline'])
@pytest.mark.parametrize('in_chans', [1, 4])
@pytest.mark.parametrize('num_classes', [0, 10])
def test_weight_file_loads_and_adapts_to_channels_and_classes(tmp_path, caplog, kwargs, in_chans, num_classes):
    source, x = tiny(**kwargs), clips(2, 3, 4, 32, 32)
    save_file(source.state_dict(), tmp_path / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'model.safetensors'), num_classes=10)
    with torch.no_grad():
        same = tiny(**kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(same(x), source(x))
        adapted = tiny(**kwargs, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans,
                       num_classes=num_classes)
        assert torch.equal(adapted.layer4[0].conv3.weight, source.layer4[0].conv3.weight)
        if in_chans == 1:  # the channels of the stem are summed
            gray = x[:, :1]
            assert torch.allclose(adapted.forward_features(gray),
                                  source.forward_features(gray.expand(-1, 3, -1, -1, -1)), atol=1e-4)
        assert adapted(clips(2, in_chans, 4, 32, 32)).shape == (2, num_classes or source.num_features)
    assert [record for record in caplog.records if record.levelname == 'WARNING'] == []


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(depth=51), 'depth=51 is unknown'),
    (dict(depth=50, layers=TINY['layers']), 'depth=50 and layers=.*one of the two'),
    (dict(layers=(3, 4, 0, 3)), 'four stages'),
    (dict(width=0.03), 'width=0.03 .*1/32'),
    (dict(padding='valid'), "padding='valid' is unknown: use 'same' or 'symmetric'"),
    (dict(global_pool='max'), "global_pool='max' is unknown: use 'avg' or ''"),
])
def test_impossible_arguments_raise_an_error_that_names_the_remedy(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('resnetrs3d', **kwargs)


@pytest.mark.parametrize('name', ['resnetrs3d_50', 'resnet3d_50'])
def test_named_depths_refuse_another_depth(name):
    with pytest.raises(ValueError, match="use the model 'resnetrs3d'"):
        timm.create_model(name, depth=26)


def test_batch_norm_arguments_reach_every_batch_norm():
    def momentum_and_eps(**kwargs):
        return {(m.momentum, m.eps) for m in tiny(**kwargs).modules() if isinstance(m, nn.BatchNorm3d)}

    assert momentum_and_eps() == {(0.1, 1e-5)}
    assert momentum_and_eps(bn_momentum=1.0, bn_eps=1e-3) == {(1.0, 1e-3)}


def test_dropout_and_width_are_arguments_of_named_depths():
    model = resnetrs3d_50(width=0.125, drop_rate=0.5)
    assert [len(stage) for stage in stages(model)] == [3, 4, 6, 3]
    assert (model.drop_rate, model.num_features, model.num_frames) == (0.5, 256, 32)
