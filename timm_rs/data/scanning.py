"""Every image of a dataset read and decoded beforehand, to find those that training would skip."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from timm_rs.data.annotated import annotation_problem, layout_of, open_layout
from timm_rs.data.bad_samples import Problem, problem_of, unlisted
from timm_rs.data.children import in_children
from timm_rs.data.datasets import TRAIN_NAMES, VALIDATION_NAMES, open_split
from timm_rs.data.samples import Samples, as_samples
from timm_rs.data.videos import LISTS, open_video_split
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import DEFAULT_LIMITS, Limits

PATIENCE = 5  # by the clock, for which a slow disk counts


def open_splits(recipe: Recipe, split: str | None, are_videos: bool = False
                ) -> tuple[dict[str, Samples], list[UserError]]:
    """The samples of `split`; for None of training and validation, or of the data itself where it has no splits.

    Beside them, why one of the two could not be opened. Raises UserError when none could.
    """
    if split:
        return {split: open_samples(recipe, split, are_videos)}, []
    recipe = dataclasses.replace(recipe, val_split='')  # lets the data itself be the only split
    wanted = {'train': TRAIN_NAMES, 'validation': VALIDATION_NAMES}
    if recipe.dataset in ('', 'torch/image_folder', 'torch/folder'):
        root = Path(str(recipe.data_dir))
        present = [split for split, names in wanted.items()
                   if any((root / (name + suffix)).exists() for name in names for suffix in (
                       (*LISTS, '') if are_videos else ('', '.tar')))]
        return {split: open_samples(recipe, split, are_videos) for split in present or ['train']}, []
    opened: dict[str, Samples] = {}
    errors: list[UserError] = []
    for split in wanted:
        try:
            opened[split] = open_samples(recipe, split, are_videos)
        except UserError as error:
            errors.append(error)
    if not opened:
        raise errors[0]
    return opened, errors


def open_samples(recipe: Recipe, split: str, are_videos: bool = False) -> Samples:
    if layout := layout_of(recipe.dataset):
        return open_layout(layout, recipe.data_dir, split)
    return as_samples((open_video_split if are_videos else open_split)(recipe, split, False))


def find_bad_images(splits: dict[str, Samples], root: str | None, workers: int, limits: Limits = DEFAULT_LIMITS,
                    are_videos: bool = False) -> Iterator[Problem]:
    """Name and reason of every bad image, split by split, in the dataset's order; then what became no image of it.

    Each is decoded in another process. One that ends it, or leaves it without an answer `PATIENCE` times as long as an
    image may take of the processor, is bad, too.
    """
    for split, samples in splits.items():
        for image, reason in _bad_images(samples, workers, split, limits, are_videos):
            # Images in archives may have the same name in every split.
            yield image if image.startswith(str(root)) else f'{split}: {image}', reason


def _bad_images(samples: Samples, workers: int, split: str, limits: Limits, are_videos: bool) -> Iterator[Problem]:
    problems = in_children(partial(_problem, samples, limits, are_videos), len(samples), workers,
                           PATIENCE * limits.seconds, failed=str)
    for index, problem in enumerate(track(problems, f'scanning {split}', total=len(samples))):
        if problem:
            yield samples.name(index), problem
    yield from unlisted(samples)


def _problem(samples: Samples, limits: Limits, are_videos: bool, index: int) -> str | None:
    return problem_of(samples, index, limits=limits, are_videos=are_videos) or annotation_problem(samples, index)
