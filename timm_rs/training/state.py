"""What a run consists of, and how far it is."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.amp.grad_scaler import GradScaler

from timm_rs.tasks.task import Task
from timm_rs.training.ema import Ema

UNKNOWN = -math.inf  # how many images are right; a sum stays it, and unlike nan it equals itself


@dataclass(frozen=True)
class StepSettings:
    """What the loops need to know of the recipe."""

    batch_size: int  # images per device
    grad_accum_steps: int  # batches per update
    dtype: torch.dtype | None  # of mixed precision
    channels_last: bool
    clip_grad: float | None
    clip_mode: str
    log_interval: int  # updates between reports
    max_nonfinite_steps: int
    overwrites_gradients: bool  # CUDA graphs write each batch's gradients to the same memory


@dataclass
class Training:
    """What an epoch works on. `model` holds the weights; `wrapped` is the same model, compiled and data-parallel."""

    task: Task
    settings: StepSettings
    model: Any  # a network of timm's kind
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Scheduler | None
    scaler: GradScaler
    ema: Ema | None
    # Since the last report: the summed loss, the images it covers, the updates left out, and how many of the images
    # were right. (4,), on the device.
    unreported: torch.Tensor
    in_a_row: torch.Tensor  # `Position.skipped_in_a_row`, where the device decides: (1,), on the device
    data_config: dict[str, Any] = field(default_factory=dict)  # timm's: input_size, mean, std, crop_pct, …
    train_loader: Any = None
    frozen: list[nn.Module] = field(default_factory=list)  # whose batch norm keeps its statistics, too
    updates_per_epoch: int = 0
    num_epochs: int = 0
    origin: dict[str, Any] = field(default_factory=dict)  # what a checkpoint says of the recipe

    @property
    def average(self) -> nn.Module | None:
        return None if self.ema is None else self.ema.module

    def tensors(self) -> list[torch.Tensor]:
        """All that a step of the optimizer changes."""
        state = [value for values in self.optimizer.state.values() for value in values.values()
                 if isinstance(value, torch.Tensor) and value.device == self.unreported.device]
        return [*(weight.detach() for weight in self.model.parameters()), *state]


@dataclass
class Position:
    """How far a run is: with the weights and the random states, all that going on needs, anywhere in an epoch."""

    epoch: int = 0
    images: int = 0  # of this epoch, seen by all processes together
    update: int = 0  # since the run began
    loss: float = 0.0  # of this epoch, summed over `counted` images, up to the last report
    counted: float = 0.0
    right: float = 0.0  # of these
    skipped: int = 0  # updates of the run up to the last report that were not made: a loss or gradient was not finite
    skipped_in_a_row: int = 0
    is_bn_shared: bool = False  # whether the processes have the same statistics of batch norm for evaluation already

    @property
    def mean_loss(self) -> float:
        return self.loss / self.counted if self.counted else math.nan

    @property
    def share_right(self) -> float | None:
        """Of the epoch's images, in %; None where that cannot be said of all of them."""
        return 100 * self.right / self.counted if self.counted and math.isfinite(self.right) else None

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.images, self.is_bn_shared = epoch, 0, False
        self.loss, self.counted, self.right = 0.0, 0.0, 0.0
