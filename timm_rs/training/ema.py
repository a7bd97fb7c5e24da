"""Exponential moving average of the weights and of the batch-norm statistics."""

import copy
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from timm_rs.device import Device
from timm_rs.recipe import Recipe


class Ema(ModelEmaV3):
    """timm's average on `device`."""

    def __init__(self, model: nn.Module, device: Device, **settings: Any):
        # timm's constructor asks for a random generator of the device, which XLA does not have.
        super().__init__(copy.deepcopy(model).cpu() if device.is_lazy else model, **settings)
        self.where = device
        self.module.to(device.torch_device)

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if not self.where.is_lazy:
            super().apply_update_(model, decay)
            return
        weight = self.where.number(1 - decay)  # timm's would be a constant of the graph where it meets another
        for average, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)


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
