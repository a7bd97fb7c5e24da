import pytest

from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.reading import read_file
from timm_rs.scaling.points import create_points
from timm_rs.scaling.study_file import STUDIES, find_study, read_study

BASE = 'recipe: rs101\nbase: {model: resnetrs, depth: 101, width: 1.0}\n'


@pytest.fixture
def points(tmp_path):
    def call(text):
        path = tmp_path / 'study.yaml'
        path.write_text(text)
        return create_points(read_study(path))
    return call


def test_series_go_from_the_base_along_one_axis_at_a_time(points):
    made = points(BASE + 'axes: {depth: [101, 200], width: [1.0, 1.5]}\nregimes: {epochs: [10]}\nseeds: [7, 8]')
    assert [(point.name, point.series, point.regime) for point in made] == [
        (f'{name}-i192-e10-s{seed}', series, 'epochs=10')
        for name, series in (('d101-w1.0', 'depth+width'), ('d200-w1.0', 'depth'), ('d101-w1.5', 'width'))
        for seed in (7, 8)]
    assert made[3].axes == dict(depth=200, width=1.0)
    recipe = made[3].recipe
    assert recipe.model_kwargs == dict(depth=200, width=1.0) and (recipe.epochs, recipe.seed) == (10, 8)
    assert recipe.weight_decay == read_file('rs101')['weight_decay']


def test_a_grid_has_all_combinations_and_its_corners_are_series_of_their_own(points):
    made = points(BASE + 'design: grid\naxes: {depth: [101, 200], width: [1.0, 1.5]}')
    assert {point.name.partition('-i')[0]: point.series for point in made} == {
        'd101-w1.0': 'depth+width', 'd101-w1.5': 'width', 'd200-w1.0': 'depth', 'd200-w1.5': 'depth*width'}


def test_layers_are_depth_and_take_the_place_of_a_depth(points):
    base, deep = points('recipe: quickstart\nbase: {layers: [1, 1, 1, 1]}\naxes: {layers: [[2, 1, 1, 1]]}')
    assert (base.series, deep.series) == ('depth', 'depth')
    assert deep.recipe.model_kwargs == dict(width=0.25, layers=[2, 1, 1, 1])  # quickstart.yaml has a depth
    assert deep.name == 'w0.25-l2.1.1.1-i64-e20-s42'


def test_any_key_of_a_recipe_is_an_axis_or_a_regime_and_recipes_are(points):
    made = points('recipe: rs50\nbase: {train_split: few}\naxes: {recipe: [enet_rs_b4_i192], lr: [0.5]}\n'
                  'regimes: {train_split: [few, all of them]}')
    assert [(point.recipe.model, point.recipe.train_split, point.series) for point in made[:3]] == [
        ('resnetrs_50', 'few', 'recipe+lr'), ('efficientnet_rs_b4', 'few', 'recipe'), ('resnetrs_50', 'few', 'lr')]
    assert made[1].name == 'i192-e350-recipe_enet_rs_b4_i192-lr_null-train_split_few-s42'
    assert made[3].regime == 'train_split=all of them' and 'train_split_all_of_them' in made[3].name


def test_a_run_keeps_its_name_and_recipe_when_the_study_grows(points):
    before = points(BASE + 'axes: {depth: [200]}\nregimes: {epochs: [10]}')
    after = points(BASE + 'axes: {depth: [200, 300], width: [2.0], img_size: [224]}\nregimes: {epochs: [10, 100]}\n'
                   'seeds: [42, 43]')
    grown = {point.name: point.recipe for point in after}
    assert len(after) == 2 * 5 * 2 and all(grown[point.name] == point.recipe for point in before)


def test_rules_apply_in_order_and_see_what_those_before_have_set(points):
    made = points(BASE + '''
axes: {width: [1.5, 2.0]}
rules:
  - {if: {width: [1.5, 2.0]}, set: {drop: 0.5}}
  - {if: {width: 2.0, drop: 0.5}, set: {drop: 0.75, aa: null}}
''')
    assert [(point.recipe.drop, point.recipe.aa is None) for point in made] == [
        (0.25, False), (0.5, False), (0.75, True)]


@pytest.mark.parametrize(('text', 'words'), [
    ('recipe: rs50\naxes: {depth: [50]}', 'depth is an axis, and the base has none; give it one, such as base: '
     '{depth: 50}'),
    (BASE + 'axes: {width: [2.0]}\nrules: [{if: {width: 3.0}, set: {drop: 0.1}}]', 'rule 1 is for none of the points'),
    (BASE + 'axes: {train_split: [a b, a_b]}', 'two points would be called d101-w1.0-i192-e350-train_split_a_b-s42'),
    (BASE + 'axes: {val_split: [""]}', 'its recipe needs task: classification, eval_metric: top1 and a val_split'),
    (BASE + 'axes: {patience: [3]}', 'compares runs of full length'),
    (BASE + 'axes: {eval_metric: [loss]}', 'its recipe needs'),
    ('recipe: nowhere.yaml', 'recipe nowhere.yaml does not exist')])
def test_what_cannot_be_compared_or_told_apart_is_refused(points, text, words):
    with pytest.raises(RecipeError) as error:
        points(text)
    assert words in str(error.value)


def test_a_study_from_the_hub_imports_nothing_unasked(points, tmp_path):
    (tmp_path / 'config.json').touch()
    with pytest.raises(RecipeError, match='comes from the Hub and would import evil'):
        points(BASE.replace('}', ', device_modules: [evil]}'))


def test_figure_3_of_the_paper_has_72_points():
    made = create_points(read_study(find_study('paper')))
    assert len({point.name for point in made}) == len(made) == 72
    models = {(kwargs['depth'], kwargs['width']) for kwargs in (point.recipe.model_kwargs for point in made)}
    assert models == {(101, 1.0), (200, 1.0), (300, 1.0), (400, 1.0), (101, 1.5), (101, 2.0)}
    assert {(point.recipe.epochs, point.recipe.img_size) for point in made} == {
        (epochs, size) for epochs in (10, 100, 350) for size in (128, 160, 224, 320)}
    for point in made:  # Appendix E: short runs have flips and crops only
        is_long = point.recipe.epochs == 350
        assert (point.recipe.aa is not None, point.recipe.smoothing > 0, point.recipe.drop > 0) == 3 * (is_long,)


@pytest.mark.parametrize(('name', 'count'), dict(
    paper=72, small=24, small_digits=24, table1=22, table2=24, table1_small=44, table2_small=48,
    cifar100_grid=56).items())
def test_studies_that_ship_can_be_read(name, count):
    assert len(create_points(read_study(STUDIES / f'{name}.yaml'))) == count


def test_the_grid_of_cifar_is_even_in_logarithms_and_divides_decays_by_rates():
    recipes = [point.recipe for point in create_points(read_study(STUDIES / 'cifar100_grid.yaml'))]
    assert all(recipe.weight_decay_by_rate and recipe.learning_rate(1) == recipe.lr for recipe in recipes)
    for values, (low, high) in (({recipe.lr for recipe in recipes}, (1e-4, 1e-1)),
                                ({recipe.weight_decay for recipe in recipes} - {0}, (1e-6, 1e-3))):
        assert sorted(values) == pytest.approx([low * (high / low) ** (step / 6) for step in range(7)], rel=2e-3)
    assert len({(recipe.lr, recipe.weight_decay) for recipe in recipes}) == 7 * 8
