"""Accuracy against latency as a figure: a line per family, what is dominated in grey, speed-ups at equal accuracy.

Accuracies are those published in the paper (`results/paper.csv`), and the figure says so. Latencies are either all
measured here or all the paper's: a panel never has both.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_rs.atomic import atomic_write
from timm_rs.errors import UserError

PAPER = Path(__file__).parents[1] / 'results/paper.csv'  # in a checkout
FAMILIES = {'EfficientNet': '#3b6fb6', 'ResNet-RS': '#c8553d', 'EfficientNet-RS': '#4d9a5b'}  # and their colours
BASE = 'EfficientNet'  # speed-ups are over this family
SAME_TOP1 = 0.2  # accuracies that differ by no more count as equal, as in the pairs of Table 7 (%)
PAPERS_CLOCKS = {'v100': ('v100_fp32_s', 'V100, fp32'), 'tpuv3': ('tpuv3_bf16_s', '8 TPUv3 cores, bf16')}
GREY = '#9a9a9a'
# Where labels go, best first: 1/72 inch to the right and up. The quicker families are on the left.
_LEFT = [(-6, 4), (-5, 8), (-9, 0), (0, 9), (6, -6), (9, 0), (0, -9), (-6, -6), (6, 6)]
_RIGHT = [(6, -4), (5, -8), (9, 0), (0, -9), (-6, 6), (-9, 0), (0, 9), (6, 6), (-6, -6)]
AROUND = {'EfficientNet': _RIGHT, 'ResNet-RS': _LEFT, 'EfficientNet-RS': _LEFT}


@dataclass(frozen=True)
class Point:
    """A model at an image size.

    Attributes:
        family: of `FAMILIES`.
        label: such as 152@224.
        latency: seconds for 1024 images: median, least, greatest.
        top1: accuracy on ImageNet (%), as published.
        digitised: whether that was read off a figure.
    """
    family: str
    label: str
    latency: tuple[float, float, float]
    top1: float
    digitised: bool = False

    @property
    def seconds(self) -> float:
        return self.latency[0]


@dataclass(frozen=True)
class Panel:
    """Points whose latencies can be compared, and what they are."""

    title: str
    points: list[Point]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV. Raises UserError when there are none, or they cannot be read."""
    try:
        with open(path, newline='', encoding='utf-8') as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from error
    if not rows:
        raise UserError(f'{path} has no rows')
    return rows


def published(path: Path = PAPER) -> dict[tuple[str, str], dict[str, str]]:
    """The paper's rows by model and image size; Table 7 and Figure 5, of which Table 3 is a rounded part."""
    return {(row['model'], row['img_size']): row for row in read_rows(path) if row['source'] != 'Table 3'}


def paper_panel(clock: str, path: Path = PAPER) -> Panel:
    """The paper's own latencies: 'v100' or 'tpuv3'."""
    column, where = PAPERS_CLOCKS[clock]
    points = [_point(row, (float(row[column]),) * 3) for row in published(path).values() if row[column]]
    return Panel(f'not measured here: the paper\'s training step, {where}', points)


def measured_panels(paths: Iterable[Path], keep: dict[str, str] | None = None, paper: Path = PAPER,
                    ) -> tuple[list[Panel], list[str]]:
    """A panel for every kind of measurement in CSVs of tools/benchmark.py: work, hardware, setup, precision.

    Args:
        paths: the files. Of rows of the same point, the last counts.
        keep: only rows that have these values, by column.
        paper: where the accuracies come from.

    Returns:
        The panels, and the points that have no published accuracy.

    Raises:
        UserError: a file that is none of that tool, or none of the rows left.
    """
    accuracies = published(paper)
    kinds: dict[tuple[str, ...], dict[str, Point]] = {}
    unknown: dict[str, None] = {}
    for path in paths:
        rows = read_rows(path)
        if missing := {'model', 'img_size', 'latency_1024_s_median'} - rows[0].keys():
            raise UserError(f'{path} has no column {min(missing)}: give a CSV of tools/benchmark.py train or infer')
        for row in rows:
            if not row['latency_1024_s_median'] or any(row.get(key) != value for key, value in (keep or {}).items()):
                continue
            name = row['model'].partition('.')[0]
            known = accuracies.get((name, row['img_size']))
            if known is None:
                unknown[f'{name}@{row["img_size"]}'] = None
                continue
            point = _point(known, _seconds(row, path))
            kinds.setdefault(_kind(row), {})[f'{point.family} {point.label}'] = point
    if not kinds:
        raise UserError('no rows to draw: none with a latency, a published accuracy'
                        + (f' and {", ".join(f"{key} {value}" for key, value in keep.items())}' if keep else ''))
    return [Panel(_title(kind), list(points.values())) for kind, points in kinds.items()], list(unknown)


def _seconds(row: dict[str, str], path: Path) -> tuple[float, float, float]:
    try:
        median, least, most = (float(row[f'latency_1024_s_{name}']) for name in ('median', 'min', 'max'))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged: the latency of {row["model"]}@{row["img_size"]} is no number') from error
    if not 0 < least <= median <= most:
        raise UserError(f'{path} is damaged: {row["model"]}@{row["img_size"]} has the latencies {least}, {median} and '
                        f'{most}')
    return median, least, most


def _kind(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row.get(name) or '' for name in ('work', 'hardware', 'setup', 'precision'))


def _title(kind: tuple[str, ...]) -> str:
    work, hardware, setup, precision = kind
    step = dict(train='training step', infer='inference').get(work, work)
    return f'measured here: {step}, {precision}, {setup.replace("+", " + ")}\n{hardware}'


