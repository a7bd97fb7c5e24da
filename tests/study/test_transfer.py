"""Runs side by side: tasks as rows, initialisations as columns."""

import numpy as np
import pytest
from PIL import Image

from timm_rs.errors import UserError
from timm_rs.study.transfer import Outcome, create_table, draw, markdown, notes, rows_of


def outcome(value, start='scratch', seed=0, task='segmentation', source=None, is_named=False, **recipe):
    metric, better = dict(segmentation=('mIoU (%)', True), depth=('RMSE (m)', False))[task]
    return Outcome(f'runs/{task}-{start}-{seed}', start, source or start, task, 'voc', 'val', 1449, metric, better,
                   value, dict(seed=seed, lr=0.1) | recipe, is_named)


RUNS = [outcome(40.0), outcome(42.0, seed=1), outcome(44.0, seed=2), outcome(50.0, 'rs'),
        outcome(0.5, 'rs', task='depth')]


def test_runs_that_differ_in_their_seed_are_a_mean_and_a_deviation():
    assert markdown(create_table(RUNS)) == [
        '| task | metric | scratch | rs |', '|---|---|---:|---:|',
        '| segmentation, voc (val, 1,449 images) | mIoU (%) | 42 ± 2 (n = 3) | 50 (n = 1) |',
        '| depth, voc (val, 1,449 images) | RMSE (m) | - | 0.5 (n = 1) |']
    first, second, third = rows_of(create_table(RUNS))
    assert first == dict(task='segmentation', data='voc', split='val', images=1449, metric='mIoU (%)', start='scratch',
                         runs=3, mean=42.0, sd=2.0)
    assert (second['start'], second['runs'], second['sd'], third['task']) == ('rs', 1, '', 'depth')


@pytest.mark.parametrize(('runs', 'words'), [
    ([outcome(1.0), outcome(2.0)], 'runs/segmentation-scratch-0 and .* of the same seed: leave one out'),
    ([outcome(1.0), outcome(2.0, seed=1, lr=0.2)], 'differ in more than their seed: lr 0.1 -> 0.2; leave one out'),
    ([outcome(1.0, 'rs', source='a/rs'), outcome(2.0, 'rs', seed=1, source='b/rs')],
     'started from a/rs and b/rs, which would both be called rs: name them, NAME=RUN')])
def test_what_is_no_cell_is_refused(runs, words):
    with pytest.raises(UserError, match=words):
        create_table(runs)


def test_weights_of_several_pre_trainings_may_be_called_alike():
    runs = [outcome(1.0, 'rs', source='rs-0', is_named=True), outcome(3.0, 'rs', source='rs-1', is_named=True)]
    assert rows_of(create_table(runs))[0]['mean'] == 2


def test_recipes_that_differ_are_named_and_seeds_are_not():
    table = create_table([outcome(1.0), outcome(2.0, 'rs', seed=1)])
    assert notes(table) == []
    table = create_table([outcome(1.0), outcome(2.0, 'rs', lr=0.2, seed=1), outcome(2.0, 'simclr', epochs=3)])
    assert notes(table) == ['The recipes of segmentation, voc (val, 1,449 images) differ in lr.']


def test_the_figure_has_a_panel_per_task_and_a_mark_per_run(tmp_path, monkeypatch):
    import matplotlib.figure
    saved = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', lambda self, *arguments, **options: (
        saved.append(self), save(self, *arguments, **options))[1])
    draw(create_table(RUNS), tmp_path / 'a.png')
    first, second = saved[0].axes
    assert [text.get_text() for text in first.get_yticklabels()] == ['scratch', 'rs']
    assert [line.get_xdata().tolist() for line in first.lines if line.get_marker() == 'o'] == [[40, 42, 44], [50]]
    assert [float(np.ravel(line.get_xdata())[0]) for line in first.lines if line.get_marker() == 'D'] == [42, 50]
    assert [text.get_text() for text in second.texts] == ['no run']
    assert (first.get_xlabel(), second.get_xlabel()) == ('mIoU (%), more is better', 'RMSE (m), less is better')
    assert Image.open(tmp_path / 'a.png').width > 500
    with pytest.raises(UserError, match=r'ends with .png or .svg'):
        draw(create_table(RUNS), tmp_path / 'a.pdf')
