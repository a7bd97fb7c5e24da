"""Batches: uint8 images from data workers through shared memory to the device, normalised (and mixed) there."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.data.loader import PrefetchLoader
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, Dataset

from timm_rs.data.bad_samples import READ_ERRORS, Problem, unlisted, why_unreadable
from timm_rs.data.mixing import MaskedErasing, MaskedMixup
from timm_rs.data.sampler import PADDING, EvalBatches, Ticket, TrainBatches
from timm_rs.data.samples import Samples
from timm_rs.data.timm_loader import TimmLoader, create_timm_eval_loader, create_timm_train_loader
from timm_rs.data.workers import end_with, num_cores
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import Transform, create_transform
from timm_rs.transforms.decode import BadImage

MAX_BAD_IN_A_ROW = 100


class LabelCheck:
    """Passes class indices below `num_classes` and refuses all others."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, target: Any) -> Any:
        if isinstance(target, int) and not 0 <= target < self.num_classes:
            raise UserError(f'the data has label {target}, but the model has {self.num_classes} classes '
                            f'(0 to {self.num_classes - 1}); set --num-classes')
        return target


class TransformedSamples(Dataset[tuple[Any, int, list[Problem]]]):
    """Tickets -> (image (H, W, C) uint8, class index, problems met on the way).

    A bad sample is replaced by the next good one when `replace` is on (training). Otherwise it becomes an image of
    zeros with the label -1, which evaluation does not count. Raises UserError for labels out of range and where
    nothing is good.
    """

    def __init__(self, samples: Samples, transform: Transform, blank: tuple[int, int, int], label_check: LabelCheck,
                 replace: bool):
        self.samples, self.transform, self.label_check, self.replace = samples, transform, label_check, replace
        self.blank = blank

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, ticket: Ticket) -> tuple[Any, int, list[Problem]]:
        index = ticket.sample
        problems: list[Problem] = []
        while index != PADDING:
            try:
                source, target = self.samples.read(index)
                return self.transform(source, ticket.seed), int(self.label_check(target)), problems
            except BadImage as error:
                problems.append((self.samples.name(index), str(error)))
            except READ_ERRORS as error:
                problems.append((self.samples.name(index), why_unreadable(error)))
            if not self.replace:
                break
            if len(problems) == MAX_BAD_IN_A_ROW:
                raise UserError(f'{len(problems)} bad images in a row: {problems[0][0]} ({problems[0][1]}), …; '
                                'tools/scan_dataset.py lists them all')
            index = (index + 1) % len(self.samples)
        return np.zeros(self.blank, np.uint8), -1, problems


class Loader:
    """Normalised float32 images (N, C, H, W) in channels-last layout and targets, on the device.

    Targets are class indices (N,), -1 for what does not count, or soft targets (N, classes) when images are mixed.
    """

    is_exact = True  # the same batches again and in every process as many, from any image of an epoch on

    def __init__(self, dataset: TransformedSamples, batches: TrainBatches | EvalBatches, data_config: dict[str, Any],
                 num_workers: int, device: Device, erase: RandomErasing | MaskedErasing | None = None,
                 mix: Mixup | MaskedMixup | None = None):
        self.batches, self.device, self.erase, self.mix = batches, device, erase, mix
        self.problems: list[Problem] = []
        self.loader = DataLoader(
            dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate,  # type: ignore[arg-type]
            pin_memory=device.torch_device.type == 'cuda', persistent_workers=num_workers > 0,
            worker_init_fn=partial(end_with, os.getpid()),
            # Otherwise DataLoader would draw from torch's global generator, which the training loop uses.
            generator=torch.Generator())
        channels = data_config['input_size'][0]
        self.prefetch = PrefetchLoader(
            (), data_config['mean'], data_config['std'], channels,
            torch.device('cpu') if device.is_lazy else device.torch_device)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, targets in self._normalized():
            # Not ahead of time: what is random here comes from the generators that a checkpoint keeps.
            if self.erase is not None:
                images = self.erase(images)
            if self.mix is not None:
                images, targets = self.mix(images, targets)
            yield images, targets

    def _normalized(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if not self.device.is_lazy:
            self.prefetch.loader = self.host_batches()
            yield from self.prefetch
            return
        # timm's prefetching would make the next batch's arithmetic part of this step's graph.
        mean, std = self.device.put(self.prefetch.mean), self.device.put(self.prefetch.std)
        for number, (images, targets) in enumerate(self.host_batches()):
            if isinstance(self.batches, TrainBatches):
                self.device.seed_batch(*self.batches.place(number))
            images, targets = self.device.split(images.permute(0, 2, 3, 1)), self.device.split(targets)
            yield images.permute(0, 3, 1, 2).float().sub(mean).div(std), targets

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Give the epoch numbered `epoch` next, without its first `start` images (of all processes together)."""
        self.batches.set_epoch(epoch, start)  # type: ignore[union-attr]

    def stop_mixing(self) -> None:
        if self.mix is not None:
            self.mix.mixup_enabled = False

    def take_problems(self) -> list[Problem]:
        """The bad samples met since the last call; one may be met again."""
        problems, self.problems = self.problems, []
        return problems

    def host_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches as they leave the host: uint8 images (N, C, H, W) and class indices (N,)."""
        for images, targets, problems in self.loader:
            self.problems += problems
            yield images.permute(0, 3, 1, 2), targets


def collate(items: list[tuple[Any, int, list[Problem]]]) -> tuple[torch.Tensor, torch.Tensor, list[Problem]]:
    """Images (N, H, W, C) uint8, in shared memory when a worker collates; class indices (N,) int64; all problems."""
    images, targets, problems = zip(*items, strict=True)
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8)
    if torch.utils.data.get_worker_info() is not None:
        batch.share_memory_()
    np.stack(images, out=batch.numpy())
    return batch, torch.tensor(targets), [problem for some in problems for problem in some]


