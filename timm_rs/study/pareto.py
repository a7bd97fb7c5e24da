"""Accuracy against latency: what is dominated, and speed-ups at equal accuracy.

Accuracies are those published in the paper (`results/paper.csv`). The latencies of a panel have one source, which
its title names: measured here, measured by timm's author, or the paper's. `timm_rs.study.figure` draws the panels.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from timm_rs.errors import UserError
from timm_rs.files import read_rows
from timm_rs.study.paper import PAPER, published

BASE = 'EfficientNet'  # speed-ups are over this family
SAME_TOP1 = 0.2  # accuracies that differ by no more count as equal, as in the pairs of Table 7 (%)
PAPERS_CLOCKS = {'v100': ('v100_fp32_s', 'V100, fp32'), 'tpuv3': ('tpuv3_bf16_s', '8 TPUv3 cores, bf16')}
TIMM_COLUMNS = {work: (f'{work}_img_size', f'{work}_samples_per_sec') for work in ('train', 'infer')}
# The names that timm's author gives his files, such as benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv
TIMM_FILE = re.compile(r'benchmark-(train|infer)-(?P<precision>\w+)-(?P<layout>nchw|nhwc)-pt(?P<torch>\d{3,})'
                       r'(-cu\d+)?-(?P<hardware>.+?)(?P<compiled>-dynamo)?\.csv')


@dataclass(frozen=True)
class Point:
    """A model at an image size.

    Attributes:
        family: as in `results/paper.csv`.
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


@dataclass(frozen=True)
class Source:
    """A CSV of measurements.

    Attributes:
        path: the file.
        keep: only rows that have these values, by column.
        timm: whether it is of timm's benchmark.py instead of tools/benchmark.py.
    """

    path: Path
    keep: dict[str, str] = field(default_factory=dict)
    timm: bool = False


def paper_panel(clock: str, path: Path = PAPER) -> Panel:
    """The paper's own latencies: 'v100' or 'tpuv3'."""
    column, where = PAPERS_CLOCKS[clock]
    points = [_point(row, (float(row[column]),) * 3) for row in published(path).values() if row[column]]
    return Panel(f'not measured here: the paper\'s training step, {where}', points)


def measured_panels(sources: Iterable[Source], paper: Path = PAPER) -> tuple[list[Panel], list[str]]:
    """A panel for every kind of measurement: who measured, work, hardware, setup, precision, torch.

    Args:
        sources: the files. Of rows of the same point, the last counts.
        paper: where the accuracies come from.

    Returns:
        The panels, and the points that have no published accuracy.

    Raises:
        UserError: a file that is not of the tool it should come from, or of which no row is left.
    """
    accuracies = published(paper)
    kinds: dict[tuple[str, ...], dict[str, Point]] = {}
    unknown: dict[str, None] = {}
    for path, keep, timm in ((source.path, source.keep, source.timm) for source in sources):
        rows = _timm_rows(path, {name for name, _ in accuracies}) if timm else _own_rows(path)
        if rows and (missing := keep.keys() - rows[0].keys()):
            raise UserError(f'{path} has no column {min(missing)} to choose rows by')
        found = False
        for row in rows:
            if not row['latency_1024_s_median'] or any(row[key] != value for key, value in keep.items()):
                continue
            name = row['model'].partition('.')[0]
            known = accuracies.get((name, row['img_size']))
            if known is None:
                unknown[f'{name}@{row["img_size"]}'] = None
                continue
            found = True
            point = _point(known, _seconds(row, path))
            kinds.setdefault(_kind(row), {})[f'{point.family} {point.label}'] = point
        if not found:
            conditions = ''.join(f' and {key} {value}' for key, value in keep.items())
            raise UserError(f'{path} has no rows to draw: none with a latency, a published accuracy{conditions}')
    return [Panel(_title(kind), list(points.values())) for kind, points in kinds.items()], list(unknown)


