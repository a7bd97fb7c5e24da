"""Rows of a scaling study: a run each, and the points they are of."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from timm_rs.errors import UserError
from timm_rs.files import read_rows

COSTS = {'gmacs': 'GMACs', 'activations_m': 'activations', 'params_m': 'parameters', 'step_ms': 'time per update'}
WHOLE = {'seed': 0, 'img_size': 1, 'epochs': 1, 'eval_images': 1}  # and the least there is
REAL = ('params_m', 'gmacs', 'activations_m', 'step_ms', 'eval_top1', 'train_loss', 'eval_loss')
TEXT = ('run', 'series', 'regime')


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        run: its name.
        series: the series it belongs to, such as depth; the base of a study belongs to several.
        regime: what is compared with itself only, such as 'epochs=100 img_size=224'; may be empty.
        seed, img_size, epochs: of its recipe.
        params_m, activations_m: in millions.
        gmacs: multiply-adds of a forward pass, in billions; the FLOPs of the paper are twice this.
        step_ms: measured time of a training update; None where it was not measured.
        eval_top1: accuracy (%).
        eval_images: on how many images.
        train_loss, eval_loss: at the end; the first of augmented images, with label smoothing and the like.
        axes: what else the study varies, such as depth and width, as text.
    """

    run: str
    series: tuple[str, ...]
    regime: str
    seed: int
    img_size: int
    epochs: int
    params_m: float
    gmacs: float
    activations_m: float
    step_ms: float | None
    eval_top1: float
    eval_images: int
    train_loss: float
    eval_loss: float
    axes: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but the seed."""

    results: tuple[Result, ...]

    @property
    def one(self) -> Result:
        """Any of them, for what they share."""
        return self.results[0]

    @property
    def seeds(self) -> int:
        return len(self.results)

    @property
    def name(self) -> str:
        """What the study varies, such as 'depth=101 width=1.0 img_size=224'."""
        axes = [f'{axis}={value}' for axis, value in self.one.axes.items() if value]
        return ' '.join([*axes, f'img_size={self.one.img_size}'])

    @property
    def top1(self) -> float:
        """Accuracy (%), mean over seeds."""
        return fmean(result.eval_top1 for result in self.results)

    @property
    def error(self) -> float:
        """100 - top-1 (%), at least half an image, because its logarithm is needed."""
        return max(100 - self.top1, 50 / self.one.eval_images)

    @property
    def binomial(self) -> float:
        """Standard deviation of top-1 (percentage points) over other evaluation images, as many as there were."""
        images = self.one.eval_images
        share = (self.top1 / 100 * images + 1) / (images + 2)  # never 0 or 1, where the noise would seem to be none
        return 100 * math.sqrt(share * (1 - share) / images)

    def cost(self, name: str) -> float:
        """One of `COSTS`, the mean over seeds. Raises UserError where a run has none."""
        values = [getattr(result, name) for result in self.results]
        if None in values:
            run = self.results[values.index(None)].run
            raise UserError(f'{run} has no {name}: compare at another cost ({", ".join(COSTS)}), or measure it')
        return fmean(values)


def read_results(path: Path) -> list[Result]:
    """The rows of a study's results.csv. Columns that `Result` has not are axes.

    Raises:
        UserError: a file that cannot be read, a column that is missing, a value that is missing or cannot be true, a
            run, or a seed of a point, that is there twice.
    """
    rows = read_rows(path)
    if missing := [name for name in (*TEXT, *WHOLE, *REAL) if name not in rows[0]]:
        raise UserError(f'{path} has no column {missing[0]}: give the results.csv of a scaling study')
    results = [_read(row, f'{path} is damaged: row {number} ({row["run"]})') for number, row in enumerate(rows, 2)]
    seen: dict[object, int] = {}
    for number, result in enumerate(results, 2):
        for key in (result.run, (*_point(result), result.seed)):
            if key in seen:
                raise UserError(f'{path} is damaged: row {number} ({result.run}) repeats run, or point and seed, '
                                f'of row {seen[key]}: remove one')
            seen[key] = number
    return results


def _read(row: dict[str, str], where: str) -> Result:
    def number(column: str) -> float:
        try:
            value = float(row[column]) if column in REAL else int(row[column])
        except ValueError:
            value = math.nan
        least = WHOLE.get(column, -math.inf if 'loss' in column else 0)
        most = 100 if column == 'eval_top1' else math.inf
        if not least <= value <= most or math.isinf(value) or column in COSTS and not value:
            raise UserError(f"{where} has '{row[column]}' in column {column}")
        return value

    for column in ('run', 'series'):
        if not all(part.strip() for part in row[column].split('+')):
            raise UserError(f"{where} has '{row[column]}' in column {column}")
    return Result(
        run=row['run'], series=tuple(row['series'].split('+')), regime=row['regime'],
        step_ms=number('step_ms') if row['step_ms'] else None,
        axes={name: value for name, value in row.items() if name not in (*TEXT, *WHOLE, *REAL)},
        **{name: number(name) for name in (*WHOLE, *REAL) if name != 'step_ms'})  # type: ignore[arg-type]


def _point(result: Result) -> tuple[object, ...]:
    return (result.series, result.regime, result.img_size, result.epochs, result.params_m, result.gmacs,
            result.activations_m, tuple(result.axes.items()))


def points_of(results: Iterable[Result]) -> list[Point]:
    """The points that `results` are runs of, in the order in which they turn up."""
    points: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        points.setdefault(_point(result), []).append(result)
    return [Point(tuple(runs)) for runs in points.values()]


def by_regime(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by regime."""
    regimes: dict[str, list[Point]] = {}
    for point in points:
        regimes.setdefault(point.one.regime, []).append(point)
    return regimes


def by_training(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by what their regime says apart from the image size: those that can be compared across image sizes."""
    trainings: dict[str, list[Point]] = {}
    for point in points:
        words = [word for word in point.one.regime.split() if not word.startswith('img_size=')]
        trainings.setdefault(' '.join(words), []).append(point)
    return trainings


def by_series(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by series; one of several series stands in each."""
    series: dict[str, list[Point]] = {}
    for point in points:
        for name in point.one.series:
            series.setdefault(name, []).append(point)
    return series


def seed_variance(points: Iterable[Point], measure: Callable[[Result], float] = lambda result: result.eval_top1,
                  ) -> tuple[float, int]:
    """The variance of a run's `measure` over seeds, pooled over the points, and its degrees of freedom.

    Pooled, because two or three seeds alone say next to nothing. With one seed everywhere it is 0, of 0 degrees.
    """
    values = [[measure(result) for result in point.results] for point in points]
    freedom = sum(len(group) - 1 for group in values)
    squares = sum((value - fmean(group)) ** 2 for group in values for value in group)
    return (squares / freedom if freedom else 0.0), freedom


def standard_errors(points: Sequence[Point]) -> list[float]:
    """Of the top-1 of each point (percentage points): from the spread over seeds and the binomial error.

    The images are the same for all seeds, so more seeds do not reduce what the images bring: that is counted whole.
    """
    variance, _ = seed_variance(points)
    return [math.sqrt(variance / point.seeds + point.binomial ** 2) for point in points]
