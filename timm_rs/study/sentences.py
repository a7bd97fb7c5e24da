"""What a scaling study says, in sentences."""

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean

from timm_rs.study.power_law import MIN_POINTS, find_break, fit_curve, fit_line
from timm_rs.study.resolution import gains, size_exponent
from timm_rs.study.results import (
    COSTS,
    Point,
    Result,
    by_regime,
    by_series,
    by_training,
    points_of,
    seed_variance,
    standard_errors,
)
from timm_rs.study.verdict import LOSS_GAP, MAX_MORE_SEEDS, Comparison, compare, compare_points


def sentences(results: Iterable[Result], cost: str = 'gmacs') -> list[str]:
    """All that a study says, for people; it works with what there is, down to a single run.

    Args:
        results: the finished runs.
        cost: one of `COSTS`, at which series are compared; power laws are against GFLOPs (2 GMACs), as in the paper.

    Raises:
        UserError: a run that has no such cost.
    """
    points = points_of(results)
    lines = []
    for regime, group in by_regime(points).items():
        lines.append(_what_there_is(regime, group))
        for (first, ones), (second, others) in combinations(by_series(group).items(), 2):
            lines += pair_sentences(first, ones, second, others, regime, cost)
        lines += recipe_sentences(group)
        lines += loss_sentences(group)
        lines += power_law_sentences(group)
    for training, group in by_training(points).items():
        lines += resolution_sentences(group, training)
    return [*lines, 'Every ± is 2 sigma: between series that do not differ, chance decides up to 1 in 20 comparisons.']


def _what_there_is(regime: str, points: Sequence[Point]) -> str:
    runs = sum(point.seeds for point in points)
    spread, freedom = seed_variance(points)
    noise = f'runs differ by {spread ** 0.5:.2f} points from seed to seed' if freedom else (
        'one seed, so the noise is unknown')
    return f'{regime or "all runs"}: {_number(len(points), "point")}, {_number(runs, "run")}; {noise}'


def pair_sentences(first: str, ones: Sequence[Point], second: str, others: Sequence[Point], regime: str, cost: str,
                   ) -> list[str]:
    """The verdict on two series of a regime, and which of them over-fits more."""
    comparison = compare(ones, others, cost)
    at = f'at equal {COSTS[cost]}' + (f' ({regime})' if regime else '')
    gap = compare(ones, others, cost, LOSS_GAP)
    if isinstance(comparison, str) or isinstance(gap, str):
        return [f'{first} against {second} {at}: cannot tell: {comparison}']
    return [verdict_sentence(first, second, at, comparison), gap_sentence(first, second, gap)]


def recipe_sentences(points: Sequence[Point]) -> list[str]:
    """Recipes have no order of cost: each against the one before it in the study, as in a study that adds things up."""
    named = [point for point in points if 'recipe' in point.one.axes]
    called = {recipe: Path(recipe).stem for recipe in dict.fromkeys(point.one.axes['recipe'] for point in named)}
    if len(set(called.values())) < len(called):
        called = {recipe: recipe for recipe in called}
    lines = [f'  {name}: {fmean(point.top1 for point in named if point.one.axes["recipe"] == recipe):.1f} %'
             for recipe, name in called.items()]
    for before, point in pairwise(named):
        if {**before.one.axes, 'recipe': ''} == {**point.one.axes, 'recipe': ''}:
            first, second = (called[each.one.axes['recipe']] for each in (point, before))
            lines.append('  ' + verdict_sentence(first, second, 'as recipes', compare_points(point, before, points)))
    return lines


def verdict_sentence(first: str, second: str, at: str, comparison: Comparison) -> str:
    """Such as 'depth beats width by 1.9 ± 0.7 points at equal GMACs (epochs=350)'."""
    difference, margin = comparison.difference, comparison.margin
    signed = f'{round(difference, 1) + 0.0:+.1f}'  # -0.04 is +0.0
    if comparison.decided:
        better, worse = (first, second) if difference > 0 else (second, first)
        digits = 1 if f'{abs(difference):.1f}' != f'{margin:.1f}' else 2  # 0.6 ± 0.6 would look undecided
        return f'{better} beats {worse} by {abs(difference):.{digits}f} ± {margin:.{digits}f} points {at}'
    beginning = f'{first} against {second} {at}: cannot tell'
    if margin is None:
        return (f'{beginning} ({signed} points, with a single seed): run '
                f'{_number(comparison.more_seeds or 0, "more seed")}')
    beginning += f' ({signed} ± {margin:.1f} points)'
    if comparison.more_seeds is not None:
        return f'{beginning}: run {_number(comparison.more_seeds, "more seed")}'
    if abs(difference) <= comparison.least_margin:
        return (f'{beginning}: no number of seeds would decide, because the evaluation images alone leave ± '
                f'{comparison.least_margin:.1f}: evaluate on more images')
    return f'{beginning}: it would take more than {MAX_MORE_SEEDS} more seeds'


