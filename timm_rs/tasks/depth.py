"""How far away every pixel is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps

from timm_rs.data.annotated import read_depth
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.declaring import knob
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.dense import DenseTask, at_own_size, check_counted, mean_per_image
from timm_rs.tasks.task import Metric

EIGEN_SIZE, EIGEN_ROWS, EIGEN_COLUMNS = (480, 640), slice(45, 471), slice(41, 601)  # of NYU's images


class Depth(DenseTask):
    """Metres (N, H, W) float32, 0 where nothing was measured; natural logarithms of metres (N, 1, H, W)."""

    name = 'depth'
    metrics = (
        Metric('delta1', 'delta < 1.25', True, '%', hub=('delta1', 'delta < 1.25')),
        Metric('abs_rel', 'abs-rel', False), Metric('rmse', 'RMSE', False, 'm'), Metric('log10', 'log10', False),
        Metric('loss', 'log error', False))
    blank = void = 0.0
    hub = ('depth-estimation', 'Depth Estimation')
    opacity = 1.0
    layouts = ('nyu', 'depth_folders')

    @dataclass
    class Knobs(DenseTask.Knobs):
        min_depth: float = knob(0.001, 'what is nearer does not count; metres', above=0)
        max_depth: float = knob(10.0, 'what is further away does not count; metres', above=0)
        eval_crop: str = knob(
            'none', 'eigen: of NYU\'s 640 x 480 pixels only rows 45 to 470 and columns 41 to 600 are compared',
            choices=('none', 'eigen'))

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if self.knobs.min_depth >= self.knobs.max_depth:
            raise UserError(f'no depth is between min_depth {self.knobs.min_depth} and max_depth '
                            f'{self.knobs.max_depth}')
        if self.knobs.eval_crop == 'eigen' and (
                self.knobs.eval_at != 'label' or 0 < self.knobs.label_size < EIGEN_SIZE[1]):
            raise UserError('eval_crop eigen is a part of 640 x 480 pixels: give eval_at label, and no label_size')

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Samples | None, Samples | None, int | None]:
        if recipe.num_classes not in (None, 1):
            raise UserError(f'num_classes is {recipe.num_classes}, and depth is one number: leave it out')
        return *super().create_datasets(recipe, need_training, known, source)[:2], 1

    def encoder(self, num_outputs: int) -> Callable[[Any], Any]:
        return partial(read_depth, size=EIGEN_SIZE if self.knobs.eval_crop == 'eigen' else None)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean difference of logarithms over the pixels of the batch that count; 0 where none does."""
        counts = _counts(targets, self.knobs)
        errors = (outputs[:, 0].float() - torch.where(counts, targets, 1.0).log()).abs()
        return torch.where(counts, errors, 0.0).sum() / counts.sum().clamp(min=1)

    def evaluator(self, device: Device) -> 'DepthErrors':
        return DepthErrors(device, self.knobs, self.metrics[0].name)

    def draw(self, outputs: torch.Tensor, names: list[str] | None) -> tuple[npt.NDArray[np.uint8], str]:
        """From red, the nearest of the image, to blue; and from where to where it goes."""
        metres = outputs[0].exp().clamp(self.knobs.min_depth, self.knobs.max_depth).numpy()
        near, middle, far = np.quantile(metres, [0.02, 0.5, 0.98])
        share = np.clip((far - metres) / max(far - near, 1e-6), 0, 1)
        words = f'{near:.2f} to {far:.2f} m, {middle:.2f} m in the middle'
        return colormaps['turbo'](share, bytes=True)[..., :3], words

    def usage(self, num_outputs: int) -> list[str]:
        return ['    metres = model(x).exp()  # of every pixel']


class DepthErrors:
    """Errors of metric depths, not scaled to fit: means over the pixels of an image, and of those over images.

    `delta1` is the share (%) of pixels with max(said / true, true / said) below 1.25. Depths that the network says are
    clamped to the range that counts. Source: the definitions of AdaBins' evaluation.
    """

    def __init__(self, device: Device, knobs: Any, name: str = 'delta1'):
        self.device, self.knobs = device, knobs
        self.names = (name, 'abs_rel', 'rmse', 'log10', 'loss')
        self.totals = device.put(torch.zeros(len(self.names) + 1))

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        logs = at_own_size(outputs, targets)[:, 0]
        counts = _counts(targets, self.knobs)
        if self.knobs.eval_crop == 'eigen':
            logs, counts, targets = (whole[:, EIGEN_ROWS, EIGEN_COLUMNS] for whole in (logs, counts, targets))
        true = torch.where(counts, targets, 1.0)
        said = logs.exp().clamp(self.knobs.min_depth, self.knobs.max_depth)
        close = torch.maximum(said / true, true / said) < 1.25
        per_image = [
            100 * mean_per_image(close.float(), counts), mean_per_image((said - true).abs() / true, counts),
            mean_per_image((said - true).square(), counts).sqrt(),
            mean_per_image((said / true).log10().abs(), counts), mean_per_image((logs - true.log()).abs(), counts),
            counts.any(2).any(1)]
        self.totals += torch.stack([values.sum() for values in per_image])

    def compute(self) -> dict[str, float]:
        *sums, num_samples = self.device.to_cpu(self.device.sum(self.totals)).tolist()
        check_counted(num_samples)
        return {name: total / num_samples for name, total in zip(self.names, sums, strict=True)} | dict(
            num_samples=int(num_samples))


def _counts(targets: torch.Tensor, knobs: Any) -> torch.Tensor:
    return (targets > knobs.min_depth) & (targets < knobs.max_depth)
