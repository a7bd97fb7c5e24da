"""Accuracy against latency as a figure: a line per family, what is dominated hollow, speed-ups at equal accuracy."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_rs.study.pareto import SAME_TOP1, Panel, dominated, speedups
from timm_rs.study.picture import beads, check_format, plain, save, write

FAMILIES = {'EfficientNet': '#3b6fb6', 'ResNet-RS': '#c8553d', 'EfficientNet-RS': '#4d9a5b'}  # and their colours
GREY = '#555555'  # of arrows and small print
ARROW: dict[str, Any] = dict(color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
# Where labels go, best first, and then further off: 1/72 inch to the right and up, for families that are quicker than
# others, whose lines are on the left, and for the slower ones.
_LEFT = [(-6, 4), (-5, 8), (-9, 0), (0, 9)], [(6, -6), (9, 0), (0, -9), (-6, -6), (6, 6)]
_RIGHT = [(6, -4), (5, -8), (9, 0), (0, -9)], [(-6, 6), (-9, 0), (0, 9), (6, 6), (-6, -6)]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the figure to `path`, a .png or .svg. Raises UserError when it cannot be written."""
    check_format(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    height = 4.4 * rows + 0.9
    figure = Figure(figsize=(7 * columns, height), dpi=110, layout=ConstrainedLayoutEngine(
        rect=(0, 0.6 / height, 1, 1 - 0.6 / height)))
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis in axes[len(panels):]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_lines(axis, panel)
    for axis in axes[:len(panels):columns]:
        axis.set_ylabel('ImageNet top-1 (%), as published in the paper')
    _give_equal_widths(axes[:len(panels)])
    _explain(figure, panels, height)
    figure.draw_without_rendering()
    figure.set_layout_engine('none')  # labels are placed by where things are now
    for axis, panel in zip(axes, panels, strict=False):
        _write_labels(figure, axis, panel)
    save(figure, path)


def _draw_lines(axis: Any, panel: Panel) -> None:
    behind = dominated(panel.points)
    for family, colour in FAMILIES.items():
        points = sorted((point for point in panel.points if point.family == family), key=lambda point: point.top1)
        axis.plot([point.seconds for point in points], [point.top1 for point in points], color=colour, linewidth=1.4,
                  alpha=0.75, zorder=2)
        for point in points:
            axis.errorbar(
                point.seconds, point.top1,
                xerr=[[point.seconds - point.latency[1]], [point.latency[2] - point.seconds]],
                fmt='^' if point.digitised else 'o', markersize=6.5, color=colour,
                markerfacecolor='white' if point in behind else colour, linewidth=1, zorder=3)
    axis.set_xscale('log')
    axis.margins(x=0.09, y=0.09)
    axis.set(xlabel='seconds for 1024 images (log scale)')
    axis.set_title(panel.title, fontsize=10)
    axis.xaxis.set_major_formatter(plain)
    axis.xaxis.set_minor_formatter(lambda value, _: plain(value, _) if f'{value:e}'[0] in '235' else '')
    axis.tick_params(which='minor', labelsize=8)
    axis.tick_params(axis='y', labelleft=True)
    axis.grid(alpha=0.25, which='both')
    for base, other, _ in speedups(panel.points):
        axis.annotate('', (other.seconds, other.top1), (base.seconds, base.top1), zorder=1, arrowprops=dict(
            arrowstyle='->', shrinkA=6, shrinkB=6, **ARROW))


def _give_equal_widths(axes: Sequence[Any]) -> None:
    """Make all time axes as wide as the widest, in decades: a ratio of times is as long in one panel as in another."""
    ends = [[math.log10(end) for end in axis.get_xlim()] for axis in axes]
    half = max(right - left for left, right in ends) / 2
    for axis, (left, right) in zip(axes, ends, strict=True):
        middle = (left + right) / 2
        axis.set_xlim(10 ** (middle - half), 10 ** (middle + half))


def _explain(figure: Any, panels: Sequence[Panel], height: float) -> None:
    """The legend of all panels, and below it where accuracies come from."""
    from matplotlib.lines import Line2D
    points = [point for panel in panels for point in panel.points]
    families = {point.family for point in points}
    lines = [Line2D([], [], color=colour, marker='o', label=family) for family, colour in FAMILIES.items()
             if family in families]
    if any(dominated(panel.points) for panel in panels):
        lines.append(Line2D([], [], color=GREY, marker='o', markerfacecolor='white', linestyle='',
                            label='another is as good and faster'))
    if any(point.digitised for point in points):
        lines.append(Line2D([], [], color=GREY, marker='^', linestyle='', label='read off Figure 5 (about ±0.05 %)'))
    if any(speedups(panel.points) for panel in panels):
        lines.append(Line2D([], [], label=f'ResNet-RS of equal accuracy (within {SAME_TOP1:g} %)', **ARROW))
    figure.legend(handles=lines, loc='lower center', bbox_to_anchor=(0.5, 0.22 / height), ncols=len(lines), fontsize=9,
                  frameon=False)
    figure.text(0.5, 0.06 / height, 'Accuracies are the paper\'s (arXiv:2103.07579, Table 7). No model was trained for '
                'this figure. All time axes have one scale.', fontsize=8, color=GREY, ha='center')


def in_words(ratio: float) -> str:
    """How many times as fast, or slower."""
    return f'{ratio:.1f}×' if ratio >= 1 else f'{1 / ratio:.1f}× slower'


def _write_labels(figure: Any, axis: Any, panel: Panel) -> None:
    """Put a label beside every point and arrow, wherever it covers nothing that is there already."""
    from matplotlib.transforms import Bbox
    place = axis.transData.transform
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in (
        place((point.seconds, point.top1)) for point in panel.points)]
    for points in ([point for point in panel.points if point.family == family] for family in FAMILIES):
        ordered = sorted(points, key=lambda point: point.top1)
        for one, two in zip(ordered, ordered[1:], strict=False):  # the lines, as beads
            taken += beads(place((one.seconds, one.top1)), place((two.seconds, two.top1)))
    for point in panel.points:
        taken += beads(place((point.latency[1], point.top1)), place((point.latency[2], point.top1)))
    names = {point: point.label for point in panel.points}
    pairs = speedups(panel.points)
    for base, other, ratio in pairs:
        spots = [(base.seconds ** share * other.seconds ** (1 - share), base.top1 * share + other.top1 * (1 - share))
                 for share in (0.5, 0.6, 0.4, 0.7, 0.3)]
        if not write(figure, axis, [(spot, (0, 0)) for spot in spots], in_words(ratio), '#222222', taken, 9,
                     is_ratio=True):
            names[base] += f': {in_words(ratio)}'  # no room on its arrow: it is told with where the arrow begins
    for base, other, _ in pairs:
        taken += beads(place((base.seconds, base.top1)), place((other.seconds, other.top1)))
    slower = _slower_families(panel)
    for point in sorted(panel.points, key=lambda point: -point.top1 if point.family in slower else point.top1):
        median, least, most = point.latency
        write(figure, axis, [((median if y else most if x > 0 else least, point.top1), (scale * x, scale * y))
                             for spots in (_RIGHT if point.family in slower else _LEFT) for scale in (1, 1.5, 2.2, 3, 4)
                             for x, y in spots],
              names[point], FAMILIES[point.family], taken, 8)


def _slower_families(panel: Panel) -> set[str]:
    """Those of which a greater share is dominated than of another."""
    behind = dominated(panel.points)
    points = {family: [point for point in panel.points if point.family == family] for family in FAMILIES}
    shares = {family: len(behind.intersection(own)) / len(own) for family, own in points.items() if own}
    return {family for family, share in shares.items() if share > min(shares.values())}
