"""What a larger image size brings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from timm_rs.study.pareto import pareto
from timm_rs.study.results import Point, standard_errors

MIN_POINTS = 3  # for an exponent


@dataclass(frozen=True)
class Gain:
    """What a model gains from more pixels.

    Attributes:
        model: what it is called in the study, without its image size.
        sizes: the smaller and the larger image size.
        per_doubling: percentage points of top-1 per doubling of the number of pixels.
        standard_error: of that.
    """

    model: str
    sizes: tuple[int, int]
    per_doubling: float
    standard_error: float


def gains(points: Sequence[Point]) -> list[Gain]:
    """For every model the gain from each image size to the next; diminishing returns are gains that shrink.

    Args:
        points: of one length of training (`by_training`). Points with the same axes and parameters are one model.
    """
    models: dict[tuple[object, ...], list[tuple[int, Point, float]]] = {}
    for point, error in zip(points, standard_errors(points), strict=True):
        key = (point.one.params_m, *point.one.axes.items())
        models.setdefault(key, []).append((point.one.img_size, point, error))
    found = []
    for sizes in models.values():
        sizes.sort(key=lambda entry: entry[0])
        for (small, one, error), (large, two, other_error) in zip(sizes, sizes[1:], strict=False):
            if small < large:
                doublings = 2 * math.log2(large / small)
                found.append(Gain(one.name.rpartition('img_size=')[0].strip(), (small, large),
                                  (two.top1 - one.top1) / doublings, math.hypot(error, other_error) / doublings))
    return found


def size_exponent(costs: Sequence[float], errors: Sequence[float], sizes: Sequence[int]) -> tuple[float, float] | None:
    """The exponent x of image size ~ cost ** x over the Pareto points, and its standard error.

    EfficientNet's compound rule has 0.21 against FLOPs; the paper's slow scaling shows against latency.

    Returns:
        None where fewer than 3 points are left, or they have one cost.
    """
    import numpy as np
    best = pareto(costs, errors)
    x, y = np.log([costs[place] for place in best]), np.log([sizes[place] for place in best])
    if len(set(x)) < MIN_POINTS:
        return None
    line, covariance = np.polyfit(x, y, 1, cov='unscaled')
    variance = np.sum((y - np.polyval(line, x)) ** 2) / (len(x) - 2)
    return float(line[0]), float(np.sqrt(covariance[0, 0] * variance))
