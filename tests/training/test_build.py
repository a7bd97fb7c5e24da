import pytest
import timm
import torch

from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.training.build import create_network


@pytest.mark.parametrize(('model', 'kwargs', 'own'), [
    ('test_vit', {}, {}),  # takes images of any size with the weights for its own, 160 px
    ('test_vit', {'dynamic_img_size': False}, {'img_size': 32}),
    ('vit_tiny_patch16_224', {'depth': 1, 'embed_dim': 12}, {'img_size': 32}),
])
def test_a_model_has_the_recipes_image_size_in_its_weights_unless_it_takes_all(model, kwargs, own):
    recipe = Recipe(model=model, model_kwargs=kwargs, img_size=32)
    torch.manual_seed(0)
    network, data_config = create_network(recipe, create_task(recipe))
    assert data_config['input_size'] == (3, 32, 32)
    network(torch.zeros(1, 3, 32, 32))
    torch.manual_seed(0)
    expected = timm.create_model(model, **kwargs, **own).state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize('loader', ['fast', 'timm'])
def test_images_are_refused_where_the_network_takes_clips(run, image_folder, loader):
    done = run('--model', 'resnetrs3d', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', 'num_frames=8',
               '--data-dir', image_folder, '--device', 'cpu', '--workers', '0', '--loader', loader,
               '--batch-size', '8')
    assert done.code == 2 and done.err.count('\n') == 1
    assert 'resnetrs3d takes clips of 8 frames, and here are images: say --task video' in done.err
