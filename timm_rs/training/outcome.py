"""What a finished run has come to, from what it left: its recipe, its rows, and the JSON of its evaluation."""

import dataclasses
import math
from pathlib import Path

from timm_rs.errors import UserError
from timm_rs.files import read_rows
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.study.transfer import Outcome
from timm_rs.tasks import create_task
from timm_rs.training.checkpoint import BEST, LAST, SUFFIX, checkpoint_in
from timm_rs.training.measured import read_evaluation
from timm_rs.training.runlog import since_best
from timm_rs.training.schedule import create_num_epochs

SCRATCH = 'from scratch'


def read_outcome(path: Path, start: str = '') -> Outcome:
    """The first metric of the task of a run: of a checkpoint, or of the best one in a run's folder.

    `start` is what its initialisation is called, in place of the name of the file or run that it came from.

    Raises UserError for a run that is not finished, a checkpoint that was not evaluated (`train.py --eval`) or is
    another than the one that was, a number that is not finite, and files that cannot be read.
    """
    if not path.exists():
        raise UserError(f'{path} does not exist: give the folder of a run of train.py, or one of its checkpoints')
    checkpoint = checkpoint_in(path)
    folder = checkpoint.parent
    recipe = Recipe(**read_file(folder / 'args.yaml'))
    task = create_task(recipe)
    metric, best_by = task.metrics[0], task.best_by
    _check_finished(folder, create_num_epochs(recipe), recipe.patience, f'eval_{best_by.name}',
                    1 if best_by.higher_is_better else -1)
    evaluation = checkpoint.with_name(checkpoint.name.removesuffix(SUFFIX) + '.eval.json')
    measured = read_evaluation(evaluation, checkpoint, 'ema' if recipe.model_ema else 'raw', [metric.name]
                               ) if evaluation.is_file() else None
    if measured is None:
        raise UserError(f'{evaluation} does not exist, or is not of {checkpoint.name} as it is now; measure that: '
                        f'python train.py --recipe {folder / "args.yaml"} --eval {checkpoint}')
    value = measured.metrics[metric.name]
    if not math.isfinite(value):
        raise UserError(f'{evaluation}: {metric.label} is {value}')
    assert measured.images is not None
    name, source = _start_of(
        recipe.initial_checkpoint or recipe.pretrained_path, recipe.model if recipe.pretrained else '')
    return Outcome(
        str(folder), start or name, source, recipe.task, measured.setting.data, measured.setting.split, measured.images,
        metric.heading, metric.higher_is_better, value, dataclasses.asdict(recipe),
        is_named=bool(start))


def _check_finished(folder: Path, epochs: int, patience: int, metric: str, sign: int) -> None:
    path = folder / 'summary.csv'
    try:
        rows = read_rows(path)
        done, since = int(rows[-1]['epoch']) + 1, since_best(rows, metric, sign)
    except (KeyError, ValueError):
        raise UserError(f'{path} is damaged: its last row has no epoch') from None
    if done < epochs and not 0 < patience <= since:
        raise UserError(f'{folder} is not finished, after {done} of {epochs} epochs: its command goes on with '
                        '--resume auto')


def _start_of(weights: str | None, published: str) -> tuple[str, str]:
    """What the weights of a file, or those `published` of a model, are called as a start, and what they are."""
    if weights:
        path = Path(weights)
        return (path.parent.name if path.name in (BEST, LAST) else path.name.removesuffix(SUFFIX)), weights
    return (f'{published}, pretrained', f'the published weights of {published}') if published else (SCRATCH, 'nothing')
