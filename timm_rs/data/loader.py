"""Batches: uint8 images from data workers through shared memory to the device, normalised (and mixed) there."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from timm.data import Mixup
from timm.data.loader import PrefetchLoader
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, Dataset

from timm_rs.data.bad_samples import MAX_BAD_IN_A_ROW, READ_ERRORS, Problem, unlisted, why_unreadable
from timm_rs.data.mixing import MaskedErasing, MaskedMixup, SoftMixup
from timm_rs.data.mixture import Mixture, SparseTargets, dense_targets
from timm_rs.data.sampler import PADDING, EvalBatches, MixedBatches, Ticket, TrainBatches
from timm_rs.data.samples import Samples
from timm_rs.data.timm_loader import create_timm_eval_loader, create_timm_train_loader
from timm_rs.data.workers import end_with, num_cores
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import BadImage
from timm_rs.transforms.sample import SampleTransform


class Targets(Protocol):
    """What the loaders ask of a task; see `tasks.task.Task`."""

    @property
    def blank(self) -> Any: ...
    @property
    def is_of_tags(self) -> bool: ...
    def encoder(self, num_outputs: int) -> Callable[[Any], Any]: ...
    def eval_config(self, data_config: dict[str, Any]) -> dict[str, Any]: ...
    def shape(self, data_config: dict[str, Any], is_training: bool) -> tuple[int, ...]: ...
    def create_transform(self, recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> SampleTransform: ...
    def create_mixing(self, recipe: Recipe, num_outputs: int) -> dict[str, Any] | None: ...
    def blank_of(self, transform: Any) -> Any: ...


class Batches(Protocol):
    """Batches of normalised images (N, C, H, W), float32, and targets, on the device: `Loader` or `TimmLoader`.

    Clips are (N, C, T, H, W). Of samples with several views there are as many images, one after the other.
    """

    is_exact: bool  # whether they are the same again, and as many in every process, from any image of an epoch on

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]: ...

    def host_batches(self) -> Iterator[tuple[torch.Tensor, Any]]:
        """The batches as they leave the host: uint8 images (N, C, H, W) and targets."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Give the epoch numbered `epoch` next, without its first `start` images (of all processes together)."""

    def stop_mixing(self) -> None:
        """Mix no more images."""

    def take_problems(self) -> list[Problem]:
        """The bad samples met since the last call; one may be met again."""


class TransformedSamples(Dataset[tuple[Any, Any, list[Problem]]]):
    """Tickets -> (image (H, W, C) uint8, or of another shape as the task has it, target, problems met on the way).

    A bad sample is replaced by the next good one when `replace` is on (training). Otherwise it becomes an image of
    zeros with a blank target, which evaluation does not count. Raises UserError for labels that `encode` refuses and
    where nothing is good.
    """

    def __init__(self, samples: Samples, transform: SampleTransform, encode: Callable[[Any], Any],
                 blank: tuple[tuple[int, ...], Any], replace: bool):
        """`blank` is the shape of an image, and the target that does not count."""
        self.samples, self.transform, self.encode, self.replace = samples, transform, encode, replace
        self.blank = blank

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, ticket: Ticket) -> tuple[Any, Any, list[Problem]]:
        index = ticket.sample
        problems: list[Problem] = []
        while index != PADDING:
            try:
                source, label = self.samples.open(index)
                return *self.transform.with_target(source, self.encode(label), ticket.seed), problems
            except BadImage as error:
                problems.append((self.samples.name(index), str(error)))
            except READ_ERRORS as error:
                problems.append((self.samples.name(index), why_unreadable(error)))
            if not self.replace:
                break
            if len(problems) == MAX_BAD_IN_A_ROW:
                raise UserError(f'{len(problems)} bad images in a row: {problems[0][0]} ({problems[0][1]}), …; '
                                'tools/scan_dataset.py lists them all')
            index = self.samples.following(index)
        shape, target = self.blank
        return np.zeros(shape, np.uint8), target, problems


