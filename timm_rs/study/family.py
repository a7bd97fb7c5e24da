"""A family of models: the best measured point for every budget, growing in depth and image size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from timm_rs.errors import UserError
from timm_rs.study.pareto import pareto
from timm_rs.study.results import Point


@dataclass(frozen=True)
class Family:
    """The points chosen.

    Attributes:
        members: (budget, point), smallest first; two budgets may have one point.
        dominated: (point, better): points that another beats in accuracy at no higher cost, or in cost.
    """

    members: list[tuple[float, Point]]
    dominated: list[tuple[Point, Point]]


def choose_family(points: Sequence[Point], budgets: Sequence[float], cost: str = 'gmacs') -> Family:
    """Choose the best point within each budget such that neither depth nor image size ever decreases.

    Where the best points of two budgets contradict each other in that, the sum of the accuracies decides: a small
    model that would forbid good large ones is passed over. Depth is the axis `depth`, else the sum of `layers`; points
    that have neither are held to image size alone.

    The best of many noisy points looks better than it is: see to enough seeds (`compare`).

    Args:
        points: of one length of training (`by_training`).
        budgets: in the unit of the cost.
        cost: one of `COSTS`.

    Raises:
        UserError: no points or budgets, a budget that no point fits in, a run without the cost.
    """
    if not points or not budgets:
        raise UserError('a family needs finished runs and budgets: give --budgets, and run the study first')
    costs = [point.cost(cost) for point in points]
    if min(budgets) < min(costs):
        raise UserError(f'no point fits in a budget of {min(budgets):g} {cost}: the cheapest takes {min(costs):g}')
    # The best chain of members so far that ends with each point: sum of accuracies, and the members.
    chains: list[tuple[float, list[tuple[float, Point]]]] = [(0.0, [])]
    for budget in sorted(set(budgets)):
        longer = []
        for point in (point for point, needed in zip(points, costs, strict=True) if needed <= budget):
            fitting = [chain for chain in chains if not chain[1] or _grows(chain[1][-1][1], point)]
            if fitting:
                total, members = max(fitting, key=lambda chain: chain[0])
                longer.append((total + point.top1, [*members, (budget, point)]))
        chains = longer
    best = pareto(costs, [-point.top1 for point in points])
    return Family(max(chains, key=lambda chain: chain[0])[1], [
        (point, max((points[place] for place in best if costs[place] <= costs[index]), key=lambda other: other.top1))
        for index, point in enumerate(points) if index not in best])


def depth_of(point: Point) -> int:
    """The axis `depth`, else the sum of `layers`, else 0."""
    axes = point.one.axes
    return sum(map(int, re.findall(r'\d+', axes.get('depth') or axes.get('layers') or '')))


def _grows(small: Point, large: Point) -> bool:
    return depth_of(small) <= depth_of(large) and small.one.img_size <= large.one.img_size
