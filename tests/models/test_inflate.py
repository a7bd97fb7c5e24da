import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.models.inflate import inflate
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.training.build import build_model

LAYERS = (1, 1, 1, 1)
# Arguments of timm's ResNet, and of the network for clips.
KINDS = {
    'plain': ({}, dict(squeeze_excite=False, resnet_d=False)),
    'deep stem': (dict(stem_type='deep', stem_width=32), dict(squeeze_excite=False)),
}


def images_network(num_classes=7, **kwargs):
    """A network whose batch norms have something to do."""
    torch.manual_seed(0)
    model = ResNet(Bottleneck, LAYERS, num_classes=num_classes, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    return model


def clips_network(**kwargs):
    return timm.create_model('resnetrs3d', **dict(layers=LAYERS, num_classes=7, padding='symmetric') | kwargs).eval()


def difference(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize('kind', KINDS)
def test_a_still_clip_has_the_logits_of_its_image(kind):
    flat, model = images_network(**KINDS[kind][0]), clips_network(**KINDS[kind][1])
    image = torch.randn(2, 3, 40, 33)
    with torch.inference_mode():
        logits = flat(image)
        model.load_state_dict(inflate(flat.state_dict(), model, 'centre'))
        for frames in (1, 4, 5):
            assert difference(model(image.unsqueeze(2).expand(-1, -1, frames, -1, -1)), logits) < 1e-5
        # the mean sees zeros beyond the ends: of 8 maps, three on either side
        model.load_state_dict(inflate(flat.state_dict(), model, 'mean'))
        expected = flat.forward_features(image)
        maps = model.forward_features(image.unsqueeze(2).expand(-1, -1, 16, -1, -1))
        assert all(difference(maps[:, :, frame], expected) < 1e-5 for frame in (3, 4))
        assert difference(maps[:, :, 0], expected) > 0.01


def test_with_tensorflows_padding_it_has_not():
    flat, same = images_network(), clips_network(**KINDS['plain'][1], padding='same')
    same.load_state_dict(inflate(flat.state_dict(), same, 'centre'))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert difference(same(image.unsqueeze(2).expand(-1, -1, 4, -1, -1)), flat(image)) > 0.01


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    for name, model in (('plain', images_network()), ('clips', clips_network(**KINDS['plain'][1])),
                        ('rs', timm.create_model('resnetrs', layers=LAYERS, width=0.25))):
        save_file(model.state_dict(), folder / f'{name}.safetensors')
    return folder


def started(path, inflate, model='resnetrs3d', **kwargs):
    recipe = Recipe(model=model, model_kwargs=dict(layers=LAYERS) | kwargs, initial_checkpoint=str(path or ''),
                    inflate=inflate, num_classes=5, device='cpu')
    return build_model(recipe, Device('cpu'), create_task(recipe))[0]


def test_the_recipe_inflates_and_classes_of_another_number_start_anew(files):
    model = started(files / 'plain.safetensors', 'centre', **KINDS['plain'][1])
    weights = images_network().state_dict()
    assert torch.equal(model.conv1.weight[:, :, 2], weights['conv1.weight'])
    assert not model.conv1.weight[:, :, [0, 1, 3, 4]].any()
    assert model.fc.weight.shape == (5, 2048) and 0.049 < model.fc.weight.max() <= 0.05


@pytest.mark.parametrize(('name', 'rule', 'model', 'words'), [
    ('plain', '', 'resnetrs3d', 'is of a network for images, and the model takes clips: give --inflate centre'),
    ('rs', 'centre', 'resnetrs3d', 'cannot be inflated: a ResNet-RS or ResNet-D for images averages in its shortcuts'),
    ('clips', 'mean', 'resnetrs3d', 'the weights are of a network for clips already: leave out inflate'),
    ('plain', 'centre', 'resnetrs', 'takes images: inflate is for networks that take clips'),
    ('plain', 'centre', 'resnetrs3d', 'does not fit this model: 29 tensors are missing'),  # of the deep stem and SE
    ('', 'mean', 'resnetrs3d', 'inflate mean is for the weights of initial_checkpoint: give that, too'),
])
def test_what_cannot_be_inflated_is_refused_with_the_reason(files, name, rule, model, words):
    with pytest.raises(UserError, match=words):
        started(files / f'{name}.safetensors' if name else None, rule, model)
