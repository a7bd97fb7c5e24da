"""What a run consists of, and how far it is."""

import math
from dataclasses import dataclass

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.amp.grad_scaler import GradScaler

from timm_rs.training.ema import Ema


@dataclass
class Training:
    """What an epoch works on. `model` holds the weights; `wrapped` is the same model, compiled and data-parallel."""

    model: nn.Module
    wrapped: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Scheduler | None
    scaler: GradScaler
    ema: Ema | None
    # Since the last report: the summed loss, the images it covers, and the updates left out. (3,), on the device.
    unreported: torch.Tensor
    in_a_row: torch.Tensor | None = None  # `Place.skipped_in_a_row`, where the device decides: (1,), on the device

    def tensors(self) -> list[torch.Tensor]:
        """All that a step of the optimizer changes."""
        state = [value for values in self.optimizer.state.values() for value in values.values()
                 if isinstance(value, torch.Tensor) and value.device == self.unreported.device]
        return [*(weight.detach() for weight in self.model.parameters()), *state]


@dataclass
class Place:
    """How far a run is: with the weights and the random states, all that going on needs, anywhere in an epoch."""

    epoch: int = 0
    images: int = 0  # of this epoch, seen by all processes together
    update: int = 0  # since the run began
    loss: float = 0.0  # of this epoch, summed over `counted` images, up to the last report
    counted: float = 0.0
    skipped: int = 0  # updates of the run up to the last report that were not made: a loss or gradient was not finite
    skipped_in_a_row: int = 0
    is_bn_shared: bool = False  # whether the processes have the same statistics of batch norm for evaluation already

    @property
    def mean_loss(self) -> float:
        return self.loss / self.counted if self.counted else math.nan

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.images, self.loss, self.counted, self.is_bn_shared = epoch, 0, 0.0, 0.0, False
