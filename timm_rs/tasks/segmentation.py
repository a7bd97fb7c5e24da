"""A class for every pixel."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from timm_rs.data.annotated import VOID, check_masks, read_mask
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.backbone import check_num_classes
from timm_rs.tasks.dense import DenseTask, at_own_size, check_counted, mean_per_image
from timm_rs.tasks.task import Metric

LARGEST = 1 << 26  # numbers that the answers of a batch may be at the labels' size, at once


class Segmentation(DenseTask):
    """Class indices (N, H, W) int16, 255 for void, which counts nowhere; logits (N, classes, H, W)."""

    name = 'segmentation'
    metrics = (Metric('miou', 'mIoU', True, '%', hub=('mean_iou', 'Mean IoU')), Metric('loss', 'loss', False))
    blank = VOID
    void = VOID
    hub = ('image-segmentation', 'Image Segmentation')
    opacity = 0.6
    layouts = ('voc', 'ade20k', 'folders')

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Samples | None, Samples | None, int | None]:
        """With masks looked into: raises UserError where training would learn nothing from them."""
        train, validation, _ = super().create_datasets(recipe, need_training, known, source)
        classes = next((split.classes for split in (train, validation) if split is not None), {})
        num_classes = len(classes) or recipe.num_classes
        if num_classes is None:
            raise UserError(f'{recipe.data_dir} does not say how many classes there are: name them in classes.txt, one '
                            'a line in the order of the labels, or give --num-classes')
        check_num_classes(recipe.num_classes, num_classes)
        if num_classes > VOID:
            raise UserError(f'{num_classes} classes do not fit into masks, in which {VOID} is void')
        if train is not None:
            check_masks(train, num_classes)
        return train, validation, num_classes

    def classes(self, dataset: Any) -> dict[Any, int]:
        return dict(dataset.classes)

    def encoder(self, num_outputs: int) -> Callable[[Any], Any]:
        return partial(read_mask, num_classes=num_outputs)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean over the pixels of the batch that count; 0 where none does."""
        counts, labels = _labels(targets, outputs.shape[1])
        losses = F.cross_entropy(outputs.float(), labels, reduction='none')
        return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)

    def evaluator(self, device: Device) -> 'MeanIoU':
        return MeanIoU(device, self.metrics[0].name)

    def draw(self, outputs: torch.Tensor, names: list[str] | None) -> tuple[npt.NDArray[np.uint8], str]:
        """The classes in VOC's colours, and how much of the image each has."""
        said = outputs.argmax(0).numpy()
        shares = np.bincount(said.ravel(), minlength=len(outputs)) / said.size
        words = ', '.join(f'{names[label] if names else f"class {label}"} {100 * shares[label]:.1f} %'
                          for label in np.argsort(-shares, kind='stable') if shares[label])
        return voc_colours(len(outputs))[said], words

    def usage(self, num_outputs: int) -> list[str]:
        return ['    classes = model(x).argmax(dim=1)  # of every pixel']


def voc_colours(num_classes: int) -> npt.NDArray[np.uint8]:
    """(num_classes, 3): the palette of VOC's masks, in which the bits of a label are spread over the colours."""
    labels = np.arange(num_classes)[:, None]
    return np.uint8(sum((labels >> 3 * bit + np.arange(3) & 1) << 7 - bit for bit in range(3)))


class MeanIoU:
    """Intersection over union (%), from one confusion matrix of all pixels, averaged over the classes that occur.

    A class occurs in the labels or in what the model says. `loss` is the mean over images of that over their pixels.
    """

    def __init__(self, device: Device, name: str = 'miou'):
        self.device, self.name = device, name
        self.totals = device.put(torch.zeros(2))  # loss, images
        self.matrix: torch.Tensor | None = None

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        num_classes = logits.shape[1]
        counts, labels = _labels(targets, num_classes)
        if self.matrix is None:
            self.matrix = self.device.put(torch.zeros(num_classes ** 2, dtype=torch.int64))
        losses = []
        height = max(1, LARGEST // (targets[:, 0].numel() * num_classes))
        for begin in range(0, targets.shape[1], height):
            band = slice(begin, begin + height)
            answers = at_own_size(logits, targets, band)
            pairs = labels[:, band] * num_classes + answers.argmax(1)
            self.matrix.scatter_add_(0, pairs.flatten(), counts[:, band].flatten().long())  # others add 0 somewhere
            losses.append(F.cross_entropy(answers, labels[:, band], reduction='none'))
        self.totals += torch.stack([
            mean_per_image(torch.cat(losses, 1), counts).sum(), counts.any(2).any(1).sum()])

    def compute(self) -> dict[str, float]:
        loss, num_samples = self.device.to_cpu(self.device.sum(self.totals)).tolist()
        check_counted(num_samples)
        assert self.matrix is not None
        matrix = self.device.to_cpu(self.device.sum(self.matrix)).cpu().double()
        matrix = matrix.reshape(round(len(matrix) ** 0.5), -1)
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        return {self.name: 100 * (matrix.diag() / union)[union > 0].mean().item(), 'loss': loss / num_samples,
                'num_samples': int(num_samples)}


def _labels(targets: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels count, and their classes as int64, 0 for all others."""
    counts = (targets >= 0) & (targets < num_classes)
    return counts, torch.where(counts, targets, 0).long()
