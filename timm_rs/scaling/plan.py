"""What the runs of a study will cost, before anything runs."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import resolve_data_config

from timm_rs.device import create_device
from timm_rs.errors import UserError, blaming
from timm_rs.files import atomic_write, make_folder, write_csv
from timm_rs.models.complexity import Complexity, measure_complexity
from timm_rs.progress import track
from timm_rs.recipe.knobs import FIELDS, Recipe
from timm_rs.recipe.reading import to_yaml
from timm_rs.scaling.points import Point
from timm_rs.tasks import create_task
from timm_rs.training.build import build_data, create_network, has_fixed_size
from timm_rs.training.schedule import create_num_epochs

PASSES = 3  # of training, in forward passes: backward costs two


class Counts(NamedTuple):
    """Images in an epoch of training, images of evaluation, classes."""

    images: int
    eval_images: int
    classes: int


class Planned(NamedTuple):
    """A run and its cost: of one image in evaluation, and the FLOPs of its training.

    `problem` says why there is none: the model cannot be built.
    """

    point: Point
    counts: Counts
    img_size: int = 0
    epochs: int = 0
    cost: Complexity = Complexity(0, 0, 0, {})
    problem: str = ''

    @property
    def train_flops(self) -> float:
        return float(PASSES * 2 * self.cost.macs * self.counts.images * self.epochs)

    def row(self) -> dict[str, Any]:
        """Its row in plan.csv, in the names of results.csv."""
        return dict(
            run=self.point.name, img_size=self.img_size, epochs=self.epochs, params_m=self.cost.params / 1e6,
            gmacs=self.cost.macs / 1e9, activations_m=self.cost.activations / 1e6, train_flops=self.train_flops,
            images=self.counts.images, eval_images=self.counts.eval_images)


def create_plan(points: list[Point]) -> list[Planned]:
    """The cost of each point, counted without computing. Raises UserError when the data cannot be opened."""
    costs = _Costs()
    return [costs.create_planned(point) for point in track(points, 'counting', total=len(points))]


class _Costs:
    """What many points of a study share, found once: counts by data, networks, costs by network and image size."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self.networks: dict[str, Any] = {}
        self.costs: dict[str, Complexity] = {}

    def create_planned(self, point: Point) -> Planned:
        recipe = point.recipe
        data = repr([getattr(recipe, name) for name in OF_DATA])
        if data not in self.counts:
            self.counts[data] = create_counts(recipe)
        counts = self.counts[data]
        # What changes neither size nor shape, and pretrained weights, would only cost time.
        recipe = dataclasses.replace(recipe, num_classes=counts.classes, drop=0.0, drop_path=None, pretrained=False,
                                     pretrained_path=None, initial_checkpoint='')
        planned = Planned(point, counts, epochs=create_num_epochs(recipe))
        try:
            cost, size = self._create_cost(recipe)
        except UserError as error:
            return planned._replace(problem=str(error))
        return planned._replace(cost=cost, img_size=size)

    def _create_cost(self, recipe: Recipe) -> tuple[Complexity, int]:
        key = repr([getattr(recipe, name) for name in OF_NETWORK if name not in OF_SIZE])
        network = self.networks.get(key)
        if network is None or has_fixed_size(network):
            with torch.device('meta'):
                network, _ = create_network(recipe, create_task(recipe))
            self.networks[key] = network
        size = resolve_data_config(dataclasses.asdict(recipe), model=network)['input_size']
        if (sized := f'{key} {size}') not in self.costs:
            channels = recipe.channels or network.pretrained_cfg['input_size'][0]
            with blaming(f'model {recipe.model} cannot take images of {size[-1]} px'):
                self.costs[sized] = measure_complexity(network, (size[1], size[2]), channels)
        return self.costs[sized], size[-1]


def _section(*titles: str) -> list[str]:
    """The knobs of these sections of a recipe, in order."""
    names, title = [], ''
    for name, field in FIELDS.items():
        title = field.metadata['section'] or title
        names += [name] if title in titles else []
    return names


OF_DATA = [*_section('Data', 'Only in timm_rs'), 'num_classes']
OF_NETWORK, OF_SIZE = _section('Model'), ('img_size', 'input_size')


def create_counts(recipe: Recipe) -> Counts:
    """As the recipe says, or else its data. Raises UserError when neither does, or the data cannot be opened."""
    said: tuple[int | None, ...] = recipe.train_num_samples, recipe.val_num_samples, recipe.num_classes
    if None in said:
        with contextlib.redirect_stdout(sys.stderr):  # what is said of data is no part of a table or of commands
            train, validation, filled = build_data(recipe, create_task(recipe), create_device('cpu'))
        found = getattr(train, 'epoch_length', None) or _length(train), _length(validation), filled.num_classes
        said = tuple(mine or theirs for mine, theirs in zip(said, found, strict=True))
    if None in said:
        raise UserError('how many images and classes the data has is not known before it is read: give '
                        'train_num_samples, val_num_samples and num_classes in the base of the study')
    return Counts(*said)  # type: ignore[arg-type]


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:  # streams do not know
        return None


def write_plan(folder: Path, plan: Iterable[Planned]) -> None:
    """Write FOLDER/recipes/NAME.yaml for each run, and plan.csv. Raises OSError where that cannot be written."""
    make_folder(folder / 'recipes')
    for planned in plan:
        path, text = folder / f'recipes/{planned.point.name}.yaml', to_yaml(planned.point.recipe)
        if not path.is_file() or path.read_bytes() != text.encode():
            with atomic_write(path, encoding='utf-8') as file:
                file.write(text)
    write_csv(folder / 'plan.csv', (planned.row() for planned in plan))


def table(plan: list[Planned], flops_per_second: float | None, step_ms: dict[str, float]) -> list[str]:
    """The plan as lines for people, with a sum.

    Hours are of `step_ms`, the measured milliseconds of an update by the name of a run, or else of `flops_per_second`.
    """
    heading = ('run', 'series', 'GMACs', 'M params', 'M activations', 'training FLOPs', 'hours')
    rows, total = [], 0.0
    for planned in plan:
        hours = hours_of(planned, flops_per_second, step_ms.get(planned.point.name))
        total += hours or 0.0
        rows.append((
            planned.point.name, planned.point.series, f'{planned.cost.macs / 1e9:.4g}',
            f'{planned.cost.params / 1e6:.4g}', f'{planned.cost.activations / 1e6:.4g}', f'{planned.train_flops:.3g}',
            '' if hours is None else f'{hours:.3g}'))
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = ['  '.join(f'{cell:<{width}}' if column < 2 else f'{cell:>{width}}'
                       for column, (cell, width) in enumerate(zip(cells, widths, strict=True))).rstrip()
             for cells in (heading, *rows)]
    flops = sum(planned.train_flops for planned in plan)
    return [*lines, f'{len(plan)} runs, {flops:.3g} FLOPs of training' + (
        f', {total:.3g} hours one after the other' if total else
        '; --flops-per-second says how many your hardware sustains, for hours')]


def hours_of(planned: Planned, flops_per_second: float | None, step_ms: float | None) -> float | None:
    if step_ms is not None:
        updates = planned.epochs * -(-planned.counts.images // planned.point.recipe.images_per_update(1))
        return updates * step_ms / 3.6e6
    return planned.train_flops / flops_per_second / 3600 if flops_per_second else None