def create_train_loader(
        dataset: Any, recipe: Recipe, data_config: dict[str, Any], num_classes: int, device: Device
) -> Loader | TimmLoader:
    """Batches of augmented images (N, C, H, W) and targets: indices (N,), or soft (N, classes) with mixup.

    Raises UserError for augmentation settings that timm cannot read or the release does not have, and for a
    dataset smaller than one batch.
    """
    mixing: dict[str, Any] | None = None
    if recipe.mixes_images:
        if recipe.batch_size % 2:
            raise UserError(f'mixup and cutmix need an even batch_size, got {recipe.batch_size}')
        mixing = dict(
            mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, cutmix_minmax=recipe.cutmix_minmax,
            prob=recipe.mixup_prob, switch_prob=recipe.mixup_switch_prob, mode=recipe.mixup_mode,
            label_smoothing=recipe.smoothing, num_classes=num_classes)
    if recipe.aug_repeats and not device.is_distributed:
        raise UserError('aug_repeats works with several processes only; start with torchrun or drop it')
    label_check, workers = LabelCheck(num_classes), num_workers(recipe)
    if _takes_timm_loader(dataset, recipe, device):
        return create_timm_train_loader(dataset, recipe, data_config, mixing, label_check, workers, device)
    erase: RandomErasing | MaskedErasing | None = None
    if recipe.reprob:
        settings: dict[str, Any] = dict(probability=recipe.reprob, mode=recipe.remode, max_count=recipe.recount)
        erase = MaskedErasing(device, **settings) if device.is_lazy else RandomErasing(
            **settings, device=device.torch_device)
    mix: Mixup | MaskedMixup | None = None
    if mixing:
        mix = MaskedMixup(device, **mixing) if device.is_lazy else Mixup(**mixing)
    channels, *size = data_config['input_size']
    loader = Loader(
        TransformedSamples(dataset, create_transform(recipe, data_config, is_training=True), (*size, channels),
                           label_check, replace=True),
        TrainBatches(dataset, recipe.batch_size * device.num_local_devices, recipe.seed, device.rank,
                     device.world_size, recipe.aug_repeats),
        data_config, workers, device, erase, mix)
    if device.is_primary:
        loader.problems = unlisted(dataset)
    return loader


def create_eval_loader(
        dataset: Any, recipe: Recipe, data_config: dict[str, Any], num_classes: int, device: Device
) -> Loader | TimmLoader:
    """Batches of centre crops (N, C, H, W) and class indices (N,), in the dataset's order; the last is the rest.

    The index -1 marks what does not count: padding and bad samples. Raises UserError for settings that the release
    does not have.
    """
    label_check, workers = LabelCheck(num_classes), num_workers(recipe)
    if _takes_timm_loader(dataset, recipe, device):
        return create_timm_eval_loader(dataset, recipe, data_config, label_check, workers, device)
    channels, *size = data_config['input_size']
    return Loader(
        TransformedSamples(dataset, create_transform(recipe, data_config, is_training=False), (*size, channels),
                           label_check, replace=False),
        EvalBatches(len(dataset), (recipe.validation_batch_size or recipe.batch_size) * device.num_local_devices,
                    device.rank, device.world_size, full_batches=device.is_lazy),
        data_config, workers, device)


def _takes_timm_loader(dataset: Any, recipe: Recipe, device: Device) -> bool:
    is_timms = recipe.loader == 'timm' or not isinstance(dataset, Samples)
    if is_timms and device.is_lazy:
        raise UserError('device xla needs batches of one shape, as only the loader "fast" has them: leave out --loader '
                        'timm, and pack streamed data as shards (tools/pack_dataset.py)')
    return is_timms


def num_workers(recipe: Recipe) -> int:
    """`workers`, but no more than there are cores to run them on (torch warns, and they only wait for each other)."""
    return min(recipe.workers, num_cores())
