"""Every image of a dataset read and decoded beforehand, to find those that training would skip."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from timm_rs.data.annotated import annotation_problem, layout_of, open_layout
from timm_rs.data.bad_samples import Problem, problem_of, unlisted
from timm_rs.data.datasets import TRAIN_NAMES, VALIDATION_NAMES, open_split
from timm_rs.data.samples import Samples, as_samples
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import DEFAULT_LIMITS, Limits


def open_splits(recipe: Recipe, split: str | None) -> tuple[dict[str, Samples], list[UserError]]:
    """The samples of `split`; for None of training and validation, or of the data itself where it has no splits.

    Beside them, why one of the two could not be opened. Raises UserError when none could.
    """
    if split:
        return {split: open_samples(recipe, split)}, []
    recipe = dataclasses.replace(recipe, val_split='')  # lets the data itself be the only split
    wanted = {'train': TRAIN_NAMES, 'validation': VALIDATION_NAMES}
    if recipe.dataset in ('', 'torch/image_folder', 'torch/folder'):
        root = Path(str(recipe.data_dir))
        present = [split for split, names in wanted.items()
                   if any((root / (name + suffix)).exists() for name in names for suffix in ('', '.tar'))]
        return {split: open_samples(recipe, split) for split in present or ['train']}, []
    opened: dict[str, Samples] = {}
    errors: list[UserError] = []
    for split in wanted:
        try:
            opened[split] = open_samples(recipe, split)
        except UserError as error:
            errors.append(error)
    if not opened:
        raise errors[0]
    return opened, errors


def open_samples(recipe: Recipe, split: str) -> Samples:
    if layout := layout_of(recipe.dataset):
        return open_layout(layout, recipe.data_dir, split)
    return as_samples(open_split(recipe, split, is_training=False))


def find_bad_images(splits: dict[str, Samples], root: str | None, workers: int, limits: Limits = DEFAULT_LIMITS
                    ) -> Iterator[Problem]:
    """Name and reason of every bad image, split by split, in the dataset's order; then what became no image of it."""
    for split, samples in splits.items():
        for image, reason in _bad_images(samples, workers, split, limits):
            # Images in archives may have the same name in every split.
            yield image if image.startswith(str(root)) else f'{split}: {image}', reason


def _bad_images(samples: Samples, workers: int, split: str, limits: Limits) -> Iterator[Problem]:
    loader = DataLoader(Problems(samples, limits), batch_size=32, num_workers=workers, collate_fn=list)
    problems = (problem for batch in loader for problem in batch)
    for index, problem in enumerate(track(problems, f'scanning {split}', total=len(samples))):
        if problem:
            yield samples.name(index), problem
    yield from unlisted(samples)


class Problems(Dataset[str | None]):
    """What is wrong with each image; None where nothing is."""

    def __init__(self, samples: Samples, limits: Limits):
        self.samples, self.limits = samples, limits

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> str | None:
        return problem_of(self.samples, index, limits=self.limits) or annotation_problem(self.samples, index)
