"""What several initialisations are worth on several tasks: runs side by side, as a table and as a figure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from timm_rs.errors import UserError
from timm_rs.recipe.reading import changed_knobs
from timm_rs.study.picture import check_format, save
from timm_rs.study.scaling_figure import COLOURS, GREY

WHAT_DIFFERS = 'seed'  # between the runs of a cell


@dataclass(frozen=True)
class Outcome:
    """What a finished run has come to.

    Attributes:
        run: its folder.
        start: what its initialisation is called: a column.
        source: which weights those are.
        task, data, split: what it was measured on: with `images` and `metric`, a row.
        images: how many those are.
        metric: for people, with its unit, such as 'mIoU (%)'.
        higher_is_better: of the metric.
        value: of the metric.
        recipe: of the run, by the names of the knobs.
        is_named: whether a person chose `start`, who may call several sources alike.
    """

    run: str
    start: str
    source: str
    task: str
    data: str
    split: str
    images: int
    metric: str
    higher_is_better: bool
    value: float
    recipe: dict[str, Any] = field(hash=False)
    is_named: bool = False

    @property
    def row(self) -> tuple[str, str, str, int, str]:
        return self.task, self.data, self.split, self.images, self.metric


Cells = dict[str, list[Outcome]]  # of a row, by the name of the initialisation


def create_table(outcomes: Iterable[Outcome]) -> dict[tuple[str, str, str, int, str], Cells]:
    """The cells of each row, in the order in which they turn up. Runs of a cell differ in their seed alone.

    Raises UserError where they do not, and where two initialisations have one name.
    """
    table: dict[tuple[str, str, str, int, str], Cells] = {}
    sources: dict[str, Outcome] = {}
    for outcome in outcomes:
        first = outcome if outcome.is_named else sources.setdefault(outcome.start, outcome)
        if first.source != outcome.source:
            raise UserError(f'{first.run} and {outcome.run} started from {first.source} and {outcome.source}, which '
                            f'would both be called {outcome.start}: name them, NAME=RUN')
        cell = table.setdefault(outcome.row, {}).setdefault(outcome.start, [])
        for other in cell:
            _check_seeds(other, outcome)
        cell.append(outcome)
    return table


def _check_seeds(first: Outcome, second: Outcome) -> None:
    changed = changed_knobs(first.recipe, second.recipe)
    both = f'{first.run} and {second.run} are of the same task and initialisation, {first.start}'
    if others := [words for words in changed if words.split()[0] != WHAT_DIFFERS]:
        raise UserError(f'{both}, and differ in more than their seed: {", ".join(others)}; leave one out, or name '
                        'them, NAME=RUN')
    if not changed and first.source == second.source:
        raise UserError(f'{both}, and of the same seed: leave one out')


def columns_of(table: dict[Any, Cells]) -> list[str]:
    """The names of all initialisations."""
    return list(dict.fromkeys(start for cells in table.values() for start in cells))


def notes(table: dict[Any, Cells]) -> list[str]:
    """In which knobs, apart from the seed, the recipes of a row differ: they may not have been at equal cost."""
    found = []
    for row, cells in table.items():
        first, *others = [outcomes[0].recipe for outcomes in cells.values()]
        names = {words.split()[0] for other in others for words in changed_knobs(first, other)} - {WHAT_DIFFERS}
        if names:
            found.append(f'The recipes of {title(row)} differ in {", ".join(sorted(names))}.')
    return found


def title(row: Sequence[Any]) -> str:
    task, data, split, images, _ = row
    return f'{task}, {data} ({split}, {images:,} images)'


def markdown(table: dict[Any, Cells]) -> list[str]:
    """The lines of a GitHub table: mean ± standard deviation over seeds, and how many those are."""
    columns = columns_of(table)
    lines = [f'| task | metric | {" | ".join(columns)} |', f'|---|---|{"---:|" * len(columns)}']
    for row, cells in table.items():
        texts = [_text(cells[start]) if start in cells else '-' for start in columns]
        lines.append(f'| {title(row)} | {row[-1]} | {" | ".join(texts)} |')
    return lines


def _text(cell: Sequence[Outcome]) -> str:
    mean, sd = _moments(cell)
    return f'{mean:.4g} (n = 1)' if sd is None else f'{mean:.4g} ± {sd:.2g} (n = {len(cell)})'


def _moments(cell: Sequence[Outcome]) -> tuple[float, float | None]:
    values = [outcome.value for outcome in cell]
    return fmean(values), stdev(values) if len(values) > 1 else None


def rows_of(table: dict[Any, Cells]) -> list[dict[str, Any]]:
    """A row per cell, for a CSV. The standard deviation of one run is empty."""
    rows = []
    for row, cells in table.items():
        for start, cell in cells.items():
            mean, sd = _moments(cell)
            rows.append(dict(zip(('task', 'data', 'split', 'images', 'metric'), row, strict=True)) | dict(
                start=start, runs=len(cell), mean=mean, sd='' if sd is None else sd))
    return rows


def draw(table: dict[Any, Cells], path: Path) -> None:
    """A panel per row and a line per initialisation: a small point for each run, a large one for their mean.

    Raises UserError for a file that is no .png or .svg, or cannot be written.
    """
    from matplotlib.figure import Figure
    check_format(path)
    columns = columns_of(table)
    height = 0.9 + 0.4 * len(columns)
    figure = Figure(figsize=(7, height * len(table) + 0.3), dpi=144, layout='constrained')
    panels = figure.subplots(len(table), squeeze=False)[:, 0]
    for axis, (row, cells) in zip(panels, table.items(), strict=True):
        for place, start in enumerate(columns):
            values = [outcome.value for outcome in cells.get(start, ())]
            colour = COLOURS[place % len(COLOURS)]
            if not values:
                axis.text(0.5, place, 'no run', transform=axis.get_yaxis_transform(), ha='center', va='center',
                          color=GREY, fontsize=8)
                continue
            axis.plot([min(values), max(values)], [place] * 2, color=colour, linewidth=1)
            axis.plot(values, [place] * len(values), 'o', color=colour, markersize=4, alpha=0.6)
            axis.plot(fmean(values), place, 'D', color=colour, markersize=8, markeredgecolor='white')
        axis.set_yticks(range(len(columns)), columns)
        axis.set_ylim(len(columns) - 0.5, -0.5)
        axis.margins(x=0.1)
        better = next(iter(cells.values()))[0].higher_is_better
        axis.set_title(title(row), fontsize=9, loc='left')
        axis.set_xlabel(f'{row[-1]}, {"more" if better else "less"} is better', fontsize=8)
        axis.grid(axis='x', color='#DDDDDD', linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.spines[['top', 'right', 'left']].set_visible(False)
    save(figure, path)
