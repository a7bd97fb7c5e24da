"""Any number of classes per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.loss import create_classification_loss

from timm_rs.data.annotated import open_annotated
from timm_rs.data.balance import describe_counts, without_images
from timm_rs.data.class_names import names_of
from timm_rs.data.listing import some
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, blaming
from timm_rs.recipe.declaring import knob
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.backbone import check_no_image_in_both, check_no_minival
from timm_rs.tasks.task import Metric, Task

# Knobs of classification that would change nothing here, or stand for something else.
NOT_HERE = ('class_folder', 'class_map', 'loader', 'pseudo_dir')
AXIS = 'mAP, F1 (%)'
PROBLEM_TYPE = 'multi_label_classification'  # as config.json of a published model has it, for transformers


class Multilabel(Task):
    """Targets (N, classes) float32, 1 where a class is there and -1 all over where nothing counts; logits (N, classes).

    Where images are mixed, targets are shares, 0 to 1.
    """

    name = 'multilabel'
    metrics = (Metric('map', 'mAP', True, '%', AXIS, ('mean_average_precision', 'mAP')),
               Metric('f1', 'micro F1 at 0.5', True, '%', AXIS, ('f1', 'Micro F1')), Metric('loss', 'loss', False))
    blank = -1.0
    hub = ('image-classification', 'Multi-label Image Classification')
    is_of_tags = True
    layouts: ClassVar[tuple[str, ...]] = ('tags',)

    @dataclass
    class Knobs:
        loss: str = knob(
            'bce', 'bce: binary cross-entropy of each class, with the bce_… knobs; asymmetric: what is rare and hard '
            'counts for more (Ridnik et al. 2021)', choices=('bce', 'asymmetric'))

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if wrong := [name for name in NOT_HERE if getattr(recipe, name) != getattr(Recipe(), name)]:
            raise UserError(f'{", ".join(wrong)} would change nothing in task multilabel, whose data are tables or '
                            'texts of tags: leave it out')
        of_bce = dict(bce_target_thresh=recipe.bce_target_thresh, bce_sum=recipe.bce_sum,
                      pos_weight=recipe.bce_pos_weight)
        is_bce = self.knobs.loss == 'bce'
        if not is_bce and (recipe.bce_loss or any(of_bce.values())):
            raise UserError('the asymmetric loss has none of the bce_… knobs: leave them out, or give --loss bce')
        with blaming('the loss (smoothing, bce_…) cannot be built'):
            self.criterion = create_classification_loss(
                'bce' if is_bce else 'asl', multi_label=True, smoothing=recipe.smoothing, asl_reduction='mean',
                **of_bce if is_bce else {})
        self.num_outputs = 1
        self.unseen: list[str] = []  # classes without a validation image

    # ---- data ---------------------------------------------------------------------------------------------------

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Any | None, Any | None, int | None]:
        """Raises UserError where no training image, or no validation image, has a tag."""
        check_no_minival(self.name, recipe.train_split, recipe.val_split)
        train, validation, num_classes = super().create_datasets(recipe, need_training, known, source)
        check_no_image_in_both(train, validation, recipe.train_split, recipe.val_split)
        for split, dataset in ((recipe.train_split, train), (recipe.val_split, validation)):
            if dataset is not None and not any(dataset.targets()):
                raise UserError(f'no image of the split {split} has a tag: there is nothing to learn, or to measure')
        if validation is not None:
            number = recipe.num_classes or num_classes or 0
            self.unseen = without_images(_counts(validation, number), names_of(validation.classes, number))
        return train, validation, num_classes

    def open_split(self, recipe: Recipe, split: str, is_training: bool) -> Samples:
        return open_annotated(recipe, split, self.layouts)

    def describe(self, dataset: Any, num_outputs: int) -> list[str]:
        """How often each class is there, and which is nowhere."""
        counts, names = _counts(dataset, num_outputs), names_of(dataset.classes, num_outputs)
        without = sum(not tags for tags in dataset.targets())
        lines = describe_counts(
            counts, names, self.noun,
            f'{len(dataset):,} training images of {num_outputs:,} classes, {without:,} of them of none')
        if self.unseen:
            lines.append(f'no validation image is of class {some(self.unseen)}: left out of the mAP')
        return lines

    def classes(self, dataset: Any) -> dict[Any, int]:
        return dict(dataset.classes)

    def encoder(self, num_outputs: int) -> Callable[[Any], Any]:
        self.num_outputs = num_outputs
        return partial(as_target, num_outputs=num_outputs)

    def blank_of(self, transform: Any) -> torch.Tensor:
        """As long as the targets of the last `encoder`."""
        return torch.full((self.num_outputs,), self.blank)

    # ---- the model ----------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        self.criterion.to(device)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean over images and classes, or with `bce_sum` the sum over classes."""
        return self.criterion(outputs.float(), targets)  # type: ignore[no-any-return]

    def evaluator(self, device: Device) -> 'TagScores':
        return TagScores(device)

    # ---- for people ---------------------------------------------------------------------------------------------

    def results(self, computed: dict[str, float]) -> dict[str, Any]:
        """With the classes that the mAP is without."""
        return super().results(computed) | dict(classes_without_images=self.unseen)

    def caption(self, target: Any, names: Sequence[str]) -> str:
        return ', '.join(names[index] for index in target.nonzero()[:, 0].tolist()) or 'no tag'

    def usage(self, num_outputs: int) -> list[str]:
        return ['    probabilities = model(x).sigmoid()  # of each class',
                'print((probabilities[0] >= 0.5).nonzero()[:, 0])  # the classes that are there']


