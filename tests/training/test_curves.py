"""curves.png: what is in it, and when it is drawn."""

import os
import signal

import pytest
from conftest import TINY
from matplotlib.colors import to_rgb
from PIL import Image

from timm_rs.tasks.classification import Classification
from timm_rs.training import curves, train
from timm_rs.training.curves import Curves, draw

ROWS = [{'epoch': epoch, 'train_loss': 2.0 - epoch / 4, 'eval_loss': 1.5 - epoch / 4, 'eval_top1': top1,
         'eval_top5': 90 + epoch, 'eval_raw_loss': 1.75, 'eval_raw_top1': top1 - 5, 'lr': 0.1 / (1 + epoch)}
        for epoch, top1 in enumerate((40.0, 70.0, 60.0))]


@pytest.fixture
def figure(tmp_path, monkeypatch):
    """What `draw` makes of rows, as matplotlib has it."""
    def call(*arguments):
        figures = []
        monkeypatch.setattr(curves, 'save_figure', lambda path, figure: figures.append(figure))
        draw(tmp_path / 'curves.png', *arguments)
        return figures[0]
    return call


@pytest.mark.parametrize('text', [False, True])
def test_each_quantity_has_one_hue_paler_without_averaging_and_the_best_epoch_is_marked(figure, text):
    rows = [{name: str(value) if text else value for name, value in row.items()} for row in ROWS]
    loss, top, rate = figure(rows, Classification.metrics, 'eval_top1', 1).axes
    lines = {line.get_label(): line for axis in (loss, top) for line in axis.get_lines()}
    assert list(lines['training'].get_ydata()) == [2.0, 1.75, 1.5]
    assert list(lines['training'].get_xdata()) == [1, 2, 3]  # epochs as people count them
    for name, axis in (('validation', loss), ('top-1', top)):
        whole, pale = lines[name], lines[f'{name} without averaging']
        assert whole.axes is pale.axes is axis and to_rgb(whole.get_color()) == to_rgb(pale.get_color())
        assert pale.get_alpha() < whole.get_alpha() == 1
    assert len({to_rgb(lines[name].get_color()) for name in ('training', 'validation')}) == 2
    star = lines['best: 70 in epoch 2']
    assert star.axes is top and (list(star.get_xdata()), list(star.get_ydata())) == ([2], [70.0])
    assert rate.get_title() == 'learning rate' and list(rate.get_lines()[0].get_ydata()) == [0.1, 0.05, 0.1 / 3]
    assert rate.get_position().width < loss.get_position().width


def test_training_accuracy_and_the_rate_of_every_update_are_drawn_where_they_are_known(figure):
    rows = [row | {'train_top1': 50.0 + row['epoch']} for row in ROWS]
    rates = [(update / 4, 0.1 - update / 200) for update in range(13)]
    _, top, rate = figure(rows, Classification.metrics, 'eval_top1', 1, rates).axes
    lines = {line.get_label(): line for line in top.get_lines()}
    assert list(lines['top-1 in training'].get_ydata()) == [50.0, 51.0, 52.0]
    assert to_rgb(lines['top-1 in training'].get_color()) != to_rgb(lines['top-1'].get_color())
    assert [*zip(*rate.get_lines()[0].get_data(), strict=True)] == rates
    assert 'top-1 in training' not in [line.get_label() for line in figure(ROWS, Classification.metrics, 'eval_top1', 1
                                                                            ).axes[1].get_lines()]


def test_without_validation_or_a_best_epoch_there_is_a_picture_too(tmp_path):
    path = tmp_path / 'curves.png'
    draw(path, [{'epoch': 0, 'train_loss': 1.5, 'lr': 0.1}], Classification.metrics, 'train_loss', None)
    picture = Image.open(path).convert('L')
    assert picture.size[0] > 600 and picture.getextrema() != (255, 255)


def test_short_epochs_are_not_drawn_one_by_one(tmp_path, monkeypatch):
    drawn, now = [], [0.0]
    monkeypatch.setattr(curves, 'draw', lambda path, rows, *_: drawn.append((now[0], len(rows))))
    monkeypatch.setattr(curves.time, 'monotonic', lambda: now[0])
    picture = Curves(tmp_path / 'curves.png', Classification.metrics, 'eval_top1')
    for second in range(25):
        now[0] = float(second)
        picture.update(ROWS[:second % 3 + 1], None)
    picture.update([], None, at_once=True)
    picture.update(ROWS, None, at_once=True)
    assert [second for second, _ in drawn] == [10, 20, 24]


def test_there_is_a_picture_after_every_epoch_and_of_a_run_that_stops(run, image_folder, tmp_path, monkeypatch):
    drawn, genuine, validate = [], curves.draw, train.validate

    def drawing(path, rows, *arguments):
        genuine(path, rows, *arguments)
        drawn.append(len(rows))

    def stopping(*arguments):
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)
    monkeypatch.setattr(curves, 'draw', drawing)
    monkeypatch.setattr(train, 'validate', stopping)
    monkeypatch.setattr(Curves, 'EVERY', 0)
    assert run(*TINY, '--data-dir', image_folder, '--epochs', 4, '--experiment', 'a').code == 143
    assert drawn == [1, 2, 2]
    assert Image.open(tmp_path / 'runs/a/curves.png').size > (600, 200)
