"""Rows of a scaling study."""
import csv
import re

import pytest

from timm_rs.errors import UserError
from timm_rs.study.results import (
    Result,
    by_regime,
    by_series,
    by_training,
    points_of,
    read_results,
    seed_variance,
    standard_errors,
)


def result(series='depth', cost=1.0, top1=70.0, seed=0, regime='', images=10_000, img_size=64, **changes):
    """A row like those that a study writes."""
    axes = changes.pop('axes', {'depth': f'{cost:g}'})
    name = f'{series}-{cost:g}-i{img_size}-{regime}-s{seed}'
    return Result(**dict(
        run=name, series=tuple(series.split('+')), regime=regime, seed=seed, img_size=img_size, epochs=10,
        params_m=cost, gmacs=cost, activations_m=cost ** 0.5, step_ms=None, eval_top1=top1, eval_images=images,
        train_loss=1.0, eval_loss=1.2, axes=axes) | changes)


def write(path, *results):
    rows = [{name: '' if value is None else '+'.join(value) if name == 'series' else value
             for name, value in vars(one).items() if name != 'axes'} | one.axes for one in results]
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [result('depth+width', seed=4, step_ms=3.25, axes={'depth': '101', 'layers': ''}),
            result('width', 2, regime='epochs=100 img_size=64', axes={'depth': '', 'layers': '3 4 6 3'})]
    assert read_results(write(tmp_path / 'results.csv', *rows)) == rows


@pytest.mark.parametrize(('column', 'value'), [
    ('run', ''), ('series', ''), ('series', 'depth+'), ('seed', ''), ('seed', '1.5'), ('seed', '-1'), ('img_size', '0'),
    ('epochs', ''), ('eval_images', '0'), ('gmacs', '0'), ('gmacs', 'inf'), ('params_m', '-1'), ('activations_m', 'x'),
    ('step_ms', '0'), ('eval_top1', '101'), ('eval_top1', 'nan'), ('train_loss', ''), ('eval_loss', 'inf')])
def test_values_that_cannot_be_true_are_named_with_row_and_column(column, value, tmp_path):
    lines = write(tmp_path / 'results.csv', result(), result(cost=2)).read_text().splitlines()
    names, last = lines[0].split(','), lines[2].split(',')
    last[names.index(column)] = value
    (tmp_path / 'results.csv').write_text('\n'.join([*lines[:2], ','.join(last)]))
    with pytest.raises(UserError, match=rf"damaged: row 3 \(.*\) has '{re.escape(value)}' in column {column}"):
        read_results(tmp_path / 'results.csv')


def test_files_that_are_no_study_are_named(tmp_path):
    (tmp_path / 'x.csv').write_text('run,seed\na,1\n')
    with pytest.raises(UserError, match='x.csv has no column series: give the results.csv of a scaling study'):
        read_results(tmp_path / 'x.csv')
    with pytest.raises(UserError, match='cannot be read'):
        read_results(tmp_path / 'none.csv')


@pytest.mark.parametrize('again', [result(run='other'), result(cost=2, run=result().run)])
def test_a_run_that_counts_twice_is_named(again, tmp_path):
    with pytest.raises(UserError, match=r'row 3 \(.*\) repeats .*: remove one'):
        read_results(write(tmp_path / 'results.csv', result(), again))


def test_points_are_runs_that_differ_in_the_seed_only():
    runs = [result('depth+width', top1=70, seed=0), result('width', 2, axes={'width': '2'}),
            result('depth+width', top1=72, seed=1), result('width', 2, axes={'width': '3'}),
            result(regime='epochs=9 img_size=32'), result(regime='epochs=9 img_size=64')]
    points = points_of(runs)
    assert [point.seeds for point in points] == [2, 1, 1, 1, 1]
    assert (points[0].top1, points[0].error, points[0].name) == (71, 29, 'depth=1 img_size=64')
    assert [len(group) for group in by_regime(points).values()] == [3, 1, 1]
    assert {name: len(group) for name, group in by_training(points).items()} == {'': 3, 'epochs=9': 2}
    assert {name: len(group) for name, group in by_series(points[:3]).items()} == {'depth': 1, 'width': 3}


def test_noise_is_that_of_seeds_pooled_and_of_the_images():
    one = [result(top1=top1, seed=seed, images=2500) for seed, top1 in enumerate((80, 80.6))]
    two = [result(cost=2, top1=top1, seed=seed, images=2500) for seed, top1 in enumerate((79.7, 80, 80.3))]
    points = points_of([*one, *two])
    variance, freedom = seed_variance(points)
    assert (round(variance, 9), freedom) == (0.12, 3)
    assert standard_errors(points) == pytest.approx([(0.12 / 2 + 0.64) ** 0.5, (0.12 / 3 + 0.64) ** 0.5], rel=0.01)
    perfect, = points_of([result(top1=100)])
    assert perfect.binomial > 0 and perfect.error > 0


def test_a_cost_that_was_not_measured_is_named():
    measured, not_measured = points_of([result(step_ms=2.0), result(step_ms=4.0, seed=1), result(cost=2)])
    assert measured.cost('step_ms') == 3
    with pytest.raises(UserError, match=r'depth-2-i64--s0 has no step_ms: compare at another cost \(gmacs, '):
        not_measured.cost('step_ms')
