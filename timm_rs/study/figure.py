"""Accuracy against latency as a figure: a line per family, what is dominated in grey, speed-ups at equal accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_rs.study.pareto import SAME_TOP1, Panel, dominated, speedups
from timm_rs.study.picture import beads, check_format, plain, save, write

FAMILIES = {'EfficientNet': '#3b6fb6', 'ResNet-RS': '#c8553d', 'EfficientNet-RS': '#4d9a5b'}  # and their colours
GREY = '#9a9a9a'
# Where labels go, best first: 1/72 inch to the right and up. The quicker families are on the left.
_LEFT = [(-6, 4), (-5, 8), (-9, 0), (0, 9), (6, -6), (9, 0), (0, -9), (-6, -6), (6, 6)]
_RIGHT = [(6, -4), (5, -8), (9, 0), (0, -9), (-6, 6), (-9, 0), (0, 9), (6, 6), (-6, -6)]
AROUND = {'EfficientNet': _RIGHT, 'ResNet-RS': _LEFT, 'EfficientNet-RS': _LEFT}


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the figure to `path`, a .png or .svg. Raises UserError when it cannot be written."""
    check_format(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    foot = 0.03 / len(panels)
    figure = Figure(figsize=(9, 6.6 * len(panels) + 0.4), dpi=110, layout=ConstrainedLayoutEngine(
        rect=(0, foot, 1, 1 - foot)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_lines(axis, panel)
    has_hollow = any(point.digitised for panel in panels for point in panel.points)
    figure.text(0.01, 0.004, 'Accuracies are the paper\'s (arXiv:2103.07579): Table 7'
                + (', hollow points read off Figure 5 (about ±0.05)' if has_hollow else '')
                + '. No model was trained for this figure.', fontsize=8, color='#555555')
    figure.draw_without_rendering()
    figure.set_layout_engine('none')  # labels are placed by where things are now
    for axis, panel in zip(axes, panels, strict=True):
        _write_labels(figure, axis, panel)
    save(figure, path)


def _draw_lines(axis: Any, panel: Panel) -> None:
    behind = dominated(panel.points)
    for family, colour in FAMILIES.items():
        points = sorted((point for point in panel.points if point.family == family), key=lambda point: point.top1)
        if not points:
            continue
        axis.plot([point.seconds for point in points], [point.top1 for point in points], color=colour, linewidth=1.4,
                  alpha=0.75, zorder=2)
        for point in points:
            grey = point in behind
            axis.errorbar(
                point.seconds, point.top1,
                xerr=[[point.seconds - point.latency[1]], [point.latency[2] - point.seconds]], fmt='o', markersize=6.5,
                color=GREY if grey else colour, markerfacecolor='white' if point.digitised else GREY if grey else
                colour, linewidth=1, zorder=3)
        axis.plot([], [], color=colour, marker='o', label=family)
    if behind:
        axis.plot([], [], color=GREY, marker='o', linestyle='', label='dominated: another is as good and faster')
    if speedups(panel.points):
        axis.plot([], [], color='#555555', linewidth=0.9, linestyle=(0, (4, 2)),
                  label=f'speed-up at equal accuracy (within {SAME_TOP1:g} %)')
    axis.set_xscale('log')
    axis.margins(x=0.09, y=0.09)
    axis.set(xlabel='seconds for 1024 images (log scale)', ylabel='ImageNet top-1 (%), as published in the paper')
    axis.set_title(panel.title, fontsize=10)
    axis.xaxis.set_major_formatter(plain)
    axis.xaxis.set_minor_formatter(lambda value, _: plain(value, _) if f'{value:e}'[0] in '235' else '')
    axis.tick_params(which='minor', labelsize=8)
    axis.grid(alpha=0.25, which='both')
    axis.legend(loc='lower right', fontsize=9)
    for base, other, _ in speedups(panel.points):
        axis.annotate('', (other.seconds, other.top1), (base.seconds, base.top1), zorder=1, arrowprops=dict(
            arrowstyle='->', color='#555555', linewidth=0.9, linestyle=(0, (4, 2)), shrinkA=6, shrinkB=6))


def _write_labels(figure: Any, axis: Any, panel: Panel) -> None:
    """Put a label beside every point and arrow, wherever it covers nothing that is there already."""
    from matplotlib.transforms import Bbox
    place = axis.transData.transform
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in (
        place((point.seconds, point.top1)) for point in panel.points)]
    taken.append(axis.get_legend().get_window_extent())
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
        if not write(figure, axis, [(spot, (0, 0)) for spot in spots], f'{ratio:.1f}×', '#222222', taken, 9,
                     is_ratio=True):
            names[base] += f': {ratio:.1f}×'  # no room on its arrow: it is told with where the arrow begins
    for base, other, _ in pairs:
        taken += beads(place((base.seconds, base.top1)), place((other.seconds, other.top1)))
    for point in panel.points:
        median, least, most = point.latency
        write(figure, axis, [((median if y else most if x > 0 else least, point.top1), (scale * x, scale * y))
                             for scale in (1, 1.5, 2.2, 3) for x, y in AROUND[point.family]],
              names[point], FAMILIES[point.family], taken, 8)
