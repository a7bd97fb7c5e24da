"""timm's own loader (`--loader timm`), and the only one for streamed datasets."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from timm.data import FastCollateMixup, create_loader

from timm_rs.data.bad_samples import Problem
from timm_rs.data.samples import PilDataset, Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import Transform, build_augmentation, create_timm_transform, create_transform
from timm_rs.transforms.crops import OfLimitedLength


class TimmLoader:
    """Batches of timm's loader in the manner of ours. timm skips bad files by itself, so there are never problems."""

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
    dataset = _for_timm(dataset, recipe.image_mode, encode)
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
    dataset = _for_timm(dataset, recipe.image_mode, encode)
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


def _for_timm(dataset: Any, mode: str, encode: Callable[[Any], Any]) -> Any:
    if isinstance(dataset, Samples):
        dataset = getattr(dataset, 'dataset', None) or PilDataset(dataset, mode)
    dataset.target_transform = encode
    return dataset


def _shared(data_config: dict[str, Any], pin_memory: bool, device: Device) -> dict[str, Any]:
    return dict(
        input_size=data_config['input_size'], mean=data_config['mean'], std=data_config['std'],
        pin_memory=pin_memory, device=device.torch_device, distributed=device.is_distributed)
