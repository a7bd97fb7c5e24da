"""One epoch of training, and evaluation: the only two loops over data."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.amp.grad_scaler import GradScaler

from timm_rs.device import Device
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe import Recipe
from timm_rs.training.runlog import Progress


@dataclass
class Training:
    """What an epoch works on. `model` holds the weights; `wrapped` is the same model, compiled and data-parallel."""

    model: nn.Module
    wrapped: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Scheduler | None
    scaler: GradScaler
    ema: ModelEmaV3 | None = None


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


def train_one_epoch(
        training: Training, loader: Any, recipe: Recipe, device: Device, epoch: int, progress: Progress,
        after_report: Callable[[], None] = lambda: None) -> float:
    """Train on every batch of `loader` once; returns the mean loss per image over the epoch and all processes.

    `loader` yields normalised images (N, C, H, W) and class indices (N,) or soft targets (N, classes), on the
    device. All processes call `after_report` together at each report of progress. Raises UserError when the loss is
    no longer finite.
    """
    training.wrapped.train()
    num_batches, accumulate = len(loader), recipe.grad_accum_steps
    update = epoch * updates_per_epoch(num_batches, recipe)
    loss_sum, num_images = torch.zeros((), device=device.torch_device), 0  # since the last report
    epoch_loss, epoch_images = 0.0, 0

    def report(total_loss: float) -> None:
        nonlocal epoch_loss, epoch_images
        epoch_loss, epoch_images = epoch_loss + total_loss, epoch_images + num_images
        mean_loss = total_loss / num_images
        if not math.isfinite(mean_loss):
            raise UserError(f'the loss became {mean_loss} in epoch {epoch + 1}: lower the learning rate, warm up '
                            'longer or clip gradients; checkpoints of earlier epochs are intact')
        progress.report(update, mean_loss, training.optimizer.param_groups[0]['lr'], num_images)

    training.optimizer.zero_grad()
    for index, (images, targets) in enumerate(progress.waiting_for(loader)):
        window = min(accumulate, num_batches - index // accumulate * accumulate)  # batches in this update
        is_update = (index + 1) % accumulate == 0 or index + 1 == num_batches
        with contextlib.nullcontext() if is_update else _no_sync(training.wrapped):
            with device.autocast(amp_dtype(recipe)):
                logits = training.wrapped(_in_layout(images, recipe))
            loss = training.loss(logits.float(), targets)  # the loss in float32, as the official code
            training.scaler.scale(loss / window).backward()
        loss_sum += loss.detach() * len(images)
        num_images += len(images) * device.world_size
        if not is_update:
            continue

        if recipe.clip_grad is not None:
            training.scaler.unscale_(training.optimizer)
            parameters = model_parameters(training.model, exclude_head=recipe.clip_mode == 'agc')
            dispatch_clip_grad(parameters, recipe.clip_grad, mode=recipe.clip_mode)
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad()
        update += 1
        if training.ema is not None:
            training.ema.update(training.model, step=update)
        if training.schedule is not None:
            training.schedule.step_update(update)
        if update % recipe.log_interval == 0 or index + 1 == num_batches:
            device.defer(report, loss_sum)
            after_report()
            loss_sum.zero_()
            num_images = 0
    return epoch_loss / epoch_images


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Skip the exchange of gradients on batches that only accumulate."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


@torch.no_grad()
def evaluate(
        model: nn.Module, loader: Any, recipe: Recipe, device: Device, label: str = 'evaluate') -> dict[str, float]:
    """Mean cross-entropy `loss`, accuracies `top1` and `top5` (%) and `num_samples`, over all processes.

    Every sample counts once; those with a negative label (padding, bad files) do not. Raises UserError if none does.
    """
    model.eval()
    totals = torch.zeros(4, device=device.torch_device)  # loss, top-1, top-5, samples
    for images, targets in track(loader, label, total=len(loader), enabled=device.is_primary):
        with device.autocast(amp_dtype(recipe)):
            logits = model(_in_layout(images, recipe))
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
        totals += torch.stack([
            F.cross_entropy(logits, targets, reduction='sum', ignore_index=-1),
            hits[:, 0].sum(), hits.any(1).sum(), (targets >= 0).sum()])
    loss, top1, top5, num_samples = device.sum(totals).tolist()
    if not num_samples:
        raise UserError('the validation set gave no samples')
    return dict(loss=loss / num_samples, top1=100 * top1 / num_samples, top5=100 * top5 / num_samples,
                num_samples=int(num_samples))


def _in_layout(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """`images` in the memory layout of the model."""
    return images.contiguous(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
