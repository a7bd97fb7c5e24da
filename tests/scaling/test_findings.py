import dataclasses
import shutil

import pytest

from timm_rs.errors import UserError
from timm_rs.files import read_csv, write_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.scaling.findings import report, write_family
from timm_rs.scaling.points import Point


@pytest.fixture
def study(tiny_run, tmp_path):
    """The folder of a study, and nine finished points: a base, a deeper and a wider model with three seeds each."""
    recipe = Recipe(**read_file(tiny_run / 'args.yaml'))
    points, plan = [], []
    for model, series, depth, gmacs, top1 in (
            ('base', 'depth+width', 1, 1, 50), ('deep', 'depth', 3, 2, 70), ('wide', 'width', 1, 2, 60)):
        for seed in (42, 43, 44):
            name = f'{model}-s{seed}'
            points.append(Point(name, dataclasses.replace(recipe, seed=seed), series, 'epochs=2', dict(
                layers=[depth, 1, 1, 1])))
            plan.append(dict(run=name, img_size=32, epochs=2, params_m=gmacs, gmacs=gmacs, activations_m=gmacs,
                             train_flops=1e9, images=24, eval_images=10_000))
            shutil.copytree(tiny_run, tmp_path / 'runs' / name)
            rows = read_csv(tmp_path / 'runs' / name / 'summary.csv')
            rows[-1]['eval_top1'] = str(top1 + seed / 100)
            write_csv(tmp_path / 'runs' / name / 'summary.csv', rows)
            shutil.copy(tiny_run / 'args.yaml', tmp_path / 'runs' / name / 'args.yaml')
    write_csv(tmp_path / 'plan.csv', plan)
    return tmp_path, points


def test_a_report_has_verdicts_and_figures(study, monkeypatch):
    folder, points = study
    monkeypatch.setattr('timm_rs.scaling.collect.problem_of', lambda *_: '')  # all runs are one run's copies
    lines = report(folder, points, 'gmacs')
    assert lines[0] == '9 of 9 runs are finished'
    verdict, = (line for line in lines if ' beats ' in line)
    assert verdict.startswith('depth beats width by 10.0 ± 1.') and verdict.endswith('at equal GMACs (epochs=2)')
    assert all((folder / f'{name}.png').read_bytes()[:4] == b'\x89PNG' for name in ('power_law', 'series'))


def test_a_family_has_the_best_model_of_each_budget_as_a_recipe(study, monkeypatch):
    folder, points = study
    monkeypatch.setattr('timm_rs.scaling.collect.problem_of', lambda *_: '')
    lines = write_family(folder, points, [1, 2.5], 'gmacs')
    recipes = [Recipe(**read_file(path)) for path in sorted((folder / 'family').iterdir())]
    assert [path.name for path in sorted((folder / 'family').iterdir())] == ['epochs_2-1.yaml', 'epochs_2-2.yaml']
    assert recipes == [points[0].recipe, points[3].recipe]
    assert any('is dominated by' in line for line in lines)
    with pytest.raises(UserError, match='no point fits in a budget of 0.5 gmacs: the cheapest takes 1'):
        write_family(folder, points, [0.5], 'gmacs')


def test_a_study_of_which_nothing_is_finished_says_so(study):
    folder, points = study
    shutil.rmtree(folder / 'runs')
    with pytest.raises(UserError, match='no run in .* is finished yet'):
        report(folder, points, 'gmacs')
