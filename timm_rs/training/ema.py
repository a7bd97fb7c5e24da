"""Exponential moving average of the weights and of the batch-norm statistics."""

import copy
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from timm_rs.device.torch_device import Device
from timm_rs.recipe.knobs import Recipe


class Ema(ModelEmaV3):
    """timm's average on `device`.

    Where the device decides which updates are made, `share` is 1, or 0 for one that was left out: (), on the device.
    """

    share: torch.Tensor | None = None

    def __init__(self, model: nn.Module, device: Device, **settings: Any):
        # timm's constructor asks for a random generator of the device, which XLA does not have.
        super().__init__(copy.deepcopy(model).cpu() if device.is_lazy else model, **settings)
        self.where = device
        self.tensors: list[list[torch.Tensor]] = []  # as `_collect` has them
        self.module.to(device.torch_device)

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self.share is None:
            super().apply_update_(model, decay)
            return
        tensors = self.tensors or self._collect(model)
        if not self.where.is_lazy:  # where what is held would be one more result of the step
            self.tensors = tensors  # to collect them at every update would keep a GPU waiting
        averages, values, counters, counts = tensors
        # A number would be a constant of XLA's graph where it meets another that is equal.
        self.where.lerp(averages, values, self.where.number(1 - decay) * self.share)
        self.where.copy(counters, counts)

    def _collect(self, model: nn.Module) -> list[list[torch.Tensor]]:
        """Averages and what they follow in `model`; counters and what they repeat."""
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        return [[pair[side] for pair in pairs if pair[0].is_floating_point() == floating]
                for floating in (True, False) for side in (0, 1)]


class TensorFlowEma(Ema):
    """timm's average with TensorFlow's ramp: min(decay, (1 + t) / (10 + t)) at update t, counted from 1.

    That is `tf.train.ExponentialMovingAverage(num_updates=global_step)` where the release applies it: after the
    optimizer, so global_step already counts the update (resnet_main.py; efficientnet/main.py alike), and the
    first decay is 2/11. The ramp stays below 0.9999 until update 89,990, so it rules most of a run and all of a
    short one.
    """

    def get_decay(self, step: int | None = None) -> float:
        return self.decay if step is None else min(self.decay, (1 + step) / (10 + step))


def create_ema(model: nn.Module, recipe: Recipe, device: Device) -> Ema | None:
    """A copy of `model` that follows it by `update(model, step)` (step counts from 1), or None when it is off."""
    if not recipe.model_ema:
        return None
    if recipe.model_ema_warmup and recipe.ema_ramp == 'tf':
        return TensorFlowEma(model, device, decay=recipe.model_ema_decay)
    return Ema(model, device, decay=recipe.model_ema_decay, use_warmup=recipe.model_ema_warmup)
