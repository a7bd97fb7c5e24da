"""Which images make up an epoch, in which order and with which random seeds: a pure function of (seed, epoch).

Batches are lists of tickets. Neither data workers nor processes have a say in what is drawn, so their number changes
nothing, and a run can go on at any place of an epoch.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from timm_rs.data.balance import balanced_order
from timm_rs.data.mixture import Mixture
from timm_rs.data.samples import Order, Samples
from timm_rs.errors import UserError

PADDING = -1  # the sample of a ticket that only fills a batch
POOL = 2**32 - 1  # in seeds, where an epoch's number would stand


class Ticket(NamedTuple):
    """An order for one image: the index of the sample, and the seed of everything random about it."""

    sample: int
    seed: int = 0


class TrainBatches:
    """Shuffled full batches. The epoch's global order is cut into global batches, of which each process has its part.

    `repeats` of an image (repeated augmentation) stand next to each other, and so go to different processes; the
    epoch keeps its length, also where `labels` (images,) are given, by which each class comes equally often. Raises
    UserError for less than one batch for each process.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
                 repeats: float = 0, labels: npt.NDArray[np.int64] | None = None):
        self.samples, self.batch_size, self.seed, self.repeats = samples, batch_size, seed, repeats
        self.labels = labels
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)
        if not len(self):
            raise UserError(f'the training set has {samples.epoch_length} images, fewer than one batch of {batch_size} '
                            f'in each of {world_size} process(es); lower --batch-size')

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Draw the epoch numbered `epoch` next, without its first `start` images (of all processes together)."""
        self.epoch, self.start = epoch, start

    @property
    def step(self) -> int:
        """Images in the batches of all processes together."""
        return self.batch_size * self.world_size

    def place(self, number: int) -> tuple[int, int, int]:
        """Seed, epoch, and the image at which batch `number`, counted from the start given, begins."""
        return self.seed, self.epoch, self.start + number * self.step

    def __len__(self) -> int:
        return (self.samples.epoch_length - self.start) // self.step

    def __iter__(self) -> Iterator[list[Ticket]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = self.samples.epoch_order(rng) if self.labels is None else balanced_order(self.labels, rng)
        if self.repeats > 1:
            order = order[(np.arange(len(order)) / self.repeats).astype(int)]
        seeds = rng.integers(2**63, size=len(order))
        for number in range(len(self)):
            begin = self.place(number)[-1]
            mine = slice(begin + self.rank, begin + self.step, self.world_size)
            yield list(map(Ticket, order[mine].tolist(), seeds[mine].tolist()))


class MixedBatches(TrainBatches):
    """Batches of labelled and pseudo-labelled images, as many of the latter for each labelled one as the mixture says.

    An epoch is one pass over the labelled images, while the pool goes on from epoch to epoch. Which images make up a
    global batch does not depend on the number of processes; in each process, and in every group of 1 + ratio images of
    its batch, the kinds are mixed alike. `batch_size` is a multiple of 1 + ratio.
    """

    samples: Mixture

    def __init__(self, samples: Mixture, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.group = 1 + samples.ratio
        self.pool_order = PoolOrder(len(samples.entries), seed)
        super().__init__(samples, batch_size, seed, rank, world_size)

    def __iter__(self) -> Iterator[list[Ticket]]:
        ratio, labelled = self.samples.ratio, len(self.samples.labelled)
        rng = np.random.default_rng((self.seed, self.epoch))
        order = self.samples.labelled.epoch_order(rng)
        seeds = rng.integers(2**63, size=self.samples.epoch_length)
        per_epoch = self.samples.epoch_length // self.step * (self.step // self.group) * ratio
        is_labelled = np.arange(self.step) // self.world_size % self.group == 0
        for number in range(len(self)):
            begin = self.place(number)[-1]
            first, count = begin // self.group, self.step // self.group
            drawn = np.empty(self.step, np.int64)
            drawn[is_labelled] = order[first:first + count]
            drawn[~is_labelled] = labelled + self.pool_order(
                self.epoch * per_epoch + first * ratio, count * ratio)
            seed = np.empty(self.step, np.int64)
            seed[is_labelled] = seeds[first:first + count]
            seed[~is_labelled] = seeds[labelled + first * ratio:labelled + (first + count) * ratio]
            mine = slice(self.rank, None, self.world_size)
            yield list(map(Ticket, drawn[mine].tolist(), seed[mine].tolist()))


class PoolOrder:
    """An endless stream of the indices below `size`: each pass has every index once, in an order of its own.

    Blocks of neighbours are shuffled, and then the entries of two blocks that follow each other, so that shards are
    read nearly in sequence, and no more than two blocks are ever drawn at a time.
    """

    def __init__(self, size: int, seed: int, block: int = 65_536):
        self.size, self.seed, self.block = size, seed, block
        self.window: tuple[tuple[int, int], Order] = (-1, -1), np.empty(0, np.int64)

    def __call__(self, begin: int, count: int) -> Order:
        """The `count` indices from place `begin` of the stream on, (count,)."""
        parts = []
        while count:
            number, place = divmod(begin, self.size)
            offset, window = self._window(number, place)
            part = window[place - offset:place - offset + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _window(self, number: int, place: int) -> tuple[int, Order]:
        """The two blocks around `place` of pass `number`, and where they begin."""
        blocks = np.random.default_rng((self.seed, POOL, number)).permutation(-(-self.size // self.block))
        lengths = np.minimum(self.block, self.size - blocks * self.block)
        ends = np.cumsum(lengths)
        pair = int(np.searchsorted(ends, place, 'right')) // 2
        if self.window[0] != (number, pair):
            both = [np.arange(block * self.block, block * self.block + length)
                    for block, length in zip(*(values[2 * pair:2 * pair + 2] for values in (blocks, lengths)),
                                             strict=True)]
            rng = np.random.default_rng((self.seed, POOL, number, pair))
            self.window = (number, pair), rng.permutation(np.concatenate(both))
        return int(ends[2 * pair] - lengths[2 * pair]), self.window[1]


class EvalBatches:
    """Every image once, in the dataset's order; padding evens out the shares of processes.

    The last batch is short, or with `full_batches` padded as well.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1,
                 full_batches: bool = False):
        share = math.ceil(num_samples / world_size)
        if full_batches:
            share = math.ceil(share / batch_size) * batch_size
        mine = range(rank, num_samples, world_size)
        self.tickets = [Ticket(index) for index in mine] + [Ticket(PADDING)] * (share - len(mine))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.tickets) / self.batch_size)

    def __iter__(self) -> Iterator[list[Ticket]]:
        for begin in range(0, len(self.tickets), self.batch_size):
            yield self.tickets[begin:begin + self.batch_size]
