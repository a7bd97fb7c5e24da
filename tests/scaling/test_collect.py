import dataclasses
import shutil

import pytest

from timm_rs.errors import UserError
from timm_rs.files import read_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.scaling.collect import COLUMNS, write_results
from timm_rs.scaling.points import Point

PLAN = 'run,img_size,epochs,params_m,gmacs,activations_m,train_flops,images,eval_images\n'


@pytest.fixture
def study(tiny_run, tmp_path):
    """The folder of a study and three points: the last is not finished."""
    recipe = Recipe(**read_file(tiny_run / 'args.yaml'))
    points = [Point(f'run{number}', dataclasses.replace(recipe, seed=seed), series, 'epochs=2', dict(
        layers=[number, 1, 1, 1], img_size=32)) for number, seed, series in (
            (1, 42, 'depth+width'), (2, 42, 'depth'), (3, 43, 'width'))]
    for name in ('run2', 'run1'):
        shutil.copytree(tiny_run, tmp_path / 'runs' / name)
    (tmp_path / 'plan.csv').write_text(PLAN + ''.join(
        f'run{number},32,2,0.175054,0.000{number},0.1,1e9,24,15\n' for number in (1, 2, 3)))
    return tmp_path, points


def test_results_have_a_row_per_finished_run_in_the_order_of_the_study(study, tiny_run):
    folder, points = study
    assert write_results(folder, points) == read_csv(folder / 'results.csv')
    first, second = read_csv(folder / 'results.csv')
    assert list(first) == [*COLUMNS, 'layers']
    last = read_csv(tiny_run / 'summary.csv')[-1]
    assert first == dict(
        run='run1', series='depth+width', regime='epochs=2', seed='42', img_size='32', epochs='2', params_m='0.175054',
        gmacs='0.0001', activations_m='0.1', step_ms='', eval_top1=last['eval_top1'], eval_images='15',
        train_loss=last['train_loss'], eval_loss=last['eval_loss'], layers='[1, 1, 1, 1]')
    assert (second['run'], second['layers']) == ('run2', '[2, 1, 1, 1]')


def test_results_do_not_have_runs_of_another_recipe(study):
    folder, points = study
    points[0] = points[0]._replace(recipe=dataclasses.replace(points[0].recipe, lr=0.5))
    assert [row['run'] for row in write_results(folder, points)] == ['run2']


def test_a_study_without_results_has_the_columns_of_one(study):
    folder, points = study
    assert write_results(folder, points[2:]) == []
    assert (folder / 'results.csv').read_text() == ','.join(COLUMNS) + '\n'
    (folder / 'plan.csv').unlink()
    with pytest.raises(UserError, match=r'plan\.csv cannot be read'):
        write_results(folder, points)


@pytest.mark.parametrize(('text', 'times'), [
    ('run,step_ms\nrun2,12.5\n', ['', '12.5']), ('img_size,step_ms\n32,7\n', ['7', '7']),
    ('layers,img_size,step_ms\n"[1, 1, 1, 1]",64,1\n"[1, 1, 1, 1]",32,2\n', ['2', ''])])
def test_measured_times_join_the_runs_they_are_for(study, text, times):
    folder, points = study
    (folder / 'step_ms.csv').write_text(text)
    assert [row['step_ms'] for row in write_results(folder, points)] == times


@pytest.mark.parametrize('time', ['', 'fast', '0', '-1', 'nan', 'inf'])
def test_a_time_that_is_none_is_named_with_its_line(study, time):
    folder, points = study
    (folder / 'step_ms.csv').write_text(f'run,step_ms\nrun1,3\nrun2,{time}\n')
    with pytest.raises(UserError, match=r'step_ms\.csv:3: step_ms must be a positive number'):
        write_results(folder, points)
