"""timm's own loader (`--loader timm`), and the only one for streamed datasets."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from timm.data import FastCollateMixup, create_loader

from timm_rs.data.bad_samples import MAX_BAD_IN_A_ROW, READ_ERRORS, Problem, why_unreadable
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import (
    Transform,
    build_augmentation,
    create_limits,
    create_timm_transform,
    create_transform,
)
from timm_rs.transforms.crops import OfLimitedLength
from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, Limits, open_with_pillow, pillow_deciding

_logger = logging.getLogger(__name__)


class TimmLoader:
    """Batches of timm's loader in the manner of ours. Bad images are passed over with a warning: no problems."""

    is_exact = False

    def __init__(self, loader: Any, own_samples: int | None = None, blank: Any = None):
        """Samples after `own_samples` are repetitions that timm adds to even out the shares of processes.

        Their targets become `blank`.
        """
        self.loader, self.own_samples, self.blank = loader, own_samples, blank

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        left = self.own_samples
        for images, targets in self.loader:
            if left is not None:
                targets[max(left, 0):] = self.blank
                left -= len(targets)
            yield images, targets

    def host_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.loader.loader)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Tell whatever shuffles (dataset or sampler) which epoch comes next; it always comes from its `start` 0."""
        for shuffler in (self.loader.dataset, self.loader.sampler):
            if hasattr(shuffler, 'set_epoch'):
                shuffler.set_epoch(epoch)

    def stop_mixing(self) -> None:
        self.loader.mixup_enabled = False

    def take_problems(self) -> list[Problem]:
        return []


def create_timm_train_loader(
        dataset: Any, recipe: Recipe, data_config: dict[str, Any], mixing: dict[str, Any] | None,
        encode: Callable[[Any], Any], num_workers: int, device: Device) -> TimmLoader:
    dataset = _create_timm_dataset(dataset, recipe, encode)
    loader = create_loader(
        dataset, is_training=True, batch_size=recipe.batch_size, collate_fn=mixing and FastCollateMixup(**mixing),
        re_prob=recipe.reprob, re_mode=recipe.remode, re_count=recipe.recount, num_aug_repeats=recipe.aug_repeats,
        num_workers=num_workers, worker_seeding=recipe.worker_seeding, **build_augmentation(recipe, data_config),
        **_shared(data_config, recipe.pin_mem, device))
    if not len(loader):
        raise UserError(f'the training set has {len(dataset)} images, fewer than one batch of {recipe.batch_size} in '
                        f'each of {device.world_size} process(es); lower --batch-size')
    dataset.transform = create_transform_for_timm(recipe, data_config, is_training=True)
    return TimmLoader(loader)


def create_timm_eval_loader(
        dataset: Any, recipe: Recipe, data_config: dict[str, Any], encode: Callable[[Any], Any], blank: Any,
        num_workers: int, device: Device) -> TimmLoader:
    dataset = _create_timm_dataset(dataset, recipe, encode)
    streamed = isinstance(dataset, torch.utils.data.IterableDataset)
    if streamed and device.is_distributed:  # fewer workers leave fewer ragged ends, as in timm's train.py
        num_workers = min(2, num_workers)
    loader = create_loader(
        dataset, is_training=False, batch_size=recipe.validation_batch_size or recipe.batch_size,
        interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'], num_workers=num_workers, **_shared(data_config, recipe.pin_mem, device))
    dataset.transform = create_transform_for_timm(recipe, data_config, is_training=False)
    own = None if streamed else -((len(dataset) - device.rank) // -device.world_size)
    return TimmLoader(loader, own, blank)


def create_transform_for_timm(recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> Any:
    """timm's transform, or one that does what the recipe wants as in the authors' release."""
    if 'tf' in (recipe.preprocessing, recipe.randaugment):
        return Seeded(create_transform(recipe, data_config, is_training))
    return OfLimitedLength(create_timm_transform(recipe, data_config, is_training))


class Seeded:
    """A transform of ours for timm's datasets: a PIL image -> (C, H, W) uint8, seeded by torch's random numbers.

    Workers are then seeded as they are for any other transform.
    """

    def __init__(self, transform: Transform):
        self.transform = transform

    def __repr__(self) -> str:
        return repr(self.transform)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor(self.transform(image, int(torch.randint(2**63 - 1, ())))).permute(2, 0, 1)


class PilDataset:
    """`samples` as a map-style dataset of PIL images in the manner of timm's, which passes over bad ones."""

    def __init__(self, samples: Samples, mode: str = 'RGB', limits: Limits = DEFAULT_LIMITS):
        self.samples, self.mode, self.limits = samples, mode, limits
        self.transform: Any = None
        self.target_transform: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """The image at `index`, or the next good one. Raises UserError after `MAX_BAD_IN_A_ROW` bad ones."""
        for number in range(index, index + MAX_BAD_IN_A_ROW):
            try:
                source, target = self.samples.read(number % len(self))
                with self.limits.in_time(), pillow_deciding():
                    image = source if isinstance(source, Image.Image) else open_with_pillow(source, self.limits)
                    image = image.convert(self.mode)
                break
            except (BadImage, *READ_ERRORS) as error:
                problem = f'{self.samples.name(number % len(self))}: {why_unreadable(error)}'
                _logger.warning(f'Skipped sample (index {number % len(self)}). {problem}')
        else:
            raise UserError(f'{MAX_BAD_IN_A_ROW} bad images in a row, the last is {problem}; '
                            'tools/scan_dataset.py lists them all')
        return (self.transform(image) if self.transform else image,
                self.target_transform(target) if self.target_transform else target)


def _create_timm_dataset(dataset: Any, recipe: Recipe, encode: Callable[[Any], Any]) -> Any:
    if isinstance(dataset, Samples):
        dataset = PilDataset(dataset, recipe.image_mode, create_limits(recipe))
    dataset.target_transform = encode
    return dataset


def _shared(data_config: dict[str, Any], pin_memory: bool, device: Device) -> dict[str, Any]:
    return dict(
        input_size=data_config['input_size'], mean=data_config['mean'], std=data_config['std'],
        pin_memory=pin_memory, device=device.torch_device, distributed=device.is_distributed)
