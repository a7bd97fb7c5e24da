"""A run's folder, rows, checkpoints, signals and faults, around the loop over epochs."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from timm_rs.data.bad_samples import BadSamples, default_limit
from timm_rs.data.class_names import write_class_names
from timm_rs.data.identity import identity_of
from timm_rs.data.loader import Batches
from timm_rs.data.mixture import Mixture
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, as_user_error, first_line
from timm_rs.files import atomic_write
from timm_rs.models.complexity import count_parameters
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import to_yaml
from timm_rs.training.answers import PREDICTIONS, SAMPLES, Answers, draw_samples, open_answers
from timm_rs.training.checkpoint import BEST, Checkpoints
from timm_rs.training.curves import Curves
from timm_rs.training.engine import NonFiniteError
from timm_rs.training.faults import deaf_to_worker_deaths, explain, is_worker_death
from timm_rs.training.interruption import Interruption, Stopped
from timm_rs.training.lock import FolderLock
from timm_rs.training.resume import checkpoint_state, resume
from timm_rs.training.runlog import Progress, Summary, open_folder, since_best
from timm_rs.training.schedule import rates
from timm_rs.training.state import Position, Training
from timm_rs.training.trackers import Trackers, open_trackers


def open_run(recipe: Recipe, training: Training, device: Device, train_set: Any, validation_set: Any,
             eval_loader: Batches | None) -> 'Run':
    """The folder of the run, made or found again, and `training` at the `position` where it goes on.

    Raises UserError when the folder cannot be written, holds another run, or a checkpoint cannot be resumed;
    as FolderBusy when another run trains there.
    """
    with contextlib.ExitStack() as until_it_runs:
        lock = until_it_runs.enter_context(FolderLock())
        folder = device.on_primary(lambda: open_folder(recipe, training.data_config['input_size'][-1], lock))
        run = _open_run(folder, lock, recipe, training, device, train_set, validation_set, eval_loader)
        until_it_runs.pop_all()
    return run


def _open_run(folder: Path, lock: FolderLock, recipe: Recipe, training: Training, device: Device, train_set: Any,
              validation_set: Any, eval_loader: Batches | None) -> 'Run':
    best_by = training.task.best_by
    metric, lower_is_better = (
        (f'eval_{best_by.name}', not best_by.higher_is_better) if validation_set is not None else ('train_loss', True))
    checkpoints = Checkpoints(folder, recipe.checkpoint_hist, lower_is_better)
    classes = training.task.classes(train_set)
    training.origin['data'] = identity_of(train_set, classes)
    images_per_epoch = train_set.epoch_length if isinstance(train_set, Samples) else len(train_set)
    position, rows = resume(recipe, training, checkpoints, device, images_per_epoch)
    if position.images and not training.train_loader.is_exact:
        position.start_epoch(position.epoch)
        device.say(f'timm\'s loader cannot go on within an epoch: epoch {position.epoch + 1} begins anew')
    device.prepare(training.model, training.optimizer, training.average)
    summary = Summary(folder / 'summary.csv', rows, position.epoch)
    bad_samples = BadSamples(
        folder / 'bad_samples.csv', default_limit(len(train_set)) if recipe.max_bad_samples is None else
        recipe.max_bad_samples, position.update > 0,
        [*getattr(train_set, 'left_out', ()), *getattr(validation_set, 'left_out', ())])
    device.on_primary(partial(_write_start, folder, to_yaml(recipe), classes, summary))
    num_outputs = training.model.num_classes
    for line in training.task.describe(train_set, num_outputs) if device.is_primary else ():
        print(line, flush=True)
    if device.is_primary and not position.update:
        _draw(folder / SAMPLES, draw_samples, training.train_loader, training.task, classes, num_outputs)
    device.say(
        f'{recipe.model}: {count_parameters(training.model):.2f} M parameters, '
        f'{training.data_config["input_size"][-1]} px, {num_outputs} classes, {len(train_set)} training '
        f'{training.task.noun}s; lr {training.optimizer.defaults["lr"]:.4g}; '
        f'{device.num_devices} x {device.torch_device}; '
        + (f'epochs {position.epoch + 1} to {training.num_epochs}' if position.epoch < training.num_epochs
           else 'nothing left to train') + f'\neverything is written to {folder}')
    if isinstance(train_set, Mixture):
        device.say(train_set.plan(training.num_epochs))
    if recipe.sched != 'none' and not recipe.warmup_prefix and recipe.warmup_epochs >= training.num_epochs:
        device.say(
            f'the warm-up of {recipe.warmup_epochs} epochs does not end within the {training.num_epochs} of this run: '
            f'the learning rate stays below {training.optimizer.defaults["lr"]:.4g} unless you lower --warmup-epochs')
    answers = open_answers(training.task, eval_loader, classes, num_outputs, device)
    trackers = Trackers()
    device.on_primary(partial(open_trackers, recipe, folder, summary.rows, trackers))
    return Run(lock, training, device, position, checkpoints, summary, bad_samples, answers, metric,
               Interruption(recipe.checkpoint_interval_minutes, recipe.recovery_interval, recipe.stop_timeout),
               recipe.patience, trackers)


def _write_start(folder: Path, arguments: str, classes: dict[Any, int], summary: Summary) -> None:
    try:
        with atomic_write(folder / 'args.yaml') as file:
            file.write(arguments)
        write_class_names(folder, classes)
    except OSError as error:
        raise as_user_error(error) or error from error
    summary.write()


class Run:
    """Around the loop, as a context manager: signals are heard inside, and what goes wrong becomes a sentence.

    It ends with the curves drawn, and without a fault with the mistakes drawn and the best epoch named. `progress`,
    `position` and `answers` are for the loop.
    """

    def __init__(self, lock: FolderLock, training: Training, device: Device, position: Position,
                 checkpoints: Checkpoints, summary: Summary, bad_samples: BadSamples, answers: Answers | None,
                 metric: str, interruption: Interruption, patience: int, trackers: Trackers):
        """`lock` and `trackers` end with the run; `metric` is the column that the best checkpoint is chosen by.

        After `patience` evaluations in a row that are no better than the best the run ends; 0: never.
        """
        self.lock, self.patience, self.trackers, self.answers = lock, patience, trackers, answers
        self.training, self.device, self.position, self.checkpoints = training, device, position, checkpoints
        self.summary, self.bad_samples, self.metric, self.interruption = summary, bad_samples, metric, interruption
        self.progress = Progress(
            training.updates_per_epoch, position.update, training.num_epochs, enabled=device.is_primary)
        self.folder = checkpoints.folder
        self.curves = Curves(self.folder / 'curves.png', training.task.metrics, metric)
        self.go_on = f'continue with --experiment {self.folder.name} --resume auto'
        self.unwritten: Any = None  # of the best epoch, while it is in no file
        self.unsaved = ''  # why the last attempt to save came to nothing
        self._say_what_a_stop_loses()

    # ---- in the loop --------------------------------------------------------------------------------------------

    def epochs(self) -> Iterator[int]:
        """The epochs that are left to train."""
        while self.position.epoch < self.training.num_epochs and not self._is_patience_over():
            self.started = time.perf_counter()
            yield self.position.epoch

    def _is_patience_over(self) -> bool:
        """From the rows, which every process has and a checkpoint keeps: a resumed run ends at the same place."""
        since = since_best(self.summary.rows, self.metric, self.checkpoints.sign)
        if not 0 < self.patience <= since:
            return False
        self.progress.say(f'ended early: {self.metric} has not become better in {since} evaluations')
        return True

    def after_update(self, reported: bool) -> None:
        """Name new bad samples after an update that `reported` progress; save, or save and stop, when it is time."""
        if reported:
            self.note_bad_samples(self.training.train_loader)
        self.heed(self.position.update)

    def heed(self, update: int | None = None) -> None:
        """Save within the epoch (only after an `update`), or save and stop, when any process wants to."""
        wanted = self.device.agree(self.interruption.wanted(update))
        if wanted > 1:
            self.interruption.obeyed.set()  # by all processes, none of which hangs
        if wanted:
            position = self.position
            self._save(self.checkpoints.save_recovery, position.epoch,
                       position.update - position.epoch * self.training.updates_per_epoch)
        if wanted > 1:
            raise Stopped(wanted - 1)

    def note_bad_samples(self, loader: Batches) -> None:
        """Name bad files that `loader` met in any process, each once. Raises UserError when there are too many."""
        problems = self.device.gather(loader.take_problems())

        def note() -> None:
            for name, reason in problems:
                if self.bad_samples.add(name, reason):
                    self.progress.say(f'bad sample, left out: {name}: {reason}')
            self.bad_samples.check()
        self.device.on_primary(note)

    def finish_epoch(self, row: dict[str, Any], is_evaluated: bool) -> None:
        """Go on to the next epoch; with a checkpoint and the `row` in the summary, if this one is evaluated."""
        training, epoch, position = self.training, self.position.epoch, self.position
        if epoch + 1 == training.num_epochs and 0 < position.update <= position.skipped:
            raise NonFiniteError(f'all {position.update} updates were left out, since the loss or a gradient was not '
                                 'finite: lower the learning rate, warm up longer or clip gradients')
        row['lr'] = training.optimizer.param_groups[0]['lr']
        if training.schedule is not None:
            training.schedule.step(epoch + 1, row.get(self.metric))
        position.start_epoch(epoch + 1)
        if is_evaluated:
            self.summary.rows.append(row)
            said = None if self.answers is None else self.answers.gather()
            is_usable = math.isfinite(row.get('eval_loss', 0.0))  # weights of NaN may still get the first class right
            self._save(self._save_epoch, epoch, row[self.metric] if is_usable else math.nan, said)
        scores = '  '.join(f'{name} {value:.4g}' for name, value in row.items() if name not in ('epoch', 'lr'))
        self.progress.say(f'epoch {epoch + 1}/{training.num_epochs} done in '
                          f'{time.perf_counter() - self.started:.1f} s:  {scores}')

    def _save_epoch(self, state: dict[str, Any], epoch: int, metric: float, said: Any) -> None:
        """Save a checkpoint and, of the best epoch, what the model `said` of the validation data.

        That comes first: a run that is killed between the two makes the epoch again, and both anew.
        """
        if not math.isnan(metric) and self.checkpoints.is_better(epoch, metric):
            self.unwritten = said
        problem = _problem_of(self._write_answers)
        self.checkpoints.save(state, epoch, metric)
        self.summary.write()
        self.trackers.update(self.summary.rows)
        self._draw_curves()
        if problem:
            raise UserError(problem)

    def _draw_curves(self, at_once: bool = False) -> None:
        epoch, metric = self.checkpoints.best or (None, math.nan)
        self.curves.update(self.summary.rows, None if math.isnan(metric) else epoch, at_once, partial(
            rates, self.training.schedule, self.training.updates_per_epoch))

    def _write_answers(self) -> None:
        if self.answers is not None and self.unwritten is not None:
            self.answers.write(self.folder, self.unwritten)
            self.unwritten = None

    def _save(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Save in the primary process; what prevents it is no reason to stop, the next attempt may succeed."""
        self.interruption.saving()
        state = checkpoint_state(self.training, self.device, self.position, self.summary.rows)
        self.unsaved = self.device.on_primary(partial(_problem_of, function, state, *arguments))
        self.interruption.saved()
        self._say_what_a_stop_loses()
        if self.unsaved:
            self.progress.say(f'{self.unsaved}. Training goes on, and tries again at the next occasion')

    def _say_what_a_stop_loses(self) -> None:
        newest = self.checkpoints.newest
        self.interruption.lost = (f'; what came after {newest.name} is lost, {self.go_on}' if newest else
                                  '; what came after the newest checkpoint is lost')

    # ---- around it ----------------------------------------------------------------------------------------------

    def __enter__(self) -> 'Run':
        self.interruption.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        try:
            self._leave(error)
        except RuntimeError as death:  # of one more worker, before that was deaf to it
            if not is_worker_death(death):
                raise
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        with deaf_to_worker_deaths():
            self.interruption.__exit__()
            with self.lock:
                self._end(error)

    def _end(self, error: BaseException | None) -> None:
        try:
            if isinstance(error, NonFiniteError):
                good = next(iter(self.checkpoints.newest_first()), 'none, it was too early')
                raise UserError(f'{error}; the last good checkpoint: {good}') from error
            if isinstance(error, Stopped):
                self.progress.say(f'stopped by {error.signal_name} in epoch {self.position.epoch + 1}; '
                                  f'{self.unsaved or self.go_on}')
            if isinstance(error, Exception) and (
                    explained := explain(error, self.training.settings, self.device, self.go_on)):
                raise explained from None
        finally:
            self.progress.close()
            if self.device.is_primary:
                self._draw_curves(at_once=True)
                self.trackers.close(failed=error is not None)
        if error is None and self.device.is_primary:
            self._finish()

    def _finish(self) -> None:
        if self.unsaved:
            raise UserError(self.unsaved)
        if self.checkpoints.best:
            epoch, metric = self.checkpoints.best
            if math.isnan(metric):
                raise UserError('no epoch ended with a loss that is finite, so there is no best one: lower the '
                                'learning rate, warm up longer or clip gradients')
            if self.answers is not None:
                _draw(self.folder / self.answers.picture, self._draw_answers, self.answers)
            print(f'best {self.metric} {metric:.4g} in epoch {epoch + 1}: {self.folder / BEST}')

    def _draw_answers(self, picture: Path, answers: Answers) -> None:
        """Of the best epoch, which may be one of before this process: what was said of it is read again."""
        if said := answers.read(self.folder):
            answers.draw(picture.parent, said)
        else:
            print(f'{self.folder} has no {PREDICTIONS} of this data; train.py --eval {self.folder} makes it, and '
                  'pictures of the mistakes')


def _draw(picture: Path, draw: Callable[..., None], *arguments: Any) -> None:
    """Call `draw`; whatever goes wrong with fonts, caches and disks, the run is complete without a picture."""
    try:
        draw(picture, *arguments)
    except Exception as error:
        print(f'warning: {picture} could not be drawn: {first_line(error)}')


def _problem_of(function: Callable[..., Any], *arguments: Any) -> str:
    """What the person at the keyboard must know of calling `function`; empty when all went well."""
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return ''
