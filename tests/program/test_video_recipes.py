"""Table 6, row by row: what each adds, the paper's numbers, and the values of the authors' configuration."""

import pytest
from conftest import ROOT

from timm_rs.device.torch_device import Device
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks import create_task
from timm_rs.training.build import build_model

RECIPES = ROOT / 'train_recipes'
TOP1 = (73.4, 74.4, 74.9, 76.1, 76.1, 76.3, 76.4, 77.4, 77.9, 78.2)
ADDS = ({'drop'}, {'smoothing'}, {'drop_path'},
        {'model_ema', 'model_ema_decay', 'model_ema_warmup', 'ema_ramp', 'bn_momentum'}, {'weight_decay'}, {'epochs'},
        {'scale'}, {'model_kwargs'}, {'model_kwargs'})
ROWS = sorted((RECIPES / 'video').glob('*.yaml'))


def changed(before, after):
    first, second = read_file(before), read_file(after)
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}


def test_each_row_of_table_6_changes_only_what_it_adds():
    assert [changed(*pair) for pair in zip(ROWS[:-1], ROWS[1:], strict=True)] == list(ADDS)
    assert changed(ROWS[-1], RECIPES / 'k400_rs3d50.yaml') == {'model_kwargs'}


@pytest.mark.parametrize(('path', 'top1'), list(zip(ROWS, TOP1, strict=True)), ids=lambda value: getattr(
    value, 'stem', ''))
def test_headers_give_the_papers_accuracy(path, top1):
    header = path.read_text().partition('device_modules')[0]
    assert f'# Expected:   {top1} % top-1 (paper, Table 6, ' in header and 'not rerun here' in header
    assert f'--recipe train_recipes/video/{path.name} ' in header


def test_the_last_recipe_is_the_authors_configuration():
    recipe = Recipe(**read_file(RECIPES / 'k400_rs3d50.yaml'))
    assert (recipe.epochs, recipe.warmup_epochs, recipe.weight_decay, recipe.smoothing, recipe.drop,
            recipe.drop_path) == (350, 5, 4e-5, 0.1, 0.5, 0.1)
    assert recipe.learning_rate(1) * 1024 / recipe.batch_size == pytest.approx(0.8)
    assert (recipe.scale, recipe.ratio, recipe.hflip) == ([0.08, 1.0], [0.5, 2.0], 0.5)
    task = create_task(recipe)
    assert (task.knobs.num_frames, task.knobs.frame_stride) == (32, 2)
    assert task.eval_config(dict(input_size=(3, 224, 224)))['input_size'] == (3, 256, 256)


@pytest.mark.parametrize(('name', 'params', 'gmacs'), [
    ('video/table6_01_baseline', 32.49, 91.03), ('video/table6_09_squeeze_excite', 42.57, 91.04),
    ('video/table6_10_resnet_d', 42.56, 88.02), ('k400_rs3d50', 48.13, 88.02)])
def test_networks_are_those_of_the_paper(name, params, gmacs):
    recipe = Recipe(**read_file(RECIPES / f'{name}.yaml'), num_classes=400)
    model, config = build_model(recipe, Device('cpu'), create_task(recipe))
    assert config['input_size'] == (3, 224, 224) and config['num_frames'] == 32
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(params, abs=0.01)
    header = (RECIPES / f'{name}.yaml').read_text()
    assert f'; {round(2 * gmacs)} GFLOPs per clip' in header
