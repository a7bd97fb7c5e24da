"""Error against cost as a power law: the fit, what of it is certain, and where it breaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from timm_rs.errors import needing

MIN_POINTS = 5  # for a curve of three parameters; one fewer for a break
FALSE_BREAKS = 0.05  # how often a series without a break may be said to have one


@dataclass(frozen=True)
class Line:
    """error = factor * cost ** -exponent, a straight line between logarithms.

    `residual` is the root mean square distance of the points from it, in logarithms (0.03 is 3 %).
    """

    factor: float
    exponent: float
    residual: float


@dataclass(frozen=True)
class Curve:
    """error = a * cost ** -b + c.

    Attributes:
        a, b, c: b has no unit, the others are in units of the error.
        standard_errors: of a, b and c.
        rms: root mean square distance of the points, in units of the error.
        c_without: c when the points of the largest cost are left out: one, two, three of them, as far as there are
            enough left.
    """

    a: float
    b: float
    c: float
    standard_errors: tuple[float, float, float]
    rms: float
    c_without: tuple[float, ...]


@dataclass(frozen=True)
class Break:
    """The first point that is worse than all smaller ones predict.

    Attributes:
        index: of the point among those given.
        cost, error: of the point.
        predicted: the error that a line through the smaller ones predicts.
    """

    index: int
    cost: float
    error: float
    predicted: float


def fit_line(costs: Sequence[float], errors: Sequence[float], sigmas: Sequence[float] | None = None) -> Line | None:
    """The straight line through the logarithms, by least squares; None for fewer than three different costs.

    Args:
        costs: positive, in any unit.
        errors: positive, in any unit.
        sigmas: their standard errors, in the same unit; None: unknown, the same for all logarithms.
    """
    import numpy as np
    if len(set(costs)) < 3:
        return None
    x, y = np.log(costs), np.log(errors)
    slope, intercept = np.polyfit(x, y, 1, w=None if sigmas is None else np.asarray(errors) / sigmas)
    residual = np.sqrt(np.mean((y - intercept - slope * x) ** 2))
    return Line(float(np.exp(intercept)), float(-slope), float(residual))


def fit_curve(costs: Sequence[float], errors: Sequence[float], sigmas: Sequence[float] | None = None,
              ) -> tuple[Curve | None, str]:
    """The power law with a floor c, by least squares with a, b >= 0 and 0 <= c < the least error.

    What is certain of c depends on the range of costs, not on the number of points: a decade or more is needed.

    Args:
        costs, errors, sigmas: as for `fit_line`. Without sigmas the standard errors come from the residuals.

    Returns:
        The curve, and ''; or None, and the reason: too few points, or a floor that they leave open: its standard
        error exceeds half of the least error, or the exponent is within 2 standard errors of 0, where a straight line
        without any floor fits as well.
    """
    if len(set(costs)) < MIN_POINTS:
        return None, f'{len(set(costs))} different costs are too few, {MIN_POINTS} are needed'
    order = sorted(range(len(costs)), key=lambda place: costs[place])
    x, y = ([values[place] for place in order] for values in (costs, errors))
    sigma = None if sigmas is None else [sigmas[place] for place in order]
    best, deviations, rms = _fit(x, y, sigma)
    if best is None or not (deviations[2] <= min(y) / 2 and 2 * deviations[1] <= best[1]):
        return None, 'the floor c is not determined by these points: a wider range of costs is needed'
    fewer = []
    for left_out in (1, 2, 3):
        stop = len(x) - left_out
        if len(set(x[:stop])) >= MIN_POINTS and (fit := _fit(x[:stop], y[:stop], sigma and sigma[:stop])[0]):
            fewer.append(fit[2])
    return Curve(*best, deviations, rms, tuple(fewer)), ''


Three = tuple[float, float, float]


def _fit(x: list[float], y: list[float], sigma: list[float] | None) -> tuple[Three | None, Three, float]:
    """a, b, c of the curve through points in order of cost, or None; their standard errors; the rms."""
    import numpy as np
    with needing('the fit of a power law', 'scipy'):
        from scipy.optimize import curve_fit
    costs, errors = np.asarray(x), np.asarray(y)
    floor = 0.9 * errors.min()

    def law(costs: Any, a: float, b: float, c: float) -> Any:
        return a * costs ** -b + c

    try:
        best, covariance = curve_fit(
            law, costs, errors, p0=((errors[0] - floor) * costs[0] ** 0.5, 0.5, floor), sigma=sigma,
            absolute_sigma=sigma is not None, bounds=([0, 0, 0], [np.inf, np.inf, errors.min()]), x_scale='jac')
    except RuntimeError:  # it has not converged
        return None, (np.inf,) * 3, np.inf
    rms = float(np.sqrt(np.mean((errors - law(costs, *best)) ** 2)))
    return tuple(best.tolist()), tuple(np.sqrt(np.diag(covariance)).tolist()), rms


def find_break(costs: Sequence[float], errors: Sequence[float], sigmas: Sequence[float]) -> Break | None:
    """Where the power law breaks: the first point that is worse than the line through all smaller ones predicts.

    Worse means by more than 2 sigma, or somewhat more where many points are asked in turn, so that at most one series
    in twenty that has no break is said to have one. Sigma has the error of the point and that of the prediction; where
    the smaller points scatter more than their own errors explain, both grow with it.

    Args:
        costs, errors: as for `fit_line`.
        sigmas: standard errors of `errors`.

    Returns:
        The break; None where there is none within this range, or there are fewer than 4 points.
    """
    import numpy as np
    order = np.argsort(costs, kind='stable')
    x, y = np.log(np.asarray(costs)[order]), np.log(np.asarray(errors)[order])
    noise = (np.asarray(sigmas) / np.asarray(errors))[order]
    asked = range(MIN_POINTS - 2, len(x))
    limit = max(2.0, NormalDist().inv_cdf(1 - FALSE_BREAKS / max(len(asked), 1)))
    for k in asked:
        if x[k - 1] == x[0]:
            continue  # no line goes through one cost
        line, covariance = np.polyfit(x[:k], y[:k], 1, w=1 / noise[:k], cov='unscaled')
        scatter = max(1.0, np.sum(((y[:k] - np.polyval(line, x[:k])) / noise[:k]) ** 2) / (k - 2))
        at = np.array([x[k], 1])
        sigma = np.sqrt(scatter * (at @ covariance @ at + noise[k] ** 2))
        predicted = float(np.polyval(line, x[k]))
        if y[k] - predicted > limit * sigma:
            place = int(order[k])
            return Break(place, costs[place], errors[place], float(np.exp(predicted)))
    return None