class Loader:
    """Normalised float32 images (N, C, H, W) in channels-last layout, or clips (N, C, T, H, W), and the task's targets,
    on the device.

    When images are mixed, targets are soft: (N, classes).
    """

    is_exact = True

    def __init__(self, dataset: TransformedSamples, batches: TrainBatches | EvalBatches | Iterable[list[Ticket]],
                 data_config: dict[str, Any], num_workers: int, device: Device,
                 erase: RandomErasing | MaskedErasing | None = None,
                 mix: Mixup | MaskedMixup | SoftMixup | None = None,
                 dense: Callable[[torch.Tensor], torch.Tensor] | None = None):
        """`dense` makes, on the device, what the model learns of targets that are shorter on the way."""
        self.batches, self.device, self.erase, self.mix, self.dense = batches, device, erase, mix, dense
        self.dataset = dataset
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
        if len(dataset.blank[0]) > 3:  # clips
            shape = 1, channels, 1, 1, 1
            self.prefetch.mean, self.prefetch.std = self.prefetch.mean.view(shape), self.prefetch.std.view(shape)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, targets in self._normalized():
            # Not ahead of time: what is random here comes from the generators that a checkpoint keeps.
            if self.erase is not None:
                images = self.erase(images)
            if self.dense is not None:
                targets = self.dense(targets)
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
        self.batches.set_epoch(epoch, start)  # type: ignore[union-attr]

    def stop_mixing(self) -> None:
        if self.mix is not None:
            self.mix.mixup_enabled = False

    def take_problems(self) -> list[Problem]:
        problems, self.problems = self.problems, []
        return problems

    def host_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, targets, problems in self.loader:
            self.problems += problems
            yield (images.flatten(0, 1) if images.ndim == 6 else images).movedim(-1, 1), targets


def collate(items: list[tuple[Any, Any, list[Problem]]]) -> tuple[torch.Tensor, torch.Tensor, list[Problem]]:
    """Images (N, ..., H, W, C) uint8, in shared memory when a worker collates; targets (N, ...); all problems."""
    images, targets, problems = zip(*items, strict=True)
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8)
    if torch.utils.data.get_worker_info() is not None:
        batch.share_memory_()
    np.stack(images, out=batch.numpy())
    stacked = torch.stack(targets) if isinstance(targets[0], torch.Tensor) else torch.tensor(targets)
    return batch, stacked, [problem for some in problems for problem in some]


def create_train_loader(
        dataset: Any, recipe: Recipe, data_config: dict[str, Any], task: Targets, num_outputs: int, device: Device
) -> Batches:
    """Batches of augmented images and targets, mixed where the recipe says so.

    Raises UserError for augmentation settings that timm cannot read or the release does not have, and for a
    dataset smaller than one batch.
    """
    mixing = task.create_mixing(recipe, num_outputs)
    if mixing and (shares := mixing.get('cutmix_minmax')):
        for side in data_config['input_size'][1:]:
            if int(side * shares[0]) >= int(side * shares[1]):
                raise UserError(f'cutmix_minmax {shares} leaves no size to draw at {side} px: give a smaller share and '
                                'a larger one')
    if recipe.aug_repeats and not device.is_distributed:
        raise UserError('aug_repeats works with several processes only; start with torchrun or drop it')
    encode, workers = task.encoder(num_outputs), num_workers(recipe.workers)
    if _takes_timm_loader(dataset, recipe.loader, device):
        if recipe.balanced_sampling:
            raise UserError('balanced_sampling needs the loader "fast": leave out --loader timm, and pack streamed '
                            'data as shards (tools/pack_dataset.py)')
        return create_timm_train_loader(dataset, recipe, data_config, mixing, encode, workers, device)
    erase: RandomErasing | MaskedErasing | None = None
    if recipe.reprob:
        settings: dict[str, Any] = dict(probability=recipe.reprob, mode=recipe.remode, max_count=recipe.recount)
        erase = MaskedErasing(device, **settings) if device.is_lazy else RandomErasing(
            **settings, device=device.torch_device)
    mix: Mixup | MaskedMixup | SoftMixup | None = None
    if mixing:
        mix = MaskedMixup(device, **mixing) if device.is_lazy else (
            SoftMixup if isinstance(dataset, Mixture) or task.is_of_tags else Mixup)(**mixing)
    batch_size, dense = recipe.batch_size * device.num_local_devices, None
    if isinstance(dataset, Mixture):
        if recipe.aug_repeats:
            raise UserError('aug_repeats does not go with pseudo labels: a batch has each image once')
        _check_divides(1 + dataset.ratio, batch_size=recipe.batch_size, bn_group_size=recipe.bn_group_size or 0)
        encode = SparseTargets(
            encode, num_outputs, dataset.top_k, recipe.target_smoothing, recipe.pseudo_temperature, recipe.pseudo_hard)
        dense = partial(dense_targets, num_classes=num_outputs)
        batches: TrainBatches = MixedBatches(dataset, batch_size, recipe.seed, device.rank, device.world_size)
    else:
        batches = TrainBatches(
            dataset, batch_size, recipe.seed, device.rank, device.world_size, recipe.aug_repeats,
            np.asarray(dataset.targets()) if recipe.balanced_sampling else None)
    loader = Loader(
        _create_samples(dataset, recipe, data_config, task, encode, is_training=True),
        batches, data_config, workers, device, erase, mix, dense)
    if device.is_primary:
        loader.problems = unlisted(dataset)
    return loader


