"""The recipes of section 7.4: what they are, and that timm's train.py refuses those that are not of classification."""

import dataclasses

import pytest
import timm.data
from annotated_trees import write_voc
from conftest import ROOT

from timm_rs.data.datasets import create_datasets
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks import create_task
from timm_rs.training.build import build_training

RECIPES = sorted((ROOT / 'train_recipes/transfer').glob('*.yaml'))
DENSE = [path for path in RECIPES if read_file(path).get('task')]
PAPERS = [path for path in RECIPES if not path.stem.startswith('quickstart')]
VANILLA = dict(depth=152, squeeze_excite=False, resnet_d=False)


def test_all_of_them_have_the_same_vanilla_network():
    assert len(PAPERS) == 9 and len(DENSE) == 9
    for path in PAPERS:
        assert (read_file(path)['model'], read_file(path)['model_kwargs']) == ('resnetrs', VANILLA), path.stem


@pytest.mark.parametrize('path', DENSE, ids=lambda path: path.stem)
def test_timm_refuses_the_data_of_another_task_and_so_does_classification(path, tmp_path):
    recipe = Recipe(**read_file(path))
    root = write_voc(tmp_path / 'voc', 2, 1)  # whose folders timm would take for classes
    assert timm.data.create_dataset('', root=str(root), split='train').reader.class_to_idx
    with pytest.raises(AssertionError, match='Unknown torchvision dataset'):
        timm.data.create_dataset(recipe.dataset, root=str(root), split=recipe.train_split)
    with pytest.raises(UserError, match='cannot be opened: Unknown torchvision dataset'):
        create_datasets(dataclasses.replace(recipe, task='classification', data_dir=str(root)))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_a_run_of_it_can_be_built_around_a_small_network(path):
    recipe = Recipe(**read_file(path))
    small = VANILLA | dict(layers=(1, 1, 1, 1), width=0.125)
    del small['depth']
    recipe = dataclasses.replace(recipe, model_kwargs=small, num_classes=5, dataset='')
    task = create_task(recipe)
    training = build_training(recipe, Device('cpu'), task)
    assert training.settings.batch_size == recipe.batch_size and training.model.num_classes == 5
    size = training.data_config['input_size'][1:]
    assert size == ((416, 544) if path.stem == 'nyu_depth' else (recipe.img_size,) * 2)
    if recipe.task != 'classification':
        assert task.create_transform(recipe, training.data_config, True).size == size


def test_the_two_pretrainings_differ_in_what_section_7_4_says():
    first, second = (read_file(ROOT / f'train_recipes/transfer/imagenet_{name}.yaml') for name in ('supervised', 'rs'))
    assert {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)} == {
        'epochs', 'sched', 'decay_milestones', 'schedule', 'weight_decay', 'color_jitter', 'aa', 'randaugment',
        'smoothing', 'drop'}
    assert (first['epochs'], second['epochs']) == (90, 400)
    assert not {'drop_path', 'model_ema'} & second.keys()
