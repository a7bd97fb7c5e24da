"""What tasks on the backbone of a classifier have in common."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from timm_rs.data.annotated import open_annotated
from timm_rs.data.identity import check_same_classes
from timm_rs.data.minival import MINIVAL, TRAIN_MINIVAL
from timm_rs.data.samples import Samples
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.task import Task
from timm_rs.transforms.joint import JointTransform

# Knobs of classification that would change nothing here.
NOT_HERE = (
    'aa', 'aug_repeats', 'bce_loss', 'bce_pos_weight', 'bce_sum', 'bce_target_thresh', 'class_map', 'crop_pct',
    'cutmix', 'cutmix_minmax', 'decode', 'drop', 'gaussian_blur_prob', 'gp', 'grayscale_prob', 'inflate', 'loader',
    'mixup', 'preprocessing', 'pseudo_dir', 'randaugment', 'reprob', 'train_crop_mode', 'vflip')
# Of the backbone in networks of these tasks, by the names of their weights.
PLACE = re.compile(r'^(detector\.)?backbone\.(body\.)?')


class BackboneTask(Task):
    """Annotated images, a network around a backbone of timm's, and pictures of what it says.

    Weights to start from are those of the backbone, as a classifier or another such task left them. Knobs have
    `scale_jitter`.

    Attributes:
        layouts: of the data, the first being the usual one.
    """

    starts_with_classes = False
    layouts: tuple[str, ...]

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if wrong := [name for name in NOT_HERE if getattr(recipe, name) not in (getattr(Recipe(), name), 0, None)]:
            raise UserError(f'{", ".join(wrong)} would change nothing in task {self.name}: leave it out')
        low, high = self.knobs.scale_jitter
        if low > high:
            raise UserError(f'scale_jitter must be a range, got {low} and {high}')

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Samples | None, Samples | None, int | None]:
        """Images and their annotations. Raises UserError where data is missing or both splits have an image."""
        check_no_minival(self.name, recipe.train_split, recipe.val_split)
        train = open_annotated(recipe, recipe.train_split, self.layouts) if need_training else None
        validation: Any = open_annotated(recipe, recipe.val_split, self.layouts) if recipe.val_split else None
        check_no_image_in_both(train, validation, recipe.train_split, recipe.val_split)
        for split in (found for found in (train, validation) if found is not None):
            check_same_classes(known or {}, split.classes, source)
        return train, validation, None

    def create_transform(self, recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> JointTransform:
        """What makes images and targets of the network's size of annotated ones."""
        raise NotImplementedError

    def blank_of(self, transform: Any) -> torch.Tensor:
        return transform.blank()  # type: ignore[no-any-return]

    def initial(self, model: nn.Module, weights: dict[str, torch.Tensor]
                ) -> tuple[nn.Module, dict[str, torch.Tensor], list[str]]:
        """The backbone, and what it has of the weights of a classifier or of another network like this."""
        backbone = model.get_submodule('backbone')
        own = backbone.state_dict().keys()
        weights = {PLACE.sub('', name): value for name, value in weights.items()}
        return (backbone, {name: value for name, value in weights.items() if name in own},
                sorted(weights.keys() - own))

    def picture(self, outputs: Any, size: tuple[int, int], pixels: npt.NDArray[np.uint8], names: list[str] | None,
                min_score: float = 0.5) -> tuple[npt.NDArray[np.uint8], str]:
        """What the network said of one image, `outputs` for a batch of it at `size`, drawn over its pixels (H, W, 3).

        And the same in words. Of boxes, those with a score of at least `min_score`.
        """
        raise NotImplementedError


def check_num_classes(wanted: int | None, found: int) -> None:
    """Raise UserError where a recipe has another number of classes than its data."""
    if wanted not in (None, found):
        raise UserError(f'num_classes is {wanted}, but the data has {found} classes; drop num_classes to follow the '
                        'data')


def check_no_minival(task: str, *splits: str) -> None:
    """Raise UserError where one of the `splits` for `task`, whose images have no class each, is minival or its rest."""
    if {*splits} & {MINIVAL, TRAIN_MINIVAL}:
        raise UserError(f'minival is drawn by classes of images, which task {task} does not have: name splits of the '
                        'data')


def check_no_image_in_both(train: Samples | None, validation: Samples | None, *splits: str) -> None:
    """Raise UserError for images that are in both of the `splits`."""
    if both := _names(train) & _names(validation):
        raise UserError(f'{len(both)} images are in both splits, {" and ".join(splits)}, such as {min(both)}: take '
                        'them out of the list for training')


def _names(samples: Samples | None) -> set[str]:
    return set() if samples is None else {*samples.all_names()}
