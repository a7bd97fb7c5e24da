"""A task that timm_rs does not have: one number per image, here of its class."""

import math
from dataclasses import dataclass, replace
from functools import partial
from operator import mul

import torch
import torch.nn.functional as F

from timm_rs.recipe.declaring import knob
from timm_rs.tasks.task import Metric, Task


class Regression(Task):
    name = 'regression'
    metrics = (Metric('mae', 'mean absolute error', False, 'm'), Metric('loss', 'squared error', False))
    blank = math.nan
    hub = ('image-regression', 'Image Regression')

    @dataclass
    class Knobs:
        step: float = knob(1.0, 'from the number of a class to that of the next, in metres', low=0)

    def create_datasets(self, recipe, *options):
        return *super().create_datasets(replace(recipe, num_classes=None), *options)[:2], 1

    def encoder(self, num_outputs):
        return partial(mul, self.knobs.step)

    def loss(self, outputs, targets):
        return F.mse_loss(outputs[:, 0].float(), targets)

    def evaluator(self, device):
        return MeanErrors(device)


class MeanErrors:
    def __init__(self, device):
        self.device, self.totals = device, device.put(torch.zeros(3))

    def update(self, outputs, targets):
        counts = ~targets.isnan()
        errors = torch.where(counts, outputs[:, 0].float() - targets, 0.0)
        self.totals += torch.stack([errors.abs().sum(), errors.square().sum(), counts.sum()])

    def compute(self):
        mae, loss, num_samples = self.device.to_cpu(self.device.sum(self.totals)).tolist()
        return dict(mae=mae / num_samples, loss=loss / num_samples, num_samples=int(num_samples))
