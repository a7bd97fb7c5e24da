"""One epoch of training, and evaluation: the only two loops over data."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
    ema: ModelEmaV3 | None
    unreported: torch.Tensor  # sum of the losses, and number of images, since the last report: (2,), on the device


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


@dataclass
class Place:
    """How far a run is: with the weights and the random states, all that going on needs, anywhere in an epoch."""

    epoch: int = 0
    images: int = 0  # of this epoch, seen by all processes together
    update: int = 0  # since the run began
    loss: float = 0.0  # of this epoch, summed over `counted` images, up to the last report
    counted: float = 0.0
    skipped: int = 0  # updates of the run that were not made, because a loss or gradient was not finite
    skipped_in_a_row: int = 0
    is_bn_shared: bool = False  # whether the processes have the same statistics of batch norm for evaluation already

    @property
    def mean_loss(self) -> float:
        return self.loss / self.counted if self.counted else math.nan

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.images, self.loss, self.counted, self.is_bn_shared = epoch, 0, 0.0, 0.0, False


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
    guard = Guard(training, device)
    training.optimizer.zero_grad()
    for index, (images, targets) in enumerate(progress.waiting_for(loader)):
        window = min(accumulate, num_batches - index // accumulate * accumulate)  # batches in this update
        is_update = (index + 1) % accumulate == 0 or index + 1 == num_batches
        with contextlib.nullcontext() if is_update else _no_sync(training.wrapped):
            with device.autocast(amp_dtype(recipe)):
                logits = training.wrapped(_in_layout(images, recipe))
            loss = training.loss(logits.float(), targets)  # the loss in float32, as the official code
            training.scaler.scale(loss / window).backward()
        guard.add(loss.detach(), len(images))
        place.images += len(images) * device.world_size
        if not is_update:
            continue

        if recipe.clip_grad is not None:
            training.scaler.unscale_(training.optimizer)
        made, hopeless = guard.is_finite(), False  # the loop's first host-device sync
        if made:
            if recipe.clip_grad is not None:
                parameters = model_parameters(training.model, exclude_head=recipe.clip_mode == 'agc')
                dispatch_clip_grad(parameters, recipe.clip_grad, mode=recipe.clip_mode)
            scale = training.scaler.get_scale()
            training.scaler.step(training.optimizer)
            training.scaler.update()
            # float16's scaler leaves out updates too, as it must while it looks for its scale; below 1 there is none.
            made = training.scaler.get_scale() >= scale
            hopeless = not made and training.scaler.get_scale() < 1
            if training.ema is not None:
                training.ema.update(training.model, step=place.update + 1)
        else:
            guard.undo()
            hopeless = True
        place.skipped += not made
        place.skipped_in_a_row = place.skipped_in_a_row + 1 if hopeless else 0
        if place.skipped_in_a_row > recipe.max_nonfinite_steps:
            raise NonFiniteError(
                f'the loss or a gradient was not finite in {place.skipped_in_a_row} updates in a row, in epoch '
                f'{place.epoch + 1}: lower the learning rate, warm up longer or clip gradients')
        training.optimizer.zero_grad()
        place.update += 1
        if training.schedule is not None:
            training.schedule.step_update(place.update)

        is_report = place.update % recipe.log_interval == 0 or index + 1 == num_batches
        if is_report:
            device.defer(partial(_report, training, place, progress), training.unreported)  # and the second
            training.unreported.zero_()
        yield is_report


def _report(training: Training, place: Place, progress: Progress, unreported: list[float]) -> None:
    loss_sum, counted = unreported
    place.loss, place.counted = place.loss + loss_sum, place.counted + counted
    progress.report(place.update, loss_sum / counted if counted else math.nan,
                    training.optimizer.param_groups[0]['lr'], counted, place.skipped)


class NonFiniteError(UserError):
    """Training does not recover by leaving out updates."""


class Guard:
    """Finds updates that would spoil the weights, and takes them back before they are made."""

    def __init__(self, training: Training, device: Device):
        self.training, self.device = training, device
        self.loss_sum = torch.zeros((), device=device.torch_device)  # of the batches in this update
        self.images = 0
        # A forward pass also writes: the statistics of batch norm.
        self.buffers = [buffer for buffer in training.model.buffers() if buffer.numel()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Take note of a batch's mean loss."""
        self.loss_sum += loss * images
        self.images += images

    def is_finite(self) -> bool:
        """Whether the losses, and but for float16 the gradients, are finite in all processes; then they count.

        float16 has a scaler that leaves out updates on its own, as it often must while it looks for its scale.
        """
        checked = self.loss_sum
        if not self.training.scaler.is_enabled():
            gradients = [weight.grad for weight in self.training.model.parameters() if weight.grad is not None]
            checked = checked + torch.nn.utils.get_total_norm(gradients)
        finite = not self.device.agree(not torch.isfinite(checked))
        if finite:
            self.training.unreported[0] += self.loss_sum
            self.training.unreported[1] += self.images
            self._copy(self.before, self.buffers)
        self.loss_sum.zero_()
        self.images = 0
        return finite

    def undo(self) -> None:
        self._copy(self.buffers, self.before)
        if self.training.scaler.is_enabled():
            self.training.scaler.update(self.training.scaler.get_scale() * self.training.scaler.get_backoff_factor())

    @staticmethod
    def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        if targets:  # a network without batch norm has none
            torch._foreach_copy_(targets, sources)


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
    totals = torch.zeros(4, device=device.torch_device)  # loss, top-1, top-5, samples
    for images, targets in track(loader, label, total=len(loader), enabled=device.is_primary):
        with device.autocast(amp_dtype(recipe)):
            logits = model(_in_layout(images, recipe))
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
        totals += torch.stack([
            F.cross_entropy(logits, targets, reduction='sum', ignore_index=-1),
            hits[:, 0].sum(), hits.any(1).sum(), (targets >= 0).sum()])
        if loader.is_exact:  # else processes may have different numbers of batches, and would wait for ever
            heed()
    loss, top1, top5, num_samples = device.sum(totals).tolist()
    if not num_samples:
        raise UserError('the validation set gave no samples')
    return dict(loss=loss / num_samples, top1=100 * top1 / num_samples, top5=100 * top5 / num_samples,
                num_samples=int(num_samples))


def _in_layout(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """`images` in the memory layout of the model."""
    return images.contiguous(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
