"""Networks with an output for every pixel."""

import pytest
import timm
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import timm_rs  # noqa: F401  registers the models
from timm_rs.models.dense_network import Pyramid, create_dense_network, resized, resized_by_products

TINY = dict(layers=(1, 1, 1, 1), width=0.125)


@pytest.mark.parametrize('decoder', ['pyramid', 'fused'])
@pytest.mark.parametrize(('name', 'arguments'), [('resnetrs', TINY), ('efficientnet_rs_b0', {}), ('resnet18', {})])
def test_every_parameter_learns_and_every_pixel_gets_an_answer(name, arguments, decoder):
    model = create_dense_network(name, 5, decoder, channels=8, head_convs=1, **arguments)
    outputs = model(torch.randn(2, 3, 64, 96))
    assert outputs.shape == (2, 5, 64, 96) and model.get_classifier().out_channels == 5
    outputs.square().mean().backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]


def test_the_backbone_has_the_weights_of_the_classifier_by_their_names():
    classifier = timm.create_model('resnetrs', **TINY)
    model = create_dense_network('resnetrs', 5, 'pyramid', channels=8, head_convs=1, **TINY)
    own = model.backbone.state_dict()
    assert own.keys() == {name for name in classifier.state_dict() if not name.startswith('fc.')}
    model.backbone.load_state_dict({name: value for name, value in classifier.state_dict().items() if name in own})
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval().backbone(images)[-1], classifier.eval().forward_features(images))


@pytest.mark.parametrize(('decoder', 'stride'), [('pyramid', 8), ('fused', 4)])
def test_the_head_sees_the_finest_level_of_its_decoder(decoder, stride):
    model = create_dense_network('resnetrs', 5, decoder, channels=8, head_convs=0, **TINY)
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    model(torch.randn(2, 3, 64, 96))
    assert seen == [(2, 8, 64 // stride, 96 // stride)]


def test_a_backbone_without_such_maps_is_refused_by_its_strides():
    with pytest.raises(ValueError, match='no feature maps of stride 8, 32, which the decoder pyramid .*, only of 16'):
        create_dense_network('vit_tiny_patch16_224', 5, 'pyramid', 8, 1)


def test_the_pyramid_is_torchvisions():
    torch.manual_seed(0)
    ours = Pyramid([3, 4, 5], 8, LastLevelP6P7(8, 8), norm_layer=torch.nn.BatchNorm2d)
    theirs = FeaturePyramidNetwork([3, 4, 5], 8, LastLevelP6P7(8, 8), norm_layer=torch.nn.BatchNorm2d)
    theirs.load_state_dict(ours.state_dict())
    maps = {name: torch.randn(2, channels, *size) for name, channels, size in (
        ('a', 3, (13, 20)), ('b', 4, (7, 10)), ('c', 5, (4, 5)))}
    found, expected = ours(maps), theirs(maps)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize('nearest', [False, True])
@pytest.mark.parametrize('size', [(8, 12), (5, 7), (64, 96), (13, 33)])
def test_products_resize_as_interpolate_does(size, nearest):
    maps = torch.randn(2, 3, 5, 7)
    found = resized_by_products(maps, size, nearest)
    torch.testing.assert_close(found, resized(maps, size, nearest), rtol=1e-5, atol=1e-5)
