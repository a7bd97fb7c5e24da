"""curves.png: what a run has come to so far, epoch by epoch."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from timm_rs.errors import first_line
from timm_rs.files import save_figure
from timm_rs.tasks.task import Metric

COLOURS = ('#3b6fb6', '#c8553d', '#4d9a5b', '#8a63a8', '#b8860b', '#4c9aa6')  # one for each quantity of a panel
Rates: TypeAlias = Sequence[tuple[float, float]]
BLACK, GREY = '#222222', '#777777'


class Curves:
    """The picture of a run, drawn again after its epochs, though not more often than is cheap."""

    EVERY = 10.0  # seconds from one picture to the next; a picture takes about half of one

    def __init__(self, path: Path, metrics: Sequence[Metric], best_by: str):
        """`best_by`: the column of the summary that the best epoch is chosen by."""
        self.path, self.metrics, self.best_by = path, metrics, best_by
        self.drawn_at = time.monotonic()

    def update(self, rows: Sequence[dict[str, Any]], best: int | None, at_once: bool = False,
               rates: Callable[[int], Rates] = lambda num_epochs: []) -> None:
        """Draw `rows` of the summary, of which epoch `best` (from 0) is marked, if it is time or `at_once`.

        `rates` gives the learning rates of so many epochs; without any, those of the rows are drawn.

        A picture that cannot be drawn is a warning: the run is complete without.
        """
        if not rows or not at_once and time.monotonic() - self.drawn_at < self.EVERY:
            return
        try:
            draw(self.path, rows, self.metrics, self.best_by, best, rates(int(rows[-1]['epoch']) + 1))
        except Exception as error:  # fonts, caches, disks
            tqdm.write(f'warning: {self.path} could not be drawn: {first_line(error)}')
        self.drawn_at = time.monotonic()


def draw(path: Path, rows: Sequence[dict[str, Any]], metrics: Sequence[Metric], best_by: str, best: int | None,
         rates: Rates = ()) -> None:
    """Plot loss, `metrics` and learning rate over epochs into `path` (PNG), whole or not at all.

    Args:
        path: of the picture.
        rows: of the summary; numbers may be text, as in the file.
        metrics: each is a curve, paler for the weights as trained where those are averaged.
        best_by: the column in which the best epoch gets a star.
        best: that epoch, from 0; None for no mark.
        rates: learning rates, each with the epochs that are over by then, such as 1.5; empty for those of `rows`.

    Raises OSError as `open` does.
    """
    from matplotlib.figure import Figure  # heavy, and only needed here
    panels: dict[str, dict[str, str]] = {'loss': {'train_loss': 'training', 'eval_loss': 'validation'}}
    for metric in metrics:
        if metric.name != 'loss':
            panels.setdefault(metric.axis or metric.heading, {})[f'eval_{metric.name}'] = metric.label
    if (first := metrics[0]).name != 'loss':  # last, so that hues stay those of the others
        panels[first.axis or first.heading][f'train_{first.name}'] = f'{first.label} in training'
    figure = Figure(figsize=(4 * len(panels) + 2.6, 3.6), layout='constrained')
    *axes, small = figure.subplots(1, len(panels) + 1, width_ratios=[4] * len(panels) + [2.6])
    for axis, (title, columns) in zip(axes, panels.items(), strict=True):
        axis.set_title(title)
        for (column, label), colour in zip(columns.items(), COLOURS * len(columns), strict=False):
            _plot(axis, rows, column, colour, label)
            if column.startswith('eval_'):
                _plot(axis, rows, column.replace('eval_', 'eval_raw_'), colour, f'{label} without averaging', 0.4)
        for epoch, value in _points(rows, best_by) if best_by in columns else ():
            if epoch - 1 == best:
                axis.plot(epoch, value, '*', markersize=12, color=BLACK, label=f'best: {value:.4g} in epoch {epoch}')
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    small.set_title('learning rate')
    if rates:
        small.plot(*zip(*rates, strict=True), color=GREY)
    else:
        _plot(small, rows, 'lr', GREY)
    for axis in (*axes, small):
        if best is not None:
            axis.axvline(best + 1, color=BLACK, linewidth=0.8, linestyle=':')
        axis.set_xlabel('epoch')
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    save_figure(path, figure)


def _points(rows: Sequence[dict[str, Any]], column: str) -> list[tuple[int, float]]:
    """(epoch, number), epochs from 1 as people count them."""
    return [(int(row['epoch']) + 1, float(row[column])) for row in rows if row.get(column) not in (None, '')]


def _plot(axis: Any, rows: Sequence[dict[str, Any]], column: str, colour: str, label: str = '', alpha: float = 1
          ) -> None:
    if points := _points(rows, column):
        axis.plot(*zip(*points, strict=True), marker='.', color=colour, label=label, alpha=alpha)
