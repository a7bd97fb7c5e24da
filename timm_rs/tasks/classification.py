"""One class per image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.loss import create_classification_loss
from torch import nn

from timm_rs.data.balance import AUTO, class_weights, describe_counts
from timm_rs.data.class_names import names_of
from timm_rs.data.datasets import class_to_index
from timm_rs.data.mixture import Mixture
from timm_rs.data.pseudo_labels import open_mixture
from timm_rs.data.samples import as_samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, blaming
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.task import Metric, Task


class Classification(Task):
    """Class indices (N,), or soft targets (N, classes) where images are mixed; logits (N, classes)."""

    name = 'classification'
    metrics: tuple[Metric, ...] = (
        Metric('top1', 'top-1', True, '%', 'accuracy (%)', ('accuracy', 'Top 1 Accuracy')),
        Metric('top5', 'top-5', True, '%', 'accuracy (%)', ('accuracy', 'Top 5 Accuracy')),
        Metric('loss', 'loss', False))
    blank = -1
    hub = ('image-classification', 'Image Classification')
    is_of_classes = True

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if recipe.bce_loss and recipe.pseudo_dir:
            raise UserError('bce_loss does not go with pseudo_dir: pseudo labels are probabilities of one class each')
        if recipe.class_weights and recipe.bce_loss:
            raise UserError('class_weights are of the soft-max cross-entropy: leave out bce_loss, or weigh by '
                            'bce_pos_weight')
        for name, is_given, why in (
                ('class_weights auto', recipe.class_weights == AUTO, 'it makes up for the same imbalance'),
                ('pseudo_dir', recipe.pseudo_dir, 'tools/pseudo_label.py select --per-class N balances those'),
                ('aug_repeats', recipe.aug_repeats, 'which has each image of a batch several times')):
            if recipe.balanced_sampling and is_given:
                raise UserError(f'balanced_sampling does not go with {name}, leave one of them out: {why}')
        of_bce = dict(bce_target_thresh=recipe.bce_target_thresh, bce_sum=recipe.bce_sum,
                      pos_weight=recipe.bce_pos_weight)
        with blaming('the loss (smoothing, bce_…) cannot be built'):
            self.criterion = create_classification_loss(
                'bce' if recipe.bce_loss else 'ce', smoothing=recipe.smoothing,
                soft_targets=recipe.mixes_images or bool(recipe.pseudo_dir), **of_bce if recipe.bce_loss else {})
        self._leave_out_top5(recipe.num_classes)

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Any | None, Any | None, int | None]:
        """With the pseudo labels of the recipe among the training data.

        Raises UserError where the best checkpoint would be chosen by a top-5 that is always 100 %.
        """
        train, validation, num_classes = super().create_datasets(recipe, need_training, known, source)
        self._leave_out_top5(recipe.num_classes or num_classes)
        if need_training and self.best_by not in self.metrics:
            raise UserError(f'eval_metric {self.best_by.name} is always 100 % with at most five classes: take top1 or '
                            'loss')
        if train is not None and recipe.class_weights and need_training:
            number = recipe.num_classes or num_classes or 0
            self.criterion = WeightedCrossEntropy(class_weights(
                recipe.class_weights, self._counts(train, number), names_of(class_to_index(train), number)),
                recipe.smoothing)
        if train is not None and recipe.pseudo_dir and need_training:
            train = open_mixture(
                as_samples(train), class_to_index(train), recipe.num_classes or num_classes or 0,
                Path(recipe.pseudo_dir), recipe.pseudo_pool, recipe.pseudo_ratio)
        return train, validation, num_classes

    def _counts(self, dataset: Any, num_classes: int) -> npt.NDArray[np.int64]:
        """How many images each class has, (classes,). Raises UserError where that is not known beforehand."""
        labels = np.asarray(as_samples(dataset).targets(), np.int64)
        for label in (labels.min(), labels.max()):
            LabelCheck(num_classes)(int(label))
        return np.bincount(labels, minlength=num_classes)

    def describe(self, dataset: Any, num_outputs: int) -> list[str]:
        labelled = dataset.labelled if isinstance(dataset, Mixture) else dataset
        try:
            counts = self._counts(labelled, num_outputs)
        except UserError:  # streams, and what has its labels in its images
            return []
        return describe_counts(counts, names_of(class_to_index(labelled), num_outputs), self.noun)

    def _leave_out_top5(self, num_classes: int | None) -> None:
        if num_classes and num_classes <= 5:
            self.metrics = tuple(metric for metric in self.metrics if metric.name != 'top5')

    def classes(self, dataset: Any) -> dict[Any, int]:
        return class_to_index(dataset)

    def encoder(self, num_outputs: int) -> Callable[[Any], Any]:
        return LabelCheck(num_outputs)

    def to(self, device: torch.device) -> None:
        self.criterion.to(device)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion(outputs.float(), targets)  # type: ignore[no-any-return]

    def num_right(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        return None if targets.is_floating_point() else (outputs.argmax(1) == targets).sum()

    def evaluator(self, device: Device) -> 'TopK':
        return TopK(device, [metric.name for metric in self.metrics])

    def results(self, computed: dict[str, float]) -> dict[str, float]:
        """With the errors beside the accuracies, as timm's validate.py has them."""
        return {name: value for metric in self.metrics for name, value in (
            (metric.name, computed[metric.name]), (f'{metric.name}_err', 100 - computed[metric.name]))
            if name != 'loss_err'}

    def caption(self, target: Any, names: Sequence[str]) -> str:
        """A class; of what is a `SparseTargets` the likeliest, and its probability."""
        if not isinstance(target, torch.Tensor):
            return names[target]
        share, place = target[1].max(0)
        return f'{names[int(target[0, place])]} {100 * share:.0f} %'

    def usage(self, num_outputs: int) -> list[str]:
        return ['    probabilities = model(x).softmax(dim=1)',
                f'print(probabilities.topk({min(5, num_outputs)}))']


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in which a target counts by the weight of its class, summed over the classes of a soft one.

    The mean is over images, not over weights, so that processes and batches of any size have the same. What `smoothing`
    spreads over all classes is weighted as a whole, by the class of the image: weighted class by class, it would draw
    every image to the rare classes.
    """

    weights: torch.Tensor

    def __init__(self, weights: torch.Tensor, smoothing: float):
        """`weights` (classes,) float32. Targets have no smoothing yet."""
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer('weights', weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes), class indices (N,) or probabilities (N, classes) -> mean loss, ()."""
        losses = -logits.log_softmax(1)
        shares = self.weights * (targets if targets.ndim == 2 else F.one_hot(targets, len(self.weights)))
        smoothed = (1 - self.smoothing) * losses + self.smoothing * losses.mean(1, keepdim=True)
        return (shares * smoothed).sum(1).mean()


