"""One epoch of training, and evaluation: the only two loops over data."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad, distribute_bn
from torch import nn

from timm_rs.data.loader import Batches
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.tasks.task import Task
from timm_rs.training.answers import Answers
from timm_rs.training.guard import DeviceGuard, Guard
from timm_rs.training.runlog import Progress
from timm_rs.training.state import Position, StepSettings, Training


def train_updates(
        training: Training, loader: Batches | Sequence[tuple[torch.Tensor, Any]], device: Device, position: Position,
        progress: Progress) -> Iterator[bool]:
    """Train on what `loader` has of the epoch, and yield after each update, true after those that reported progress.

    `loader` yields normalised images (N, C, H, W) and the task's targets, on the device. `position` is kept up to
    date; after the last update `position.mean_loss` is the mean loss per image over the epoch and all processes. An
    update with a loss or gradient that is not finite is left out, by all processes together, as if its batches had
    not been there. Raises UserError after more than `max_nonfinite_steps` of them in a row.
    """
    training.wrapped.train()
    for module in training.frozen:
        module.eval()
    task, settings = training.task, training.settings
    num_batches, accumulate = len(loader), settings.grad_accum_steps
    guard = (DeviceGuard if device.is_asynchronous else Guard)(training, device, position)
    keeps_gradients = accumulate > 1 and settings.overwrites_gradients  # what accumulates needs memory of its own
    for weight in training.model.parameters() if keeps_gradients else ():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    training.optimizer.zero_grad(set_to_none=not keeps_gradients)
    for index, (images, targets) in enumerate(progress.waiting_for(loader)):
        window = min(accumulate, num_batches - index // accumulate * accumulate)  # batches in this update
        is_update = (index + 1) % accumulate == 0 or index + 1 == num_batches
        with contextlib.nullcontext() if is_update else _no_sync(training.wrapped):
            with device.autocast(settings.dtype):
                outputs = task.forward(training.wrapped, device.in_layout(images, settings.channels_last), targets)
            loss = task.loss(outputs, targets)  # in float32, as the official code
            training.scaler.scale(loss / (device.number(window) if accumulate > 1 else 1)).backward()
        with torch.no_grad():
            num_right = task.num_right(outputs, targets)
        guard.add(loss.detach(), num_right, len(images))
        position.images += device.num_images(images)
        if accumulate > 1:
            device.end_step()  # a batch is one graph, whether an update follows or not
        if not is_update:
            continue

        device.reduce_gradients(training.model.parameters())
        if guard.begin(unscale=settings.clip_grad is not None):
            if settings.clip_grad is not None:
                parameters = model_parameters(training.model, exclude_head=settings.clip_mode == 'agc')
                dispatch_clip_grad(parameters, settings.clip_grad, mode=settings.clip_mode)
            device.before_update(training.optimizer)
            guard.step()
            if training.ema is not None:
                training.ema.update(training.model, step=position.update + 1)
        guard.end()
        training.optimizer.zero_grad(set_to_none=not keeps_gradients)
        position.update += 1
        if training.schedule is not None:
            training.schedule.step_update(position.update)
        device.end_step()

        is_report = position.update % settings.log_interval == 0 or index + 1 == num_batches
        if is_report:
            lr = training.optimizer.param_groups[0]['lr']
            device.defer(partial(_report, position, progress, position.update, lr, device.num_summed),
                         training.unreported, *guard.report())
            training.unreported = device.put(torch.zeros(4))
        if position.skipped_in_a_row > settings.max_nonfinite_steps:
            raise NonFiniteError(
                f'the loss or a gradient was not finite in {position.skipped_in_a_row} updates in a row, in epoch '
                f'{position.epoch + 1}: lower the learning rate, warm up longer or clip gradients')
        yield is_report
    device.flush()


def _report(
        position: Position, progress: Progress, update: int, lr: float, num_summed: int, unreported: list[float],
        in_a_row: list[float] | None = None) -> None:
    loss_sum, counted, skipped, right = unreported
    position.loss, position.counted = position.loss + loss_sum, position.counted + counted
    position.right += right
    position.skipped += round(skipped)
    if in_a_row is not None:
        position.skipped_in_a_row = round(in_a_row[0] / num_summed)
    progress.report(update, loss_sum / counted if counted else math.nan, lr, counted, position.skipped)


class NonFiniteError(UserError):
    """Training does not recover by leaving out updates."""


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Skip the exchange of gradients on batches that only accumulate."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


@torch.no_grad()
def evaluate(
        model: nn.Module, loader: Batches, task: Task, settings: StepSettings, device: Device, label: str = 'evaluate',
        heed: Callable[[], None] = lambda: None, answers: Answers | None = None) -> dict[str, float]:
    """The task's metrics of `model` and `num_samples`, over all processes.

    Every sample counts once; those with a blank target (padding, bad files) do not. After each batch `heed` may raise
    to break off. What the model says of each sample goes to `answers`, if there are any. Raises UserError if no
    sample counts.
    """
    model.eval()
    evaluator = task.evaluator(device)
    if answers is not None:
        answers.start()
    for images, targets in track(loader, label, total=len(loader), enabled=device.is_primary):
        with device.autocast(settings.dtype):
            outputs = task.forward(model, device.in_layout(images, settings.channels_last), targets)
        evaluator.update(outputs, targets)
        if answers is not None:
            answers.add(outputs, targets)
        device.end_step()
        if loader.is_exact:  # else processes may have different numbers of batches, and would wait for ever
            heed()
    return evaluator.compute()


def validate(
        training: Training, loader: Batches, device: Device, heed: Callable[[], None], answers: Answers | None = None
) -> dict[str, float]:
    """The summary's columns eval_*: of the weights, or of their average when one is kept (then eval_raw_* besides).

    `answers` are of what eval_* is of, the last pass; both have them, so that a compiled pass is of one graph.
    """
    def columns(model: nn.Module, prefix: str, label: str = 'evaluate') -> dict[str, float]:
        found = evaluate(model, loader, training.task, training.settings, device, label, heed, answers)
        return {prefix + name: value for name, value in found.items() if name != 'num_samples'}
    if training.average is None:
        return columns(training.model, 'eval_')
    raw = columns(training.model, 'eval_raw_')
    return columns(training.average, 'eval_', 'evaluate EMA') | raw


def share_batch_norm(training: Training, how: str, device: Device, position: Position) -> None:
    """Give all processes the same batch-norm statistics: the mean over them (`reduce`), or the primary's."""
    if device.keeps_replicas and how and not position.is_bn_shared:
        for model in filter(None, (training.model, training.average)):
            distribute_bn(model, device.world_size, how == 'reduce')
        position.is_bn_shared = True
