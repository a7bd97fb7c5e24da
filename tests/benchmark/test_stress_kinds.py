"""Each kind of run has its data, all of it, and train.py takes what it is told."""

import pytest

from timm_rs.benchmark.stress_data import SPLITS, write_data
from timm_rs.benchmark.stress_kinds import KINDS
from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.tasks import add_task_arguments, create_task


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_data(folder, KINDS)
    return folder


@pytest.mark.parametrize('kind', KINDS)
def test_a_kind_is_complete(data, kind):
    argv = [word.format(data) for word in KINDS[kind].arguments]
    parser = Parser()
    add_recipe_arguments(parser)
    add_task_arguments(parser, argv)
    recipe, _ = resolve(parser.parse_args(argv))
    train, validation, num_classes = create_task(recipe).create_datasets(recipe)
    times = 2 if recipe.pseudo_dir else 1  # the pool is the training data once more
    assert (len(train), len(validation)) == (3 * times * SPLITS['train'], 3 * SPLITS['validation'])
    assert num_classes == (1 if kind == 'depth' else 3) and train.read(0)[0]


def test_only_data_that_is_wanted_is_written(tmp_path):
    write_data(tmp_path, ['videos', 'frames'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['frames', 'videos']
