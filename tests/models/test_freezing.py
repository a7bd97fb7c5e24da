"""Frozen parts are the ones that were named, and training leaves them as they are."""

import pytest
import timm
import torch
from torch import nn

from timm_rs.models.dense_network import create_dense_network
from timm_rs.models.detection_network import create_detection_network
from timm_rs.models.freezing import freeze

TINY = dict(resnetrs=dict(layers=(1, 1, 1, 1), width=0.125), test_efficientnet={}, test_vit={}, test_convnext={})


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize('name', TINY)
def test_a_frozen_backbone_leaves_the_classifier(name):
    model = timm.create_model(name, num_classes=3, **TINY[name])
    freeze(model, 'backbone')
    classifier = {id(weight) for weight in model.get_classifier().parameters()}
    assert {id(weight) for weight in model.parameters() if weight.requires_grad} == classifier


@pytest.mark.parametrize(('name', 'number', 'beginnings'), [
    ('resnetrs', 1, ('conv1.', 'bn1.', 'maxpool.')),
    ('resnetrs', 3, ('conv1.', 'bn1.', 'maxpool.', 'layer1.', 'layer2.')),
    ('test_efficientnet', 2, ('conv_stem.', 'bn1.', 'blocks.0.'))])
def test_parts_count_from_the_input(name, number, beginnings):
    model = timm.create_model(name, **TINY[name])
    freeze(model, str(number))
    assert trained(model) == {name for name, _ in model.named_parameters() if not name.startswith(beginnings)}


@pytest.mark.parametrize(('create', 'options', 'beginning'), [
    (create_dense_network, dict(channels=8, head_convs=1, decoder='pyramid'), 'backbone.'),
    *[(create_detection_network, dict(network=dict(detector=name, channels=8, head_channels=8)),
       'detector.backbone.body.') for name in ('faster_rcnn', 'retinanet')]])
def test_the_backbone_of_a_network_with_another_head_is_what_it_calls_so(create, options, beginning):
    model = create('resnetrs', num_classes=5, **options, **TINY['resnetrs'])
    modules = freeze(model, 'backbone')
    assert trained(model) == {name for name, _ in model.named_parameters() if not name.startswith(beginning)}
    assert model.backbone in modules


def test_statistics_of_frozen_batch_norm_stay_and_dropping_ends_there():
    model = timm.create_model('resnetrs', **TINY['resnetrs'])
    modules = freeze(model, '2')
    model.train()
    for module in modules:
        module.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all('running' in name or 'num_batches' in name for name in changed)
    assert not [name for name in changed if name.startswith(('conv1.', 'bn1.', 'layer1.'))]
    assert not any(module.training for module in model.layer1.modules()) and model.layer2.training


@pytest.mark.parametrize(('wanted', 'words'), [
    ('all', 'backbone, or a number'), ('0', 'backbone, or a number'), ('-1', 'backbone, or a number'),
    ('6', 'has 6 parts'), ('99', 'has 6 parts')])
def test_what_cannot_be_frozen_is_refused_and_nothing_is(wanted, words):
    model = timm.create_model('resnetrs', **TINY['resnetrs'])
    with pytest.raises(ValueError, match=words):
        freeze(model, wanted)
    assert len(trained(model)) == len(list(model.parameters()))
    with pytest.raises(ValueError, match='does not know the parts'):
        freeze(nn.Linear(2, 2), '1')