def _own_rows(path: Path) -> list[dict[str, str]]:
    rows = read_rows(path)
    if missing := {'model', 'img_size', 'latency_1024_s_median'} - rows[0].keys():
        raise UserError(f'{path} has no column {min(missing)}: give a CSV of tools/benchmark.py train or infer')
    return rows


def _timm_rows(path: Path, models: set[str]) -> list[dict[str, str]]:
    """Rows of timm's benchmark.py in the columns of tools/benchmark.py, as far as they are of one of the `models`.

    What was measured on is in the name of the file, or where there is a column `file`, in that.
    """
    rows = read_rows(path)
    works = [work for work, columns in TIMM_COLUMNS.items() if {'model', *columns} <= rows[0].keys()]
    if not works:
        raise UserError(f"{path} lacks the columns of timm's benchmark.py: give a CSV with model, infer_img_size and "
                        'infer_samples_per_sec, or the same of train')
    found = []
    for row in rows:
        name = re.sub(r'^resnetrs(?=\d)', 'resnetrs_', (row['model'] or '').partition('.')[0])
        if name not in models:
            continue
        for work in works:
            size, rate = (row[column] for column in TIMM_COLUMNS[work])
            if not rate:  # a model that failed, or a file that has the other kind of work in this row
                continue
            try:
                seconds = 1024 / float(rate)
            except (ValueError, ZeroDivisionError):
                seconds = math.nan
            if not 0 < seconds < math.inf:
                raise UserError(f"{path} is damaged: {row['model']}@{size} has {rate} images per second")
            latency = {f'latency_1024_s_{one}': repr(seconds) for one in ('median', 'min', 'max')}  # there is no spread
            found.append(row | timm_setup(row.get('file') or path.name) | latency
                         | dict(model=name, img_size=size, work=work))
    return found


def timm_setup(name: str) -> dict[str, str]:
    """What the name of a file of timm's benchmarks says, by column; of another name, no more than that name."""
    match = TIMM_FILE.fullmatch(name)
    if not match:
        return dict(measured="with timm's benchmark.py", hardware=name, setup='', precision='', torch='')
    digits = match['torch']  # 112 is 1.12, 240 is 2.4.0
    return dict(
        measured="by timm's author", hardware=re.sub(r'^(rtx)?(?=\d{4}$)', 'RTX ', match['hardware']),
        setup=match['layout'] + ('+compile' if match['compiled'] else ''), precision=match['precision'],
        torch=f'1.{digits[1:]}' if digits[0] == '1' else f'{digits[0]}.{digits[1:-1]}.{digits[-1]}')


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
    return (row.get('measured') or 'here', *(
        row.get(name) or '' for name in ('work', 'hardware', 'setup', 'precision', 'torch')))


def _title(kind: tuple[str, ...]) -> str:
    measured, work, hardware, setup, precision, torch = kind
    step = dict(train='training step', infer='inference').get(work, work)
    parts = step, precision, setup.replace('+', ' + '), torch and f'torch {torch}'
    return f'measured {measured}: {", ".join(filter(None, parts))}\n{hardware}'


def _point(row: dict[str, str], latency: tuple[float, ...]) -> Point:
    size = row['model'].rpartition('_')[2].upper()
    median, least, most = latency
    return Point(row['family'], f'{size}@{row["img_size"]}', (median, least, most), float(row['top1']),
                 row['top1_is'] == 'digitised')


def pareto(costs: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Places of the points for which no other is at most as costly and at most as wrong, and better in one of both."""
    return [place for place, point in enumerate(zip(costs, errors, strict=True)) if not any(
        other[0] <= point[0] and other[1] <= point[1] and other != point
        for other in zip(costs, errors, strict=True))]


def dominated(points: Sequence[Point]) -> set[Point]:
    """Points for which another is at least as good in accuracy and latency, and better in one."""
    best = pareto([point.seconds for point in points], [-point.top1 for point in points])
    return set(points) - {points[place] for place in best}


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
