"""Which of two series is better at equal cost, and whether that can be told from noise."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from timm_rs.errors import needing
from timm_rs.study.results import Point, Result, seed_variance

SAME_COST = 0.02  # costs that differ by no more count as equal
FAR = math.log(4)  # between two neighbours so far apart, the middle is the least certain that is interpolated
MIN_SEEDS = 3
MAX_MORE_SEEDS = 50
TWO_SIGMA = 0.9772498680518208  # a normal variable is below its mean + 2 sigma with this probability


@dataclass(frozen=True)
class Measure:
    """What is compared.

    Attributes:
        of: a run's value.
        variance: of a point's value, what more seeds do not reduce.
    """

    of: Callable[[Result], float]
    variance: Callable[[Point], float]


TOP1 = Measure(lambda result: result.eval_top1, lambda point: point.binomial ** 2)
# The paper's reason for a verdict is over-fitting. Augmentation and label smoothing raise the training loss of all
# points alike, so differences of this gap mean something, and its sign does not.
LOSS_GAP = Measure(lambda result: result.eval_loss - result.train_loss, lambda point: 0.0)


@dataclass(frozen=True)
class Comparison:
    """Two series at equal cost.

    Attributes:
        difference: of the first from the second: the mean over the costs compared at.
        margin: how far that may be off (2 sigma); None with one seed everywhere.
        least_cost, most_cost: where they were compared.
        seeds: the least number of seeds of a point that counted.
        decided: whether the difference exceeds the margin, with seeds enough to know the margin.
        more_seeds: how many further ones of every point would decide, if difference and spread stayed; 0 where it is
            decided, None where `MAX_MORE_SEEDS` would not.
        least_margin: the margin that would be left with ever more seeds: that of the evaluation images.
    """

    difference: float
    margin: float | None
    least_cost: float
    most_cost: float
    seeds: int
    decided: bool
    more_seeds: int | None
    least_margin: float


def compare(first: Sequence[Point], second: Sequence[Point], cost: str = 'gmacs', measure: Measure = TOP1,
            ) -> Comparison | str:
    """Compare two series of points where their costs overlap, interpolating between neighbours in the log of cost.

    They are compared at every cost that either was measured at; a point of both, such as the base of a study, says
    nothing about their difference and is left out. So is a cost that one series has no near neighbours of, because
    curves are taken as straight in between: at most as far from them as the middle of two a factor of 4 apart.

    The noise of a point with k seeds is s²/k + b². s² is the variance of runs over seeds, pooled over all points of
    both series; b² is the binomial variance of the evaluation, once for every point and however many seeds, because
    all seeds saw the same images. By the law of total variance, a part of b² shows up in s² already, and another part
    is common to both series and cancels; how much, nobody can tell without the answers to single images. So this is
    an upper bound, and false verdicts are rarer than the 4.6 % of 2 sigma. With few seeds, Student's t takes the place
    of 2, with Welch and Satterthwaite's degrees of freedom.

    Args:
        first, second: points of one regime; at least one each.
        cost: one of `COSTS`.
        measure: what is compared; by default top-1 (percentage points).

    Returns:
        The comparison; or why there is none: costs that do not overlap but in points of both, or are far apart.

    Raises:
        UserError: a run that has no such cost.
    """
    points = list(dict.fromkeys([*first, *second]))
    log_cost = {point: math.log(point.cost(cost)) for point in points}
    overlap = _overlap(first, second, log_cost)
    places = [place for place in overlap if all(_is_near(place, [log_cost[point] for point in series])
                                                for series in (first, second))]
    if not places:
        return ('their points are too far apart to interpolate between: add some in between' if overlap else
                'their costs do not overlap beyond the points of both: add points where the other series has some')
    weights = dict.fromkeys(points, 0.0)
    for series, sign in ((first, 1), (second, -1)):
        for point, weight in _weights(series, log_cost, places).items():
            weights[point] += sign * weight
    return _decide(weights, (math.exp(min(places)), math.exp(max(places))), measure)


def compare_points(first: Point, second: Point, points: Sequence[Point], measure: Measure = TOP1) -> Comparison:
    """Compare two points, whatever they cost, as `compare` does series; the spread over seeds is of all `points`."""
    weights = dict.fromkeys(points, 0.0) | {first: 1.0, second: -1.0}
    costs = sorted(point.cost('gmacs') for point in (first, second))
    return _decide(weights, (costs[0], costs[1]), measure)


def _decide(weights: dict[Point, float], costs: tuple[float, float], measure: Measure) -> Comparison:
    """Whether the weighted sum of the points differs from 0; those of no weight tell of the noise only."""
    points = list(weights)
    counted = [point for point in points if abs(weights[point]) > 1e-12]
    variance, _ = seed_variance(points, measure.of)
    fixed = sum(weights[point] ** 2 * measure.variance(point) for point in counted)

    def margin(more: int) -> float:
        freedom = sum(point.seeds + more - 1 for point in points)
        of_seeds = variance * sum(weights[point] ** 2 / (point.seeds + more) for point in counted)
        return _quantile(of_seeds, freedom, fixed) * math.sqrt(of_seeds + fixed)

    difference = sum(weights[point] * sum(map(measure.of, point.results)) / point.seeds for point in counted)
    seeds = min(point.seeds for point in counted)
    is_known = any(point.seeds > 1 for point in points)
    least = max(0, MIN_SEEDS - seeds)
    more = least + bisect_left(range(least, MAX_MORE_SEEDS + 1), True, key=lambda more: (
        not is_known or abs(difference) > margin(more)))
    return Comparison(
        difference, margin(0) if is_known else None, *costs, seeds,
        decided=more == 0, more_seeds=more if more <= MAX_MORE_SEEDS else None, least_margin=2 * math.sqrt(fixed))


def _overlap(first: Sequence[Point], second: Sequence[Point], log_cost: dict[Point, float]) -> list[float]:
    """The logarithms of the costs of points that are in the range of both series, but not in both."""
    ranges = [[log_cost[point] for point in series] for series in (first, second)]
    low, high = max(map(min, ranges)) - SAME_COST, min(map(max, ranges)) + SAME_COST
    shared = set(first) & set(second)
    return [place for point, place in log_cost.items() if low <= place <= high and point not in shared]


def _is_near(place: float, costs: Sequence[float]) -> bool:
    """Whether a line between neighbours is sure enough at `place`: its error goes with both distances."""
    below = min((place - cost for cost in costs if cost <= place), default=0.0)
    above = min((cost - place for cost in costs if cost >= place), default=0.0)
    return below * above <= (FAR / 2) ** 2 + 1e-9


def _weights(series: Sequence[Point], log_cost: dict[Point, float], places: Sequence[float]) -> dict[Point, float]:
    """What each point counts for in the mean of the interpolated series over `places`."""
    import numpy as np
    costs, which, counts = np.unique([log_cost[point] for point in series], return_inverse=True, return_counts=True)
    basis = np.eye(len(costs))
    per_cost = [float(np.mean(np.interp(places, costs, row))) for row in basis]
    return {point: per_cost[place] / int(counts[place]) for point, place in zip(series, which, strict=True)}


def _quantile(of_seeds: float, freedom: int, fixed: float) -> float:
    """Student's t where 2 sigma would be, for a variance of which only the part `of_seeds` was estimated."""
    if not of_seeds:
        return 2.0
    with needing('a verdict from few seeds', 'scipy'):
        from scipy.stats import t
    return float(t.ppf(TWO_SIGMA, freedom * ((of_seeds + fixed) / of_seeds) ** 2))