def _point(row: dict[str, str], latency: tuple[float, ...]) -> Point:
    size = row['model'].rpartition('_')[2].upper()
    median, least, most = latency
    return Point(row['family'], f'{size}@{row["img_size"]}', (median, least, most), float(row['top1']),
                 row['top1_is'] == 'digitised')


def dominated(points: Sequence[Point]) -> set[Point]:
    """Points for which another is at least as good in accuracy and latency, and better in one."""
    return {point for point in points if any(
        other.top1 >= point.top1 and other.seconds <= point.seconds
        and (other.top1, other.seconds) != (point.top1, point.seconds) for other in points)}


def speedups(points: Sequence[Point]) -> list[tuple[Point, Point, float]]:
    """(EfficientNet, ResNet-RS, how many times faster the latter is) for pairs of equal accuracy.

    For every EfficientNet the ResNet-RS nearest in accuracy, the faster of two, if it is within `SAME_TOP1`. Below 1
    it is slower.
    """
    pairs = []
    for base in sorted((point for point in points if point.family == BASE), key=lambda point: point.top1):
        equals = [point for point in points
                  if point.family == 'ResNet-RS' and abs(point.top1 - base.top1) <= SAME_TOP1 + 1e-9]
        if equals:
            other = min(equals, key=lambda point: (round(abs(point.top1 - base.top1), 6), point.seconds))
            pairs.append((base, other, base.seconds / other.seconds))
    return pairs


# ---- the figure -------------------------------------------------------------------------------------------------

def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the figure to `path`, a .png or .svg. Raises UserError when it cannot be written."""
    if path.suffix not in ('.png', '.svg'):
        raise UserError(f'{path}: give a file that ends with .png or .svg')
    import matplotlib
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
    picture = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': 'timm_rs'}):
        figure.savefig(picture, format=path.suffix[1:], metadata=dict(Date=None) if path.suffix == '.svg' else None)
    try:
        with atomic_write(path, 'wb') as file:
            file.write(picture.getvalue())
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error


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
    axis.xaxis.set_major_formatter(_plain)
    axis.xaxis.set_minor_formatter(lambda value, _: _plain(value, _) if f'{value:e}'[0] in '235' else '')
    axis.tick_params(which='minor', labelsize=8)
    axis.grid(alpha=0.25, which='both')
    axis.legend(loc='lower right', fontsize=9)
    for base, other, _ in speedups(panel.points):
        axis.annotate('', (other.seconds, other.top1), (base.seconds, base.top1), zorder=1, arrowprops=dict(
            arrowstyle='->', color='#555555', linewidth=0.9, linestyle=(0, (4, 2)), shrinkA=6, shrinkB=6))


def _plain(value: float, _: Any) -> str:
    return f'{value:g}'


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
            taken += _beads(place((one.seconds, one.top1)), place((two.seconds, two.top1)))
    pairs = speedups(panel.points)
    for base, other, ratio in pairs:  # on their arrows, or beside those that are too short
        spots = [(base.seconds ** share * other.seconds ** (1 - share), base.top1 * share + other.top1 * (1 - share))
                 for share in (0.5, 0.6, 0.4, 0.7, 0.3)]
        on, beside = [(spot, (0, 0)) for spot in spots], [(spots[0], (0, y)) for y in (12, -12, 20, -20, 30, -30)]
        _write(figure, axis, on + beside, f'{ratio:.1f}×', '#222222', taken, 9, on_white=True)
    for base, other, _ in pairs:
        taken += _beads(place((base.seconds, base.top1)), place((other.seconds, other.top1)))
    for point in panel.points:
        where = (point.seconds, point.top1)
        _write(figure, axis, [(where, (scale * x, scale * y)) for scale in (1, 1.5, 2.2, 3)
                              for x, y in AROUND[point.family]], point.label, FAMILIES[point.family], taken, 8)


def _beads(start: Any, end: Any) -> list[Any]:
    from matplotlib.transforms import Bbox
    (x, y), (width, height) = start, end - start
    steps = max(2, int((width ** 2 + height ** 2) ** 0.5 / 6))
    return [Bbox.from_bounds(x + width * step / steps - 1, y + height * step / steps - 1, 2, 2)
            for step in range(1, steps)]


def _write(figure: Any, axis: Any, spots: Sequence[tuple[Any, tuple[float, float]]], words: str, colour: str,
           taken: list[Any], size: int, on_white: bool = False) -> None:
    """Write `words` at that of the `spots` (data, and how far off in 1/72 inch) where they cover least of `taken`."""
    frame = axis.get_window_extent()
    texts: list[tuple[int, int, Any, Any]] = []
    for where, (x, y) in spots:
        text = axis.annotate(
            words, where, (x, y), textcoords='offset points', color=colour, fontsize=size, zorder=4,
            fontweight='bold' if on_white else 'normal',
            bbox=dict(boxstyle='square,pad=0.15', facecolor='white', edgecolor='none') if on_white else None,
            ha='left' if x > 0 else 'right' if x < 0 else 'center',
            va='bottom' if y > 0 else 'top' if y < 0 else 'center')
        box = text.get_window_extent(figure.canvas.get_renderer())
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        texts.append((sum(box.overlaps(other) for other in taken) + 9 * outside, len(texts), text, box))
    _, chosen, _, box = min(texts, key=lambda entry: entry[:2])
    for _, number, text, _ in texts:
        if number != chosen:
            text.remove()
    taken.append(box)
