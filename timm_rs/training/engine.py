"""One epoch of training, and evaluation: the only two loops over data."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import nn

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.guard import DeviceGuard, Guard
from timm_rs.training.runlog import Progress
from timm_rs.training.state import Place, Training


def amp_dtype(recipe: Recipe) -> torch.dtype | None:
    return getattr(torch, recipe.amp_dtype) if recipe.amp else None


def updates_per_epoch(num_batches: int, recipe: Recipe) -> int:
    """Optimizer updates in an epoch; the last one may accumulate fewer batches."""
    return math.ceil(num_batches / recipe.grad_accum_steps)


def create_loss(recipe: Recipe) -> nn.Module:
    """The training loss: soft-max cross-entropy with label smoothing, or what mixup and `bce_loss` call for."""
    if recipe.bce_loss:
        return BinaryCrossEntropy(
            smoothing=0.0 if recipe.mixes_images else recipe.smoothing,  # mixing smooths its own targets
            target_threshold=recipe.bce_target_thresh, sum_classes=recipe.bce_sum, pos_weight=recipe.bce_pos_weight)
    if recipe.mixes_images:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(recipe.smoothing) if recipe.smoothing else nn.CrossEntropyLoss()


def train_updates(
        training: Training, loader: Any, recipe: Recipe, device: Device, place: Place, progress: Progress
) -> Iterator[bool]:
    """Train on what `loader` has of the epoch, and yield after each update, true after those that reported progress.

    `loader` yields normalised images (N, C, H, W) and class indices (N,) or soft targets (N, classes), on the
    device. `place` is kept up to date; after the last update `place.mean_loss` is the mean loss per image over the
    epoch and all processes. An update with a loss or gradient that is not finite is left out, by all
    processes together, as if its batches had not been there. Raises UserError after more than
    `max_nonfinite_steps` of them in a row.
    """
    training.wrapped.train()
    num_batches, accumulate = len(loader), recipe.grad_accum_steps
    guard = (DeviceGuard if device.is_asynchronous else Guard)(training, device, place, recipe.max_nonfinite_steps)
    # CUDA graphs write each batch's gradients to the same place, so what accumulates needs a place of its own.
    keeps_gradients = accumulate > 1 and recipe.torchcompile_mode in ('reduce-overhead', 'max-autotune')
    for weight in training.model.parameters() if keeps_gradients else ():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    training.optimizer.zero_grad(set_to_none=not keeps_gradients)
    for index, (images, targets) in enumerate(progress.waiting_for(loader)):
        window = min(accumulate, num_batches - index // accumulate * accumulate)  # batches in this update
        is_update = (index + 1) % accumulate == 0 or index + 1 == num_batches
        with contextlib.nullcontext() if is_update else _no_sync(training.wrapped):
            with device.autocast(amp_dtype(recipe)):
                logits = training.wrapped(device.in_layout(images, recipe.channels_last))
            loss = training.loss(logits.float(), targets)  # the loss in float32, as the official code
            training.scaler.scale(loss / (device.number(window) if accumulate > 1 else 1)).backward()
        guard.add(loss.detach(), len(images))
        place.images += device.num_images(images)
        if accumulate > 1:
            device.end_step()  # a batch is one graph, whether an update follows or not
        if not is_update:
            continue

        device.reduce_gradients(training.model.parameters())
        if guard.begin(unscale=recipe.clip_grad is not None):
            if recipe.clip_grad is not None:
                parameters = model_parameters(training.model, exclude_head=recipe.clip_mode == 'agc')
                dispatch_clip_grad(parameters, recipe.clip_grad, mode=recipe.clip_mode)
            device.before_update(training.optimizer)
            guard.step()
            if training.ema is not None:
                training.ema.update(training.model, step=place.update + 1)
        guard.end()
        training.optimizer.zero_grad(set_to_none=not keeps_gradients)
        place.update += 1
        if training.schedule is not None:
            training.schedule.step_update(place.update)
        device.end_step()

        is_report = place.update % recipe.log_interval == 0 or index + 1 == num_batches
        if is_report:
            lr = training.optimizer.param_groups[0]['lr']
            device.defer(partial(_report, place, progress, place.update, lr, device.num_summed),
                         training.unreported, *guard.report())
            training.unreported = device.put(torch.zeros(3))
        if place.skipped_in_a_row > recipe.max_nonfinite_steps:
            raise NonFiniteError(
                f'the loss or a gradient was not finite in {place.skipped_in_a_row} updates in a row, in epoch '
                f'{place.epoch + 1}: lower the learning rate, warm up longer or clip gradients')
        yield is_report
    device.flush()


def _report(
        place: Place, progress: Progress, update: int, lr: float, num_summed: int, unreported: list[float],
        in_a_row: list[float] | None = None) -> None:
    loss_sum, counted, skipped = unreported
    place.loss, place.counted = place.loss + loss_sum, place.counted + counted
    place.skipped += round(skipped)
    if in_a_row is not None:
        place.skipped_in_a_row = round(in_a_row[0] / num_summed)
    progress.report(update, loss_sum / counted if counted else math.nan, lr, counted, place.skipped)


class NonFiniteError(UserError):
    """Training does not recover by leaving out updates."""


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Skip the exchange of gradients on batches that only accumulate."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


@torch.no_grad()
def evaluate(
        model: nn.Module, loader: Any, recipe: Recipe, device: Device, label: str = 'evaluate',
        heed: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Mean cross-entropy `loss`, accuracies `top1` and `top5` (%) and `num_samples`, over all processes.

    Every sample counts once; those with a negative label (padding, bad files) do not. After each batch `heed` may
    raise to break off. Raises UserError if no sample counts.
    """
    model.eval()
    totals = device.put(torch.zeros(4))  # loss, top-1, top-5, samples
    for images, targets in track(loader, label, total=len(loader), enabled=device.is_primary):
        with device.autocast(amp_dtype(recipe)):
            logits = model(device.in_layout(images, recipe.channels_last))
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
        totals += torch.stack([
            F.cross_entropy(logits, targets, reduction='sum', ignore_index=-1),
            hits[:, 0].sum(), hits.any(1).sum(), (targets >= 0).sum()])
        device.end_step()
        if loader.is_exact:  # else processes may have different numbers of batches, and would wait for ever
            heed()
    loss, top1, top5, num_samples = device.to_cpu(device.sum(totals)).tolist()
    if not num_samples:
        raise UserError('the validation set gave no samples')
    return dict(loss=loss / num_samples, top1=100 * top1 / num_samples, top5=100 * top5 / num_samples,
                num_samples=int(num_samples))
