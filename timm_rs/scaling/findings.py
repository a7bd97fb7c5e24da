"""What the finished runs of a study say: sentences, figures, and a family of models as recipes."""

import re
from collections.abc import Sequence
from pathlib import Path

from timm_rs.errors import UserError
from timm_rs.files import atomic_write, make_folder
from timm_rs.recipe.reading import to_yaml
from timm_rs.scaling.collect import write_results
from timm_rs.scaling.points import Point
from timm_rs.study.family import choose_family
from timm_rs.study.results import Result, by_training, points_of, read_results
from timm_rs.study.scaling_figure import draw_power_law, draw_series
from timm_rs.study.sentences import sentences


def report(folder: Path, points: list[Point], cost: str) -> list[str]:
    """Write results.csv, power_law.png and series.png into the folder of a study; returns what it says, in sentences.

    `cost` is that at which series are compared. Raises UserError where no run is finished, or one has no such cost.
    """
    results = _read(folder, points)
    lines = [f'{len(results)} of {len(points)} runs are finished', *sentences(results, cost)]
    names = dict.fromkeys(_data_of(point) for point in points)
    data = ', '.join(filter(None, names)) or 'data'
    draw_power_law(results, folder / 'power_law.png', data)
    draw_series(results, folder / 'series.png', data, cost)
    return [*lines, f'figures: {folder / "power_law.png"}, {folder / "series.png"}']


def write_family(folder: Path, points: list[Point], budgets: Sequence[float], cost: str) -> list[str]:
    """Write the recipe of the best finished point within each of `budgets` into family/; returns a table as lines.

    Each length of training, and whatever else of a regime is not the image size, has a family of its own. Raises
    UserError where no run is finished, one has no such cost, or a budget is too small for all.
    """
    recipes = {point.name: point.recipe for point in points}
    make_folder(folder / 'family')
    lines = []
    for training, group in by_training(points_of(_read(folder, points))).items():
        family = choose_family(group, budgets, cost)
        lines += [f'{training or "all runs"}:', f'  {cost} up to   has  top-1 (%)  recipe']
        for number, (budget, member) in enumerate(family.members, start=1):
            beginning = re.sub('[^0-9A-Za-z.-]+', '_', training)
            path = folder / 'family' / f'{beginning}{"-" * bool(beginning)}{number}.yaml'
            with atomic_write(path, encoding='utf-8') as file:
                file.write(to_yaml(recipes[member.one.run]))
            lines.append(f'  {budget:>{len(cost) + 6}g}  {member.cost(cost):>6.4g}  {member.top1:>9.2f}  {path}: '
                         f'{member.name}')
        lines += [f'  {point.name} is dominated by {better.name}' for point, better in family.dominated]
    return lines


def _read(folder: Path, points: list[Point]) -> list[Result]:
    if not write_results(folder, points):
        raise UserError(f'no run in {folder} is finished yet: start them with tools/scaling.py run')
    return read_results(folder / 'results.csv')


def _data_of(point: Point) -> str:
    recipe = point.recipe
    return recipe.dataset or (Path(recipe.data_dir).name if recipe.data_dir else recipe.builtin_data)