def _check_divides(group: int, **sizes: int) -> None:
    """Raise UserError that names the next sizes that fit, where one of `sizes` is no multiple of `group` images."""
    for name, size in sizes.items():
        if size % group:
            fitting = ' or '.join(str(fit) for fit in (size // group * group, -(-size // group) * group) if fit)
            raise UserError(f'{name} {size} is no multiple of {group}, one labelled image and {group - 1} with pseudo '
                            f'labels: give {fitting}, or another --pseudo-ratio')


def create_eval_loader(
        dataset: Any, recipe: Recipe, data_config: dict[str, Any], task: Targets, num_outputs: int, device: Device
) -> Batches:
    """Batches of centre crops, or of the task's views, and targets, in the dataset's order; the last is the rest.

    A blank target marks what does not count: padding and bad samples. Raises UserError for settings that the release
    does not have.
    """
    data_config = task.eval_config(data_config)
    encode, workers = task.encoder(num_outputs), num_workers(recipe.workers)
    if _takes_timm_loader(dataset, recipe.loader, device):
        return create_timm_eval_loader(dataset, recipe, data_config, encode, task.blank, workers, device)
    views = math.prod(task.shape(data_config, is_training=False)[:-4])
    batch_size = max(1, (recipe.validation_batch_size or recipe.batch_size) // views)
    return Loader(
        _create_samples(dataset, recipe, data_config, task, encode, is_training=False),
        EvalBatches(len(dataset), batch_size * device.num_local_devices, device.rank, device.world_size,
                    full_batches=device.is_lazy),
        data_config, workers, device)


def _create_samples(dataset: Any, recipe: Recipe, data_config: dict[str, Any], task: Targets,
                    encode: Callable[[Any], Any], is_training: bool) -> TransformedSamples:
    transform = task.create_transform(recipe, data_config, is_training)
    blank = task.shape(data_config, is_training), task.blank_of(transform)
    return TransformedSamples(dataset, transform, encode, blank, replace=is_training)


def _takes_timm_loader(dataset: Any, wanted: str, device: Device) -> bool:
    is_timms = wanted == 'timm' or not isinstance(dataset, Samples)
    if is_timms and isinstance(dataset, Mixture):
        raise UserError('pseudo labels need the loader "fast": leave out --loader timm')
    if is_timms and device.is_lazy:
        raise UserError('device xla needs batches of one shape, as only the loader "fast" has them: leave out --loader '
                        'timm, and pack streamed data as shards (tools/pack_dataset.py)')
    return is_timms


def num_workers(wanted: int) -> int:
    """`wanted`, but no more than there are cores to run them on (torch warns, and they only wait for each other)."""
    return min(wanted, num_cores())