def _counts(dataset: Any, num_classes: int) -> npt.NDArray[np.int64]:
    """How many images each class has, (classes,)."""
    labels = [label for tags in dataset.targets() for label in tags]
    return np.bincount(np.array(labels, np.int64), minlength=num_classes)


def as_target(labels: tuple[int, ...] | int, num_outputs: int) -> torch.Tensor:
    """(num_outputs,) float32: 1 at each of `labels`. Raises UserError for one that the model has no output for."""
    indices = torch.tensor(labels, dtype=torch.int64).reshape(-1)
    if (indices >= num_outputs).any():
        raise UserError(f'the data has label {int(indices.max())}, but the model has {num_outputs} classes')
    return torch.zeros(num_outputs).index_fill(0, indices, 1.0)


class TagScores:
    """`map`, the mean over classes of average precision, and `f1` of all tags together, both in %; mean `loss`.

    Classes without an image are left out of the mean. The loss is binary cross-entropy, the mean over classes.
    """

    def __init__(self, device: Device):
        self.device = device
        self.batches: list[torch.Tensor] = []

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        self.batches.append(torch.stack([logits.float(), targets]))

    def compute(self) -> dict[str, float]:
        """Raises UserError if no sample counts, or none has a tag."""
        own = torch.cat(self.device.to_cpu(self.batches), 1).cpu().numpy()
        shares = self.device.gather([own]) if self.device.num_summed > 1 else [own]
        return self.device.on_primary(lambda: _scored(*np.concatenate(shares, 1)))  # type: ignore[no-any-return]


def _scored(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> dict[str, float]:
    counts = targets[:, 0] >= 0
    if not counts.any():
        raise UserError('the validation set gave no samples')
    logits, truth = logits[counts], targets[counts] > 0
    if not truth.any():
        raise UserError('no image of the validation set that can be read has a tag')
    precisions = average_precisions(logits, truth)
    said = logits >= 0  # a probability of 0.5
    loss = F.binary_cross_entropy_with_logits(
        torch.from_numpy(logits.astype(float)), torch.from_numpy(truth.astype(float)))
    f1 = 2 * (said & truth).sum() / (said.sum() + truth.sum())
    return dict(map=100 * float(np.nanmean(precisions)), f1=100 * float(f1), loss=loss.item(), num_samples=len(truth))


def average_precisions(scores: npt.NDArray[Any], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of each class the precision at each score that an image of it has, averaged over these images; (classes,), 0..1.

    `scores` and `truth` are (N, classes); images of the same score come in together. nan where no image is of a class.
    """
    return np.array([_average_precision(*column) for column in zip(scores.T, truth.T, strict=True)])


def _average_precision(scores: npt.NDArray[Any], truth: npt.NDArray[np.bool_]) -> float:
    if not truth.any():
        return float('nan')
    order = np.argsort(-scores, kind='stable')
    is_last = np.append(scores[order][1:] != scores[order][:-1], True)  # of its score
    hits, places = truth[order].cumsum()[is_last], 1 + np.flatnonzero(is_last)
    return float((np.diff(hits, prepend=0) * hits / places).sum() / hits[-1])
