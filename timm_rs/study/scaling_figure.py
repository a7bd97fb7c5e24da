"""Figures 2 and 3 of the paper for a scaling study: error against FLOPs, and accuracy against a cost.

Colour is the image size, the shape of a point its series. The colours are Okabe and Ito's, which colour-blind people
can tell apart.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from timm_rs.errors import UserError
from timm_rs.study.picture import beads, check_format, plain, save, write
from timm_rs.study.power_law import Break, find_break, fit_curve, fit_line
from timm_rs.study.results import Point, Result, by_regime, by_series, by_training, points_of, standard_errors

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#000000', '#CC79A7', '#56B4E9', '#D55E00')
GREY = '#555555'
STYLES = {'depth': ('o', '-'), 'width': ('s', '--')}  # marker and line of a series
MORE_STYLES = (('^', '-.'), ('D', ':'), ('v', (0, (7, 2, 1, 2, 1, 2))), ('P', (0, (7, 2))), ('X', (0, (2, 4))))
UNITS = {'gmacs': 'GMACs', 'activations_m': 'million activations', 'params_m': 'million parameters',
         'step_ms': 'ms per update'}
COLUMNS = 3  # panels side by side
MAX_LABELS = 8  # points of a panel whose labels have room
AROUND = [(6, -4), (-6, 4), (6, 4), (-6, -6), (0, 8), (0, -8), (9, 0), (-9, 0)]

Spots = dict[Point, tuple[float, float, float]]  # where points are drawn: x, y, half the bar in y


def draw_power_law(results: Iterable[Result], path: Path, data: str) -> None:
    """Error against FLOPs, both logarithmic, with the fit and the break of each regime: the paper's Figure 2.

    The fit is the curve with a floor where that is determined, else a straight line; where the law breaks, the line
    through all smaller points. Bars are standard errors.

    Args:
        results: the finished runs.
        path: a .png or .svg.
        data: what the data set is called.

    Raises:
        UserError: nothing to draw, or a file that cannot be written.
    """
    points = points_of(results)
    spots = {}
    for group in by_regime(points).values():
        for point, sigma in zip(group, standard_errors(group), strict=True):
            spots[point] = 2 * point.one.gmacs, point.error, sigma
    figure, panels, look = _begin(points, path, f'{data}: error of scaled models')
    for axis, group in panels:
        for regime in by_regime(group).values():
            _draw_fit(axis, regime, spots, look)
        look.draw_points(axis, group, spots)
        _label_axes(axis, 'GFLOPs (log scale)', 'top-1 error (%, log scale)', spots, group, is_log=True)
    _end(figure, panels, look, path, spots, mark=_mark_breaks)


def draw_series(results: Iterable[Result], path: Path, data: str, cost: str = 'gmacs') -> None:
    """Accuracy against a cost, a panel per regime and a line per series and image size: the paper's Figure 3.

    Bars are the standard deviation over seeds.

    Args:
        results, path, data: as for `draw_power_law`.
        cost: one of `COSTS`.

    Raises:
        UserError: nothing to draw, a run without the cost, or a file that cannot be written.
    """
    points = points_of(results)
    spots = {point: (point.cost(cost), point.top1, stdev(one.eval_top1 for one in point.results)
                     if point.seeds > 1 else 0.0) for point in points}
    figure, panels, look = _begin(points, path, f'{data}: accuracy of scaled models')
    for axis, group in panels:
        for regime in by_regime(group).values():
            for name, series in by_series(regime).items():
                x, y, _ = zip(*sorted(spots[point] for point in series), strict=True)
                axis.plot(x, y, color=look.colour(series), linestyle=look.styles[name][1], linewidth=1.4, zorder=2)
        look.draw_points(axis, group, spots)
        _label_axes(axis, f'{UNITS[cost]} (log scale)', 'top-1 accuracy (%)', spots, group)
    _end(figure, panels, look, path, spots)


class _Look:
    """A colour for every image size, marker and line for every series."""

    def __init__(self, points: Sequence[Point]):
        from matplotlib import colormaps
        sizes = sorted({point.one.img_size for point in points})
        colours = COLOURS if len(sizes) <= len(COLOURS) else [
            colormaps['cividis'](place / (len(sizes) - 1)) for place in range(len(sizes))]
        self.colours: dict[int, Any] = dict(zip(sizes, colours, strict=False))
        others = [name for name in by_series(points) if name not in STYLES]
        self.styles: dict[str, tuple[str, Any]] = STYLES | {
            name: MORE_STYLES[place % len(MORE_STYLES)] for place, name in enumerate(others)}

    def colour(self, points: Sequence[Point]) -> Any:
        """Of a line through `points`: that of their image size if it is one."""
        sizes = {point.one.img_size for point in points}
        return self.colours[sizes.pop()] if len(sizes) == 1 else GREY

    def marker(self, point: Point) -> str:
        return self.styles[point.one.series[0]][0] if len(point.one.series) == 1 else '*'

    def draw_points(self, axis: Any, points: Sequence[Point], spots: Spots) -> None:
        for point in points:
            x, y, bar = spots[point]
            is_star = self.marker(point) == '*'
            axis.errorbar(x, y, yerr=bar or None, fmt=self.marker(point), color=self.colours[point.one.img_size],
                          markersize=11 if is_star else 6, markeredgecolor='white', markeredgewidth=0.6, elinewidth=1,
                          capsize=2, zorder=3)

    def legend(self, points: Sequence[Point], is_fitted: bool) -> list[Any]:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
        entries: list[Any] = [Patch(color=colour, label=f'{size} px') for size, colour in self.colours.items()]
        for name in by_series(points):
            marker, line = self.styles[name]
            entries.append(Line2D([], [], color=GREY, marker=marker, linestyle='' if is_fitted else line, label=name,
                                  markeredgecolor='white', markersize=7))
        if any(len(point.one.series) > 1 for point in points):
            entries.append(Line2D([], [], color=GREY, marker='*', linestyle='', markersize=11, markeredgecolor='white',
                                  label='in several series'))
        if is_fitted:
            entries.append(Line2D([], [], color=GREY, linewidth=1.2, label='power law'))
        return entries


def _begin(points: Sequence[Point], path: Path, title: str) -> tuple[Any, list[tuple[Any, list[Point]]], _Look]:
    check_format(path)
    if not points:
        raise UserError('nothing to draw: no run has finished yet')
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    groups = by_training(points)
    columns = min(COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(max(7.0, 4.6 * columns), 4.4 * rows + 1.2), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    panels = []
    for axis, (name, group) in zip(axes, groups.items(), strict=False):
        axis.set_title(name, fontsize=10)
        panels.append((axis, group))
    for axis in axes[len(groups):]:
        axis.set_visible(False)
    return figure, panels, _Look(points)


def _end(figure: Any, panels: Sequence[tuple[Any, list[Point]]], look: _Look, path: Path, spots: Spots,
         mark: Callable[..., None] | None = None) -> None:
    """Legend below all panels, labels where there is room then, file."""
    entries = look.legend(list(spots), is_fitted=mark is not None)
    figure.legend(handles=entries, loc='outside lower center', ncols=min(len(entries), 4 * len(panels) + 1), fontsize=9,
                  handlelength=3.2)
    figure.draw_without_rendering()
    figure.set_layout_engine('none')
    for axis, group in panels:
        taken = _taken(axis, group, spots)
        if mark:
            mark(figure, axis, group, spots, look, taken)
        for point in group if len(group) <= MAX_LABELS else ():
            if words := _label(point):
                write(figure, axis, [(spots[point][:2], (scale * x, scale * y)) for scale in (1, 1.6, 2.4)
                                     for x, y in AROUND], words, look.colours[point.one.img_size], taken, 8)
    save(figure, path)


def _taken(axis: Any, points: Sequence[Point], spots: Spots) -> list[Any]:
    """Boxes (pixels) of what is drawn already: points, their bars, lines."""
    from matplotlib.transforms import Bbox
    place = axis.transData.transform
    taken = []
    for x, y, bar in (spots[point] for point in points):
        centre = place((x, y))
        taken.append(Bbox.from_bounds(centre[0] - 6, centre[1] - 6, 12, 12))
        taken += beads(place((x, y - bar)), place((x, y + bar))) if bar else []
    for line in axis.lines:
        corners = place(line.get_xydata())
        for one, two in zip(corners, corners[1:], strict=False):
            taken += beads(one, two)
    return taken


def _label(point: Point) -> str:
    """The values of the axes after which the point's series are called."""
    return ', '.join(point.one.axes[name] for name in point.one.series if point.one.axes.get(name))


