"""Verdicts at equal cost."""
import numpy as np
import pytest
from test_results import result

from timm_rs.errors import UserError
from timm_rs.study.results import points_of
from timm_rs.study.verdict import LOSS_GAP, compare

SEED_NOISE = 0.3  # percentage points from seed to seed, as small networks have


def law(cost):
    return 100 - (14.8 * cost ** -0.45 + 13.9)


def drawn(name, costs, seeds, rng=None, ahead=0.0, images=10_000, shared=0.5, **changes):
    """Runs of points on a known law; `shared` of the images' noise is common to all seeds of a point."""
    rng = rng or np.random.default_rng(0)
    runs = []
    for cost in costs:
        top1 = law(cost) + ahead
        sigma = np.sqrt(top1 * (100 - top1) / images)
        of_point = rng.normal(0, sigma * shared ** 0.5)
        runs += [result(name, cost, top1 + of_point + rng.normal(0, SEED_NOISE) + rng.normal(
            0, sigma * (1 - shared) ** 0.5), seed, images=images, **changes) for seed in range(seeds)]
    return points_of(runs)


@pytest.mark.parametrize('shared', [0, 0.5, 0.8])
@pytest.mark.parametrize('seeds', [3, 5])
@pytest.mark.parametrize('costs', [([4, 8, 16, 32], [4, 14, 50]), ([10], [10.1])])
def test_equal_series_have_at_most_one_false_verdict_in_twenty(seeds, shared, costs):
    rng = np.random.default_rng(0)
    verdicts = [compare(*(drawn(name, some, seeds, rng, shared=shared) for name, some in zip('ab', costs, strict=True)))
                for _ in range(200)]
    assert sum(verdict.decided for verdict in verdicts) <= 200 * 0.05


def test_the_worst_noise_of_images_gives_the_false_verdicts_of_two_sigma():
    rng = np.random.default_rng(0)
    verdicts = [compare(*(drawn(name, [10, 20], 3, rng, shared=1) for name in 'ab')) for _ in range(400)]
    assert 0.01 < np.mean([verdict.decided for verdict in verdicts]) < 0.046 + 2 * (0.046 * 0.954 / 400) ** 0.5


@pytest.mark.parametrize(('seeds', 'ahead'), [(3, 2), (5, -1.5)])
def test_true_differences_are_found(seeds, ahead):
    rng = np.random.default_rng(1)
    verdicts = [compare(drawn('a', [4, 8, 16, 32], seeds, rng, ahead), drawn('b', [5, 10, 20, 40], seeds, rng))
                for _ in range(50)]
    assert sum(verdict.decided and verdict.difference * ahead > 0 for verdict in verdicts) >= 48
    assert np.mean([verdict.difference for verdict in verdicts]) == pytest.approx(ahead, abs=0.15)
    assert np.mean([abs(verdict.difference - ahead) <= verdict.margin for verdict in verdicts]) >= 0.95


def plain(name, *rows, **changes):
    """Points without noise but for what is given: (cost, top-1 of each seed)."""
    return points_of([result(name, cost, top1, seed, **changes) for cost, *seeds in rows
                      for seed, top1 in enumerate(seeds)])


def test_costs_are_interpolated_in_their_logarithm_where_both_were_measured():
    one = plain('a', (1, 50), (4, 60), (16, 70))
    two = plain('b', (2, 50), (8, 60), (32, 64))
    found = compare(one, two)
    assert (found.least_cost, found.most_cost) == pytest.approx((2, 16))
    # at 2, 4, 8 and 16
    assert found.difference == pytest.approx(np.mean([55 - 50, 60 - 55, 65 - 60, 70 - 62]))
    assert compare(two, one).difference == pytest.approx(-found.difference)


@pytest.mark.parametrize(('costs', 'is_compared'), [((4, 16), True), ((4, 17), False), ((1, 8.1), True)])
def test_far_neighbours_are_not_interpolated_between(costs, is_compared):
    found = compare(plain('a', *((cost, 70) for cost in costs)), plain('b', (8, 70)))
    assert is_compared != ('too far apart' in str(found))


