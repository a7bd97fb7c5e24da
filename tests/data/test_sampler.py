import time
from collections import Counter

import numpy as np
import pytest

from timm_rs.data.mixture import Mixture
from timm_rs.data.sampler import MixedBatches, PoolOrder, TrainBatches
from timm_rs.data.samples import Samples


class Numbers(Samples):
    classes = {}

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def name(self, index):
        return str(index)


def mixture(labelled, pool, ratio):
    return Mixture(Numbers(labelled), Numbers(pool), np.arange(pool), np.zeros((pool, 1), np.uint16),
                   np.ones((pool, 1), np.float16), ratio)


def drawn(samples, global_batch, world_size, epoch=0, start=0, seed=0):
    """Batches of all processes: a list of lists, by process."""
    ranks = [MixedBatches(samples, global_batch // world_size, seed, rank, world_size) for rank in range(world_size)]
    for rank in ranks:
        rank.set_epoch(epoch, start)
    return list(zip(*ranks, strict=True))


@pytest.mark.parametrize('ratio', [1, 3, 7])
@pytest.mark.parametrize('world_size', [1, 2, 4, 8])
def test_every_process_and_group_has_the_same_mixture_of_the_same_images(world_size, ratio):
    samples = mixture(130, 50, ratio)
    batches = drawn(samples, 64, world_size)
    alone = drawn(samples, 64, 1)
    assert len(batches) == len(alone) == 130 * (1 + ratio) // 64
    for parts, (whole,) in zip(batches, alone, strict=True):
        assert Counter(ticket for part in parts for ticket in part) == Counter(whole)
        for part in parts:
            kinds = np.array([ticket.sample < 130 for ticket in part]).reshape(-1, 1 + ratio)
            assert (kinds.sum(1) == 1).all()


def test_an_epoch_is_one_pass_over_the_labelled_images_and_the_pool_goes_on():
    samples = mixture(64, 50, 3)
    used = Counter()
    for epoch in range(5):
        tickets = [ticket for (batch,) in drawn(samples, 32, 1, epoch) for ticket in batch]
        labelled = [ticket.sample for ticket in tickets if ticket.sample < 64]
        assert sorted(labelled) == list(range(64))
        assert len({ticket.seed for ticket in tickets}) == len(tickets)
        used.update(ticket.sample - 64 for ticket in tickets if ticket.sample >= 64)
    assert sorted(used) == list(range(50))
    assert set(used.values()) == {5 * 64 * 3 // 50, 5 * 64 * 3 // 50 + 1}


@pytest.mark.parametrize('world_size', [1, 4])
def test_going_on_within_an_epoch_gives_the_rest_of_it(world_size):
    samples = mixture(130, 70, 3)
    whole, rest = drawn(samples, 32, 1, epoch=2), drawn(samples, 32, world_size, epoch=2, start=5 * 32)
    assert len(rest) == len(whole) - 5
    for (batch,), parts in zip(whole[5:], rest, strict=True):
        assert Counter(batch) == Counter(ticket for part in parts for ticket in part)


@pytest.mark.parametrize(('size', 'block'), [(1, 4), (4, 4), (9, 4), (50, 4), (1000, 64)])
def test_a_pass_over_the_pool_has_every_image_once_from_any_place(size, block):
    order = PoolOrder(size, 0, block)
    stream = order(0, 5 * size)
    passes = stream.reshape(5, size)
    assert (np.sort(passes, 1) == np.arange(size)).all()
    if size > 8:
        assert not (passes[0] == passes[1]).all() and not (passes[0] == np.arange(size)).all()
    for begin in (0, size // 2, size - 1, size + 3):
        assert PoolOrder(size, 0, block)(begin, size).tolist() == stream[begin:begin + size].tolist()


def test_ten_million_images_are_drawn_from_at_once():
    start = time.process_time()
    order = PoolOrder(10_000_000, 0)
    assert len(order(9_999_000, 4096)) == 4096
    assert time.process_time() - start < 1
    assert order.window[1].nbytes < 2**21


def test_a_bad_image_is_replaced_by_one_of_its_kind():
    samples = mixture(5, 3, 1)
    assert [samples.following(index) for index in range(8)] == [1, 2, 3, 4, 0, 6, 7, 5]


@pytest.mark.parametrize(('world_size', 'start'), [(1, 0), (2, 0), (4, 24), (8, 8)])
def test_any_number_of_processes_sees_the_same_balanced_epoch_from_any_image_on(world_size, start):
    labels = np.repeat([0, 1, 2], [60, 30, 6])

    def tickets(rank, of, batch_size, begin):
        batches = TrainBatches(Numbers(96), batch_size, 5, rank, of, labels=labels)
        batches.set_epoch(3, begin)
        return [batch for batch in batches]
    whole = [ticket for batch in tickets(0, 1, 8, 0) for ticket in batch]
    assert set(Counter(labels[ticket.sample] for ticket in whole).values()) == {32}
    shares = [tickets(rank, world_size, 8 // world_size, start) for rank in range(world_size)]
    together = [ticket for batches in zip(*shares, strict=True) for group in zip(*batches, strict=True)
                for ticket in group]
    assert together == whole[start:] and len({ticket.seed for ticket in whole}) == 96
