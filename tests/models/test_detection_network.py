"""torchvision's detectors on backbones of timm's."""

import pytest
import timm
import torch

from timm_rs.models.detection_network import create_detection_network

TINY = dict(model_name='resnetrs', layers=(1, 1, 1, 1), width=0.125)
SMALL = dict(channels=8, head_channels=8, finest=8, coarser_levels=False)
DETECTORS = 'faster_rcnn', 'retinanet'


def created(detector='faster_rcnn', **network):
    torch.manual_seed(0)
    return create_detection_network(num_classes=3, network=SMALL | dict(detector=detector) | network, **TINY)


def targets_of(*counts):
    rng = torch.Generator().manual_seed(0)
    boxes = [torch.rand(count, 4, generator=rng) * 20 for count in counts]
    return [dict(boxes=torch.cat([some[:, :2], some[:, 2:] + 30], 1), labels=torch.arange(len(some)) % 3)
            for some in boxes]


def images(count=2):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('detector', DETECTORS)
@pytest.mark.parametrize('counts', [(3, 1), (2, 0), (0, 0)], ids=['boxes', 'one image without', 'none at all'])
def test_losses_are_finite_and_reach_every_weight(detector, counts):
    model = created(detector).train()
    losses = model(images(), targets_of(*counts))
    assert len(losses) == (4 if detector == 'faster_rcnn' else 2)
    total = torch.stack([*losses.values()]).sum()
    total.backward()
    assert total.isfinite() and total > 0
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name


def test_layers_that_see_into_boxes_train_on_no_more_of_an_image_than_they_are_told():
    seen = []
    model = created(sampled_boxes=5).train()
    model.get_classifier().register_forward_hook(lambda layer, inputs, outputs: seen.append(len(outputs)))
    model(images(), targets_of(3, 1))
    assert seen == [2 * 5]


@pytest.mark.parametrize('detector', DETECTORS)
def test_what_is_found_has_labels_from_0_and_lies_within_the_image(detector):
    model = created(detector).eval()
    with torch.no_grad():
        model.get_classifier().bias.zero_()  # nothing is unlikely
        found = model(images())
    assert len(found) == 2
    for one in found:
        assert 0 < len(one['boxes']) <= 100 and {*one['labels'].tolist()} <= {0, 1, 2}
        assert (one['boxes'] >= 0).all() and (one['boxes'] <= 64).all()
        assert (one['scores'].diff() <= 0).all() and one['scores'].dtype is torch.float32


@pytest.mark.parametrize(('detector', 'first', 'num_outputs'), [('faster_rcnn', 1, 4), ('retinanet', 0, 3)])
def test_only_faster_rcnn_has_an_output_for_no_object(detector, first, num_outputs, monkeypatch):
    model, seen = created(detector), []
    assert model.num_classes == 3 and model.get_classifier().weight.shape[0] in (num_outputs, 9 * num_outputs)

    def answer(images, targets=None):
        seen.append(targets)
        return [dict(labels=torch.tensor([first, first + 2]))]
    monkeypatch.setattr(model.detector, 'forward', answer)
    model.train()(images(), targets_of(3))
    assert [target['labels'].tolist() for target in seen[0]] == [[first, first + 1, first + 2]]
    assert model.eval()(images())[0]['labels'].tolist() == [0, 2]


@pytest.mark.parametrize('detector', DETECTORS)
def test_in_bfloat16_boxes_anchors_and_losses_stay_float32(detector):
    model = created(detector).train()
    plain = model(images(), targets_of(3, 1))
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = model(images(), targets_of(3, 1))
        found = model.eval()(images())
    generator = model.detector.rpn.anchor_generator if detector == 'faster_rcnn' else model.detector.anchor_generator
    assert {anchors.dtype for anchors in generator.cell_anchors} == {torch.float32}
    assert {one['boxes'].dtype for one in found} == {torch.float32}
    assert {loss.dtype for loss in mixed.values()} == {torch.float32}
    for name, loss in plain.items():
        assert mixed[name].item() == pytest.approx(loss.item(), rel=0.15), name


@pytest.mark.parametrize(('network', 'sizes'), [
    (dict(), [64, 128, 256]), (dict(finest=0, coarser_levels=True), [32, 64, 128, 256, 512]),
    (dict(detector='retinanet'), [32, 64, 128]),
    (dict(detector='retinanet', coarser_levels=True), [32, 64, 128, 256, 512]),
    (dict(anchor_scale=3.0, finest=16), [48, 96])])
def test_levels_and_anchors_are_those_of_the_authors(network, sizes):
    model = created(**network).eval()
    rpn = getattr(model.detector, 'rpn', model.detector)
    assert [size[0] for size in rpn.anchor_generator.sizes] == sizes
    assert {shape for shapes in rpn.anchor_generator.aspect_ratios for shape in shapes} == {0.5, 1, 2}
    with torch.no_grad():
        levels = model.detector.backbone(images())
    first = network.get('finest') or (8 if network.get('finest') is None else 4)
    assert next(iter(levels.values())).shape == (2, 8, 64 // first, 64 // first)
    assert len(levels) == len(sizes)


def test_a_backbone_without_feature_maps_is_refused():
    with pytest.raises(ValueError, match='no feature maps of stride 4, 8, 32, which a detector needs'):
        create_detection_network('vit_tiny_patch16_224', 3, {})


def test_the_backbone_is_timms():
    model, backbone = created(), timm.create_model('resnetrs', features_only=True, layers=(1, 1, 1, 1), width=0.125)
    assert model.backbone.state_dict().keys() == backbone.state_dict().keys()
    model.set_grad_checkpointing()
    assert torch.stack([*model.train()(images(), targets_of(1, 1)).values()]).sum().isfinite()
