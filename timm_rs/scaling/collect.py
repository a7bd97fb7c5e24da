"""results.csv: a row for each finished run of a study, read from the folders of the runs."""

import math
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError
from timm_rs.files import read_rows, write_csv
from timm_rs.recipe.reading import as_yaml
from timm_rs.scaling.points import Point
from timm_rs.scaling.runs import MEASURED, last_row, problem_of, run_folder

COLUMNS = ('run', 'series', 'regime', 'seed', 'img_size', 'epochs', 'params_m', 'gmacs', 'activations_m', 'step_ms',
           'eval_top1', 'eval_images', 'train_loss', 'eval_loss')
PLANNED = ('img_size', 'epochs', 'params_m', 'gmacs', 'activations_m', 'eval_images')


def write_results(study_folder: Path, points: list[Point]) -> list[dict[str, Any]]:
    """Write results.csv into the folder of a study, whole or not at all; returns its rows, in the study's order.

    What is in it follows from the recipes and the runs alone, so that a study that was stopped and continued has the
    same file, to the bit. Times of updates differ from run to run: they come from step_ms.csv, if somebody has put one
    there. Runs of another recipe are left out. Raises UserError when there is no plan.csv, or a file cannot be read.
    """
    planned = {row['run']: row for row in read_rows(study_folder / 'plan.csv')}
    rows = []
    for point in points:
        if (plan := planned.get(point.name)) is None:
            continue
        measured = last_row(run_folder(study_folder, point), int(plan['epochs']))
        if measured is None or problem_of(study_folder, point):
            continue
        rows.append(describe(point) | {name: plan[name] for name in PLANNED}
                    | {name: measured[name] for name in MEASURED})
    for row, step_ms in zip(rows, step_times(study_folder, rows), strict=True):
        row['step_ms'] = step_ms
    write_csv(study_folder / 'results.csv', rows, COLUMNS)
    return rows


def describe(point: Point) -> dict[str, str]:
    """What a row says of a point that was known before it ran: text."""
    return {axis: as_yaml(value) for axis, value in point.axes.items()} | dict(
        run=point.name, series=point.series, regime=point.regime, seed=str(point.recipe.seed))


def step_times(study_folder: Path, rows: list[dict[str, str]]) -> list[str]:
    """Milliseconds of an update for each of `rows`, as step_ms.csv has them; empty where it has none.

    That file has a column step_ms, and others that say for which runs: run, img_size, or axes such as depth. Raises
    UserError when it cannot be read.
    """
    path = study_folder / 'step_ms.csv'
    if not path.is_file():
        return [''] * len(rows)
    times = read_rows(path)
    for number, time in enumerate(times, start=2):
        try:
            is_time = 0 < float(time.get('step_ms', '')) < math.inf
        except ValueError:
            is_time = False
        if not is_time:
            raise UserError(f'{path}:{number}: step_ms must be a positive number of milliseconds')
    return [next((time['step_ms'] for time in times
                  if all(row.get(name) == value for name, value in time.items() if name != 'step_ms')), '')
            for row in rows]
