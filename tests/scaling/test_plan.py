import pytest

from timm_rs.errors import UserError
from timm_rs.files import read_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.scaling.plan import Counts, create_counts, create_plan, hours_of, table, write_plan
from timm_rs.scaling.points import create_points
from timm_rs.scaling.study_file import find_study, read_study

# Parameters in millions and GFLOPs (2 x multiply-adds) of one image of 224 px, by depth and width: the grid of the
# paper's section 6, counted from the released architecture
GRID = {(101, 1.0): (63.62, 16.35), (101, 1.5): (141.49, 36.77), (101, 2.0): (250.08, 65.35),
        (200, 1.0): (93.21, 30.78), (300, 1.0): (134.39, 44.78), (400, 1.0): (182.23, 59.66)}
TINY = 'recipe: quickstart\nbase: {layers: [1, 1, 1, 1], width: 0.125, img_size: 32, num_classes: 10, ' \
       'train_num_samples: 1000, val_num_samples: 100}\n'


@pytest.fixture
def plan(tmp_path):
    def call(text):
        path = tmp_path / 'study.yaml'
        path.write_text(text)
        return create_plan(create_points(read_study(path)))
    return call


def test_figure_3_costs_what_the_grid_of_the_paper_does():
    points = [point for point in create_points(read_study(find_study('paper'))) if point.recipe.img_size == 224]
    plan = create_plan(points)
    assert len(plan) == 3 * len(GRID)
    for planned in plan:
        kwargs = planned.point.recipe.model_kwargs
        params, gflops = GRID[kwargs['depth'], kwargs['width']]
        row = planned.row()
        assert row['params_m'] == pytest.approx(params, abs=0.005)
        assert 2 * row['gmacs'] == pytest.approx(gflops, abs=0.005)
        assert planned.train_flops == 3 * 2 * planned.cost.macs * 1_256_145 * planned.point.recipe.epochs
    # The most of what Figure 3 takes: 400 layers for 350 epochs
    assert max(planned.train_flops for planned in plan if planned.point.axes['width'] == 1.0) == pytest.approx(
        3 * 59.66e9 * 1_256_145 * 350, rel=1e-3)


def test_each_run_has_a_recipe_and_a_row_before_anything_runs(plan, tmp_path):
    made = plan(TINY + 'axes: {width: [0.25]}\nregimes: {epochs: [2, 4]}\nseeds: [1, 2]')
    write_plan(tmp_path, made)
    rows = read_csv(tmp_path / 'plan.csv')
    assert [row['run'] for row in rows] == [planned.point.name for planned in made] and len(rows) == 8
    assert {(row['img_size'], row['epochs'], row['images'], row['eval_images']) for row in rows} == {
        ('32', epochs, '1000', '100') for epochs in '24'}
    assert float(rows[2]['gmacs']) > 3 * float(rows[0]['gmacs'])
    for planned in made:
        assert Recipe(**read_file(tmp_path / f'recipes/{planned.point.name}.yaml')) == planned.point.recipe


def test_a_recipe_that_stays_is_not_written_again(plan, tmp_path):
    made = plan(TINY)
    write_plan(tmp_path, made)
    path, = tmp_path.glob('recipes/*.yaml')
    before = path.stat().st_ino
    write_plan(tmp_path, made)
    assert path.stat().st_ino == before
    write_plan(tmp_path, [made[0]._replace(point=made[0].point._replace(recipe=Recipe()))])
    assert path.stat().st_ino != before


def test_models_of_other_families_and_fixed_sizes_are_planned(plan):
    made = plan('recipe: quickstart\nbase: {model: efficientnet_rs_b0, num_classes: 10, train_num_samples: 10, '
                'val_num_samples: 10}\naxes: {model: [vit_tiny_patch16_224]}'.replace('quickstart', 'enet_rs_b4_i192')
                + '\nregimes: {img_size: [128, 160]}')
    assert [planned.problem for planned in made] == 4 * ['']
    assert len({planned.cost.macs for planned in made}) == 4
    assert [planned.img_size for planned in made] == [128, 128, 160, 160]


@pytest.mark.parametrize(('base', 'words'), [
    ('width: 0.01', 'width=0.01 leaves layers without channels'), ('depth: 27', 'depth=27 is unknown'),
    ('model: resnet_of_nobody', 'resnet_of_nobody')])
def test_a_model_that_cannot_be_built_is_a_problem_of_its_point_alone(plan, base, words):
    key, _, value = base.partition(': ')
    text = TINY if key != 'depth' else TINY.replace('layers: [1, 1, 1, 1]', 'depth: 26')
    good, bad = plan(text + f'axes: {{{key}: [{value}]}}')
    assert not good.problem and words in bad.problem and bad.train_flops == 0


def test_images_that_are_too_small_for_a_model_are_a_problem_of_their_point_alone(plan):
    good, bad = plan('recipe: enet_rs_b4_i192\nbase: {model: vgg11, num_classes: 10, train_num_samples: 10, '
                     'val_num_samples: 10, img_size: 224}\naxes: {img_size: [8]}')
    assert not good.problem and 'model vgg11 cannot take images of 8 px' in bad.problem


def test_images_and_classes_are_those_of_the_data_where_nobody_says(image_folder):
    recipe = Recipe(data_dir=str(image_folder))
    assert create_counts(recipe) == Counts(24, 15, 3)
    assert create_counts(Recipe(data_dir=str(image_folder), train_num_samples=100)) == Counts(100, 15, 3)
    with pytest.raises(UserError, match='no data'):
        create_counts(Recipe())


def test_the_data_of_streams_must_be_said(monkeypatch):
    monkeypatch.setattr('timm_rs.scaling.plan.build_data', lambda *_: (iter(()), iter(()), Recipe(num_classes=10)))
    with pytest.raises(UserError, match='give train_num_samples, val_num_samples and num_classes'):
        create_counts(Recipe())


def test_hours_are_those_of_measured_updates_or_else_of_a_rate(plan):
    planned, = plan(TINY + 'regimes: {epochs: [3]}')
    assert hours_of(planned, None, None) is None
    assert hours_of(planned, planned.train_flops, None) == pytest.approx(1 / 3600)
    assert hours_of(planned, 1.0, 36.0) == pytest.approx(3 * 16 * 36 / 3.6e6)  # 16 updates of 64 of 1000 images
    lines = table([planned, planned], None, {planned.point.name: 36.0})
    assert lines[1].startswith(planned.point.name) and lines[1].endswith('0.00048')
    assert lines[-1].startswith('2 runs, ') and lines[-1].endswith('0.00096 hours one after the other')
    assert '--flops-per-second' in table([planned], None, {})[-1]
