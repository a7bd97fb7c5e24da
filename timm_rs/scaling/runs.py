"""The runs of a study in their folders: what is finished, what does not fit, and the commands for the rest."""

import csv
import dataclasses
import math
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError
from timm_rs.files import CHECKOUT, read_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import changed_knobs, read_file
from timm_rs.scaling.jobs import Job
from timm_rs.scaling.plan import Planned
from timm_rs.scaling.points import Point
from timm_rs.training.checkpoint import LAST, Checkpoints, place_of

MEASURED = ('eval_top1', 'train_loss', 'eval_loss')  # of the last epoch, by the names of summary.csv


def run_folder(study_folder: Path, point: Point) -> Path:
    return study_folder / 'runs' / point.name


def last_row(folder: Path, epochs: int) -> dict[str, str] | None:
    """The row of summary.csv for the last of `epochs`; None unless the run is finished, with finite numbers."""
    try:
        row = read_csv(folder / 'summary.csv')[-1]
        is_last = int(row['epoch']) == epochs - 1 and all(math.isfinite(float(row[name])) for name in MEASURED)
    except (OSError, ValueError, LookupError, csv.Error):  # not there yet; a damaged one is train.py's to mend
        return None
    return row if is_last and (folder / LAST).is_file() else None


def is_finished(folder: Path, epochs: int) -> bool:
    return last_row(folder, epochs) is not None


def place(folder: Path) -> tuple[float, float] | None:
    """How far a run is: epochs that are complete, and images of the next."""
    newest = Checkpoints(folder, keep=1, lower_is_better=False).newest_first()
    return place_of(newest[0]) if newest else None


def problem_of(study_folder: Path, point: Point) -> str:
    """Why the run in the folder of a point is none of this study; empty where there is nothing wrong."""
    folder = run_folder(study_folder, point)
    if not (folder / 'args.yaml').is_file():
        return ''
    try:
        before = dataclasses.asdict(Recipe(**read_file(folder / 'args.yaml')))
    except UserError as error:
        return str(error)
    now = dataclasses.asdict(point.recipe)
    if point.recipe.num_classes is None:  # the run has written what its data has
        del now['num_classes']
    if not (changed := changed_knobs(before, now)):
        return ''
    return (f'{folder} was trained by another recipe: {", ".join(changed)}; take that change of the study back, or '
            'move the folder away to train the point anew')


def create_jobs(study_folder: Path, plan: list[Planned]) -> list[Job]:
    """A job for each run that is planned, finished or not."""
    program = train_program()

    def job(planned: Planned) -> Job:
        name, folder = planned.point.name, run_folder(study_folder, planned.point)
        argv = [*program, '--recipe', str(study_folder / f'recipes/{name}.yaml'),
                '--output', str(folder.parent), '--experiment', name, '--resume', 'auto']
        return Job(name, argv, folder.with_name(f'{name}.log'), Path.cwd(),
                   partial(is_finished, folder, planned.epochs), partial(place, folder))
    return list(map(job, plan))


def train_program() -> list[str]:
    """The file that trains, and what comes before its options. Raises UserError where it is not installed."""
    if (door := CHECKOUT / 'train.py').is_file():
        return [str(door)]
    command = shutil.which('timm-rs', path=str(Path(sys.executable).parent))
    if command is None:
        raise UserError(f'there is no timm-rs beside {sys.executable}: install timm_rs with pip')
    return [command, 'train']


def strangers(study_folder: Path, points: list[Point]) -> list[str]:
    """Runs in the folder of a study that belong to none of its points any more."""
    known: Any = {point.name for point in points}
    return sorted(path.parent.name for path in study_folder.glob('runs/*/args.yaml') if path.parent.name not in known)