def _draw_fit(axis: Any, points: Sequence[Point], spots: Spots, look: _Look) -> None:
    import numpy as np
    everything = sorted(spots[point] for point in points)
    found = _break(points, spots)
    fitted = [spot for spot in everything if spot[0] < found.cost] if found else everything
    flops, errors, sigmas = zip(*fitted, strict=True)
    line, (curve, _) = fit_line(flops, errors, sigmas), fit_curve(flops, errors, sigmas)
    x = np.geomspace(everything[0][0], everything[-1][0])
    if curve and not found:
        axis.plot(x, curve.a * x ** -curve.b + curve.c, color=look.colour(points), linewidth=1.2, zorder=2)
    elif line:
        axis.plot(x, line.factor * x ** -line.exponent, color=look.colour(points), linewidth=1.2, zorder=2)


def _break(points: Sequence[Point], spots: Spots) -> Break | None:
    flops, errors, sigmas = zip(*(spots[point] for point in points), strict=True)
    return find_break(flops, errors, sigmas)


def _mark_breaks(figure: Any, axis: Any, points: Sequence[Point], spots: Spots, look: _Look, taken: list[Any]) -> None:
    for regime in by_regime(points).values():
        if found := _break(regime, spots):
            colour = look.colour(regime)
            axis.plot(found.cost, found.error, 'o', markersize=15, markerfacecolor='none', color=colour, zorder=4)
            write(figure, axis, [((found.cost, found.error), (scale * x, scale * y)) for scale in (1.8, 2.6, 4)
                                 for x, y in AROUND], f'breaks at {found.cost:.3g}', colour, taken, 8)


def _label_axes(axis: Any, x_label: str, y_label: str, spots: Spots, points: Sequence[Point], is_log: bool = False,
                ) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator
    axis.set_xscale('log')
    axis.margins(0.1)
    sides = [(axis.xaxis, [spots[point][0] for point in points])]
    if is_log:
        axis.set_yscale('log')
        sides.append((axis.yaxis, [spots[point][1] for point in points]))
    for side, values in sides:
        side.set_major_formatter(plain)
        if max(values) < 8 * min(values):  # a logarithmic axis would have one number, or none
            side.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            side.set_minor_locator(NullLocator())
        else:
            side.set_minor_formatter(lambda value, _: plain(value, _) if f'{value:e}'[0] in '25' else '')
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.tick_params(which='both', labelsize=8)
    axis.grid(alpha=0.25, which='both')