def gap_sentence(first: str, second: str, gap: Comparison) -> str:
    """Which of two series over-fits more: the difference of validation minus training loss at equal cost."""
    words = f'validation minus training loss, {first} less {second}: {gap.difference:+.3f}'
    if gap.margin is None:
        return f'  {words}, with a single seed'
    more = (first if gap.difference > 0 else second) + ' over-fits more' if gap.decided else 'no difference to tell'
    return f'  {words} ± {gap.margin:.3f}: {more}'


def loss_sentences(points: Sequence[Point]) -> list[str]:
    """Training and validation loss of each point, by cost."""
    lines = ['  loss in training, in validation, and the second minus the first (mean over seeds):']
    for point in sorted(points, key=lambda point: point.cost('gmacs')):
        train, held_out = (sum(getattr(result, name) for result in point.results) / point.seeds
                           for name in ('train_loss', 'eval_loss'))
        lines.append(f'    {point.name}: {train:.3f}, {held_out:.3f}, {held_out - train:+.3f}')
    return lines


def power_law_sentences(points: Sequence[Point]) -> list[str]:
    """The fits of error (%) against F in GFLOPs, what of them is certain, and where the power law breaks."""
    flops, errors, sigmas = [2 * point.cost('gmacs') for point in points], [
        point.error for point in points], standard_errors(points)
    line = fit_line(flops, errors, sigmas)
    if line is None:
        return ['  no power law: fewer than three different costs']
    lines = [f'  error = {line.factor:.3g} F^{-line.exponent:.3f} (F in GFLOPs), off by {100 * line.residual:.1f} %']
    curve, reason = fit_curve(flops, errors, sigmas)
    if curve is None:
        lines.append(f'  no power law with a floor: {reason}')
    else:
        a, b, c = (2 * error for error in curve.standard_errors)
        lines.append(
            f'  error = a F^-b + c: a {curve.a:.1f} ± {a:.1f}, b {curve.b:.2f} ± {b:.2f}, c {curve.c:.1f} ± {c:.1f}, '
            f'off by {curve.rms:.2f} points'
            + ('; c without the largest 1, 2, 3: ' + ', '.join(f'{one:.1f}' for one in curve.c_without)
               if curve.c_without else '; too few points to see what c is without the largest'))
    if len(points) < MIN_POINTS - 1:
        return [*lines, f'  too few points to look for a break: {MIN_POINTS - 1} are needed']
    if found := find_break(flops, errors, sigmas):
        return [*lines, f'  the power law breaks at {found.cost:.3g} GFLOPs ({points[found.index].name}): error '
                f'{found.error:.1f} %, and {found.predicted:.1f} % predicted from all smaller ones']
    return [*lines, '  the power law: no break within this range']


def resolution_sentences(points: Sequence[Point], training: str) -> list[str]:
    """What more pixels bring each model, and how image size grows with each cost that it has a part in.

    The latter is over the Pareto points. Nothing for one size.
    """
    sizes = [point.one.img_size for point in points]
    if len(set(sizes)) == 1:
        return []
    lines = [f'image size{f" ({training})" if training else ""}:']
    for gain in gains(points):
        small, large = gain.sizes
        lines.append(f'  {gain.model or "the model"}, {small} to {large} px: {gain.per_doubling:+.1f} ± '
                     f'{2 * gain.standard_error:.1f} points per doubling of pixels')
    for cost in ('gmacs', 'activations_m', 'step_ms'):
        if cost == 'step_ms' and any(result.step_ms is None for point in points for result in point.results):
            continue
        exponent = size_exponent([point.cost(cost) for point in points], [point.error for point in points], sizes)
        lines.append(f'  image size against {COSTS[cost]}, over the Pareto points: ' + (
            'too few of them for an exponent' if exponent is None else
            f'to the power {exponent[0]:.2f} ± {2 * exponent[1]:.2f}'))
    return lines


def _number(count: int, what: str) -> str:
    return f'{count} {what}{"s" * (count != 1)}'