def test_points_of_equal_cost_in_a_series_are_averaged():
    one = plain('a', (2, 60), axes={'depth': '1'}) + plain('a', (2, 64), axes={'depth': '2'})
    assert compare(one, plain('b', (2, 60))).difference == pytest.approx(2)


@pytest.mark.parametrize('cost', ['gmacs', 'activations_m', 'params_m', 'step_ms'])
def test_every_cost_can_be_what_is_equal(cost):
    costs = dict(activations_m=8.0, params_m=8.0, step_ms=8.0)
    one, two = plain('a', (8, 70), **costs), plain('b', (8, 69), **costs | {cost: 8.1})
    assert compare(one, two, cost).difference == pytest.approx(1)
    assert 'do not overlap' in compare(one, plain('b', (8, 69), **costs | {cost: 9.0}), cost)
    with pytest.raises(UserError, match='has no step_ms'):
        compare(plain('a', (8, 70)), two, 'step_ms')


def test_series_that_share_the_base_only_are_not_compared_there():
    base, deep, wide = plain('a+b', (4, 70.0, 70.4)), plain('a', (8, 74, 74.2)), plain('b', (8, 72, 72.4))
    found = compare(base + deep, base + wide)
    assert (found.difference, found.least_cost) == (pytest.approx(1.9), pytest.approx(8))
    assert 'do not overlap beyond the points of both' in compare(base + deep, base + plain('b', (2, 60)))


def test_the_base_brings_no_noise_where_it_cancels():
    base, deep, wide = plain('a+b', (4, 70), images=10), plain('a', (8, 74, 74)), plain('b', (8, 72, 72))
    found = compare(base + deep, base + wide)
    assert found == compare(deep, wide) and found.seeds == 2
    assert found.margin == found.least_margin  # seeds that do not differ bring no noise


@pytest.mark.parametrize(('ahead', 'seeds', 'more'), [
    (5.0, 1, 2),  # nothing is known of the noise: three seeds are the least
    (5.0, 2, 1), (5.0, 3, 0), (1.5, 3, 3), (0.9, 3, None), (0.0, 3, None)])
def test_seeds_that_are_missing_are_counted(ahead, seeds, more):
    noise = np.array([0.9, -0.9, 0])[:seeds]
    first, second = ([*noise + 70 + ahead], [*noise + 70])
    found = compare(plain('a', (1, *first), images=20_000), plain('b', (1, *second), images=20_000))
    assert (found.more_seeds, found.decided, found.seeds) == (more, more == 0, seeds)
    assert (found.margin is None) == (seeds == 1)


def test_more_seeds_than_were_said_to_be_needed_are_not():
    noise = np.array([0.9, -0.9, 0])
    few = compare(plain('a', (1, *noise + 71.5)), plain('b', (1, *noise + 70)))
    more = np.resize(noise, few.seeds + few.more_seeds)
    assert compare(plain('a', (1, *more + 71.5)), plain('b', (1, *more + 70))).decided


def test_what_the_images_leave_open_no_seed_decides():
    noise = np.array([0.1, -0.1, 0])
    found = compare(*(plain(name, (1, *noise + top1), images=1000) for name, top1 in (('a', 71), ('b', 70))))
    assert found.more_seeds is None and abs(found.difference) < found.least_margin


def test_margins_shrink_with_seeds_and_images():
    def margin(seeds, images):
        return compare(*(drawn(name, [4, 8], seeds, images=images, shared=0) for name in 'ab')).margin
    assert margin(3, 10_000) > margin(12, 10_000) > margin(12, 100_000)


def test_over_fitting_is_compared_like_accuracy():
    def runs(name, gap):
        return points_of([result(name, 8, 70, seed, eval_loss=1 + gap + seed / 50) for seed in range(3)])
    found = compare(runs('a', 0.2), runs('b', 0.5), measure=LOSS_GAP)
    assert found.difference == pytest.approx(-0.3) and found.decided
    assert not compare(runs('a', 0.2), runs('b', 0.21), measure=LOSS_GAP).decided
