"""What people see of a run: the progress line and summary.csv; its folder."""

import contextlib
import csv
import datetime
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timm.models import safe_model_name
from tqdm import tqdm

from timm_rs.errors import UserError
from timm_rs.files import make_folder, read_csv, write_csv
from timm_rs.progress import on_terminal
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.lock import FolderLock


class DataHint:
    """Says once what to do when training waits for data: above 20 % of the time, over 100 updates or more."""

    UPDATES, SHARE = 100, 0.2

    def __init__(self) -> None:
        self.updates, self.seconds, self.waited, self.given = 0, 0.0, 0.0, False

    def after(self, updates: int, seconds: float, waited: float) -> str | None:
        """The hint, when `updates` more took `seconds` of which `waited` were spent waiting, or None."""
        self.updates, self.seconds, self.waited = self.updates + updates, self.seconds + seconds, self.waited + waited
        if self.updates < self.UPDATES:
            return None
        share = self.waited / self.seconds
        self.updates, self.seconds, self.waited = 0, 0.0, 0.0
        if self.given or share <= self.SHARE:
            return None
        self.given = True
        return (f'training waits for data {100 * share:.0f} % of the time: give more --workers if cores are idle, pack '
                'the images once with tools/pack_dataset.py, or, for photos of megapixels, try '
                '--decode scaled')


class Progress:
    """The progress of a whole training run: a bar on a terminal, a line per report elsewhere."""

    def __init__(self, updates_per_epoch: int, first_update: int, num_epochs: int, enabled: bool):
        self.updates_per_epoch, self.num_epochs, self.enabled = updates_per_epoch, num_epochs, enabled
        self.first_update = self.last_update = first_update
        self.total = num_epochs * updates_per_epoch
        self.started = self.last_report = time.perf_counter()
        self.waited = 0.0  # seconds without data since the last report
        self.hint = DataHint()
        self.bar = tqdm(
            total=self.total, initial=self.first_update, unit='update', dynamic_ncols=True,
            disable=not (enabled and on_terminal()), leave=False)

    def waiting_for(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`, while measuring how long the loop waits for each."""
        # What came before (evaluation, saving) belongs to neither the rate nor the share of waiting.
        self.last_report, self.waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def report(self, update: int, loss: float, lr: float, num_images: float, skipped: int = 0) -> None:
        """Show the state after `update` updates: mean loss and images since the last report, learning rate.

        `skipped` updates of the run were not made.
        """
        now = time.perf_counter()
        seconds = max(now - self.last_report, 1e-9)
        epoch, position = divmod(update - 1, self.updates_per_epoch)
        state = (f'loss {loss:.4f}  lr {lr:.3e}  {num_images / seconds:.0f} img/s  '
                 f'waiting for data {100 * self.waited / seconds:.0f} %'
                 + (f'  {skipped} updates skipped' if skipped else ''))
        if self.enabled and not self.bar.disable:
            self.bar.set_postfix_str(f'epoch {epoch + 1}/{self.num_epochs}  {state}', refresh=False)
            self.bar.update(update - self.last_update)
        elif self.enabled:
            rate = (now - self.started) / (update - self.first_update)
            left = datetime.timedelta(seconds=round(rate * (self.total - update)))
            print(f'epoch {epoch + 1}/{self.num_epochs}  update {position + 1}/{self.updates_per_epoch}  {state}  '
                  f'ETA {left}', flush=True)
        if hint := self.hint.after(update - self.last_update, seconds, self.waited):
            self.say(hint)
        self.last_report, self.last_update, self.waited = now, update, 0.0

    def say(self, line: str) -> None:
        """Print `line` without breaking the bar."""
        if self.enabled:
            tqdm.write(line)

    def close(self) -> None:
        self.bar.close()


def since_best(rows: Sequence[dict[str, Any]], metric: str, sign: int) -> int:
    """How many rows there are after the first with the best `metric`, the greatest of `sign` times it; all if none has.

    What is not finite is never the best.
    """
    scores = [sign * float(row[metric]) for row in rows if row.get(metric) not in (None, '')]
    finite = [score for score in scores if math.isfinite(score)]
    return len(scores) - (1 + scores.index(max(finite)) if finite else 0)


class Summary:
    """summary.csv, one row per evaluated epoch, in timm's column names; numbers are kept as text once written."""

    def __init__(self, path: Path, rows: list[dict[str, Any]] | None = None, first_epoch: int = 0):
        """Go on after `rows`; None for those in the file at `path` of epochs before `first_epoch`."""
        self.path = path
        self.rows: list[dict[str, Any]] = rows or []
        if rows is None and first_epoch and path.exists():
            try:
                self.rows = [row for row in read_csv(path) if int(row['epoch']) < first_epoch]
            except (OSError, ValueError, KeyError, csv.Error) as error:
                raise UserError(f'{path} is damaged ({error!r}): mend it, or move it away to go on without') from error

    def write(self) -> None:
        """Raises UserError when the file cannot be written; the previous one is intact then."""
        if not self.rows:
            return
        try:
            write_csv(self.path, self.rows, lineterminator='\r\n')  # as timm ends them
        except OSError as error:
            raise UserError(f'{self.path} could not be written: {error.strerror or error}') from error


def open_folder(recipe: Recipe, size: int, lock: FolderLock) -> Path:
    """The folder of a run on images of `size` px, made, proved writable and locked. A resumed run stays where it was.

    Raises UserError when it cannot be written or holds another run, as FolderBusy while that one trains.
    """
    name = recipe.experiment or f'{datetime.datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(recipe.model)}-{size}'
    folder = Path(recipe.output or 'output/train', name)
    if recipe.resume == 'auto' and not recipe.experiment:
        raise UserError('--resume auto needs --experiment NAME, to know which run to continue')
    if recipe.resume not in ('', 'auto') and not recipe.experiment and not recipe.output:
        folder = Path(recipe.resume).parent
    try:
        if not (recipe.experiment or recipe.resume):
            folder = _new_folder(folder)
        make_folder(folder)
        lock.take(folder)
        if not recipe.resume and any(folder.glob('*.pth.tar')):
            raise UserError(
                f'{folder} already holds a run; continue it with --resume auto, or choose another --experiment')
        for half in folder.glob('.*.[0-9]*.tmp'):  # of a run that was killed while it saved
            half.unlink()
    except OSError as error:
        raise UserError(f'output folder {folder} cannot be written: {error.strerror}; change --output') from None
    return folder


def _new_folder(folder: Path) -> Path:
    """`folder`, made; with a number behind it when another run, begun within the same second, has just made it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        numbered = folder.with_name(f'{folder.name}-{number}') if number > 1 else folder
        with contextlib.suppress(FileExistsError):
            numbered.mkdir()
            break
    return numbered