class LabelCheck:
    """Passes class indices below `num_classes`, as int, and refuses all others."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, label: Any) -> int:
        if isinstance(label, int) and not 0 <= label < self.num_classes:
            raise UserError(f'the data has label {label}, but the model has {self.num_classes} classes '
                            f'(0 to {self.num_classes - 1}); set --num-classes')
        return int(label)


class TopK:
    """Mean cross-entropy `loss` and accuracies `top1` and `top5` (%) over the samples with a label from 0 on.

    Of these, those that are named.
    """

    def __init__(self, device: Device, names: Sequence[str]):
        self.device, self.names = device, names
        self.totals = device.put(torch.zeros(4))  # loss, top-1, top-5, samples

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        self.totals += torch.stack([
            F.cross_entropy(logits, labels, reduction='sum', ignore_index=-1),
            hits[:, 0].sum(), hits.any(1).sum(), (labels >= 0).sum()])

    def compute(self) -> dict[str, float]:
        loss, top1, top5, num_samples = self.device.to_cpu(self.device.sum(self.totals)).tolist()
        if not num_samples:
            raise UserError('the validation set gave no samples')
        computed = dict(loss=loss / num_samples, top1=100 * top1 / num_samples, top5=100 * top5 / num_samples)
        return {name: value for name, value in computed.items() if name in self.names} | dict(
            num_samples=int(num_samples))
