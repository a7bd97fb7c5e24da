"""Where a run can be watched live: TensorBoard, W&B, trackio, MLflow. Each gets every row of summary.csv once."""

import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from timm_rs.errors import UserError, as_user_error, first_line
from timm_rs.files import atomic_write, read_json
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.resume import random_state, restore_random_state

IDS = 'trackers.json'  # in a run's folder: the name of a tracker -> the run's id there


class About(NamedTuple):
    """What a tracker is told of a run: its folder, its id there (empty if it is new), project, tags, arguments."""
    folder: Path
    id: str
    project: str | None
    tags: list[str]
    arguments: dict[str, Any]
    must_exist: bool = False  # the run of that id, which was begun elsewhere


class Tracker(Protocol):
    """A place for rows. `id` finds the run again there, which has the rows of epochs up to `last` (from 0) already."""
    id: str
    last: int

    def log(self, epoch: int, numbers: dict[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files in the run's folder. Each start writes all again: nothing tells what a kill has left of them."""

    id, last = '', -1

    def __init__(self, about: About):
        from torch.utils.tensorboard import SummaryWriter
        folder = about.folder / 'tensorboard'
        # It reads files in the order of their names, in which the second is what tells two of a process apart.
        while any(folder.glob(f'events.out.tfevents.{int(time.time())}.*')):
            time.sleep(0.05)
        # The purge makes TensorBoard forget, also while it watches, what it has read of the files before.
        self.writer = SummaryWriter(str(folder), purge_step=0)

    def log(self, epoch: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class WandB:
    """Online the server knows what it has. Offline nobody does, so that each start writes all into a new folder."""

    def __init__(self, about: About):
        import wandb
        self.run = wandb.init(
            project=about.project, name=about.folder.name, id=about.id or secrets.token_hex(4), dir=about.folder,
            tags=about.tags,
            resume='must' if about.must_exist else 'allow', config=about.arguments,
            # what is printed stays ours; a network that is gone at the end does not keep the machine
            settings=wandb.Settings(console='off', finish_timeout=60))
        self.id, self.last = self.run.id, self.run.step - 1

    def log(self, epoch: int, numbers: dict[str, float]) -> None:
        self.run.log(dict(epoch=epoch, **numbers), step=epoch)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Trackio:
    """In a database on this machine, or a Space if the environment says so. The run's name is its id."""

    def __init__(self, about: About):
        import trackio
        self.id = about.id or f'{about.folder.name}-{secrets.token_hex(4)}'
        self.run = trackio.init(project=about.project or 'timm_rs', name=self.id, resume='allow',
                                config=about.arguments, embed=False)
        self.last = self.run._next_step - 1  # nothing public knows it of a Space, too

    def log(self, epoch: int, numbers: dict[str, float]) -> None:
        self.run.log(dict(epoch=epoch, **numbers), step=epoch)

    def close(self, failed: bool) -> None:
        self.run.finish()


class MLflow:
    """Wherever MLFLOW_TRACKING_URI says."""

    def __init__(self, about: About):
        # A server that is gone holds up training for a minute; by default it were many.
        os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '2')
        os.environ.setdefault('MLFLOW_HTTP_REQUEST_TIMEOUT', '20')
        import mlflow
        self.mlflow = mlflow
        if about.project and not about.id:
            mlflow.set_experiment(about.project)
        self.id = mlflow.start_run(run_id=about.id or None, run_name=about.folder.name).info.run_id
        if not about.id:
            mlflow.log_params(about.arguments)
        history = mlflow.MlflowClient().get_metric_history(self.id, 'lr')  # the last column of a row
        self.last = max((metric.step for metric in history), default=-1)

    def log(self, epoch: int, numbers: dict[str, float]) -> None:
        self.mlflow.log_metrics(numbers, step=epoch)

    def close(self, failed: bool) -> None:
        self.mlflow.end_run('FAILED' if failed else 'FINISHED')


KINDS: dict[str, Callable[[About], Tracker]] = dict(
    tensorboard=TensorBoard, wandb=WandB, trackio=Trackio, mlflow=MLflow)


class Trackers:
    """All that follow a run, in its primary process. One that fails is left out from there on, after a warning."""

    def __init__(self) -> None:
        self.open: dict[str, Tracker] = {}

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Give each the rows of the summary, numbers or text, that it has not yet."""
        for name, tracker in list(self.open.items()):
            with self._surviving(name):
                for row in rows:
                    if (epoch := int(row['epoch'])) > tracker.last:
                        tracker.log(epoch, {column: float(value) for column, value in row.items()
                                            if column != 'epoch' and value not in (None, '')})
                        tracker.last = epoch

    def close(self, failed: bool) -> None:
        """Say that the run has ended; one that `failed`, or was stopped, may go on later."""
        for name, tracker in list(self.open.items()):
            with self._surviving(name):
                tracker.close(failed)
        self.open.clear()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            with undisturbed():
                yield
        except Exception as error:  # networks, disks, servers: whatever it is, training does not need it
            self.open.pop(name, None)
            tqdm.write(f'warning: {name} takes no more of this run ({_reason(error)}); training goes on without it, '
                       'and --resume brings what it lacks')


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Training draws the same random numbers after the block as without it."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def open_trackers(recipe: Recipe, folder: Path, rows: Sequence[dict[str, Any]], trackers: Trackers) -> None:
    """Add to `trackers` what `recipe` logs to, each at the curve that the run in `folder` has there, with its `rows`.

    Raises UserError for a package that is not installed, and for a folder that cannot be written. A tracker that cannot
    be used for another reason is a UserError, too, for a run that begins; one that goes on, and has `rows`, need not
    end for that, and gets a warning.
    """
    ids = read_json(folder / IDS) if (folder / IDS).is_file() else {}
    try:
        for name in dict.fromkeys([*recipe.log_to, *(['wandb'] if recipe.log_wandb else [])]):
            given = recipe.wandb_resume_id if name == 'wandb' else ''
            about = About(folder, given or ids.get(name, ''), recipe.wandb_project, recipe.wandb_tags,
                          dataclasses.asdict(recipe), bool(given))
            if tracker := _open(name, about, is_new=not rows):
                trackers.open[name], ids[name] = tracker, tracker.id
        if trackers.open:
            with atomic_write(folder / IDS) as file:
                json.dump(ids, file)
    except BaseException as error:
        trackers.close(failed=True)
        raise as_user_error(error) or error from error
    trackers.update(rows)


def _open(name: str, about: About, is_new: bool) -> Tracker | None:
    try:
        with undisturbed():
            return KINDS[name](about)
    except ImportError as error:
        raise UserError(f'log_to {name} needs a package that is not installed: pip install {name} '
                        f'({_reason(error)})') from error
    except Exception as error:
        if is_new:
            raise UserError(f'log_to {name} cannot be used: {_reason(error)}; see to that, or start without it'
                            ) from error
        tqdm.write(f'warning: {name} cannot be used: {_reason(error)}; training goes on without it')
        return None


def _reason(error: Exception) -> str:
    return first_line(error) or type(error).__name__
