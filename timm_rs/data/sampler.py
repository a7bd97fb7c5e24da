"""Which images make up an epoch, in which order and with which random seeds: a pure function of (seed, epoch).

Batches are lists of tickets. Neither data workers nor processes have a say in what is drawn, so their number changes
nothing, and a run can go on at any place of an epoch.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from timm_rs.data.samples import Samples
from timm_rs.errors import UserError

PADDING = -1  # the sample of a ticket that only fills a batch


class Ticket(NamedTuple):
    """An order for one image: the index of the sample, and the seed of everything random about it."""

    sample: int
    seed: int = 0


class TrainBatches:
    """Shuffled full batches. The epoch's global order is cut into global batches, of which each process has its part.

    `repeats` of an image (repeated augmentation) stand next to each other, and so go to different processes; the
    epoch keeps its length. Raises UserError for less than one batch for each process.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
                 repeats: float = 0):
        self.samples, self.batch_size, self.seed, self.repeats = samples, batch_size, seed, repeats
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)
        if not len(self):
            raise UserError(f'the training set has {len(samples)} images, fewer than one batch of {batch_size} in '
                            f'each of {world_size} process(es); lower --batch-size')

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
        return (len(self.samples) - self.start) // self.step

    def __iter__(self) -> Iterator[list[Ticket]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = self.samples.epoch_order(rng)
        if self.repeats > 1:
            order = order[(np.arange(len(order)) / self.repeats).astype(int)]
        seeds = rng.integers(2**63, size=len(order))
        for number in range(len(self)):
            begin = self.place(number)[-1]
            mine = slice(begin + self.rank, begin + self.step, self.world_size)
            yield list(map(Ticket, order[mine].tolist(), seeds[mine].tolist()))


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
