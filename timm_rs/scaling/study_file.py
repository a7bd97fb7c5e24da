"""The file that says which models a scaling study trains: YAML, as strict as recipes.

```yaml
recipe: ../train_recipes/rs101.yaml   # what all runs share
base: {depth: 101, width: 1.0, data_dir: imagenet}   # on top of it: any key of a recipe, and depth, width, layers
design: series                        # from the base along one axis at a time; grid: every combination
axes:
  depth: [101, 200, 300, 400]
  width: [1.0, 1.5, 2.0]
regimes:                              # crossed with everything
  epochs: [10, 100, 350]
seeds: [42, 43, 44]
rules:                                # in this order, once the values above are known
  - {if: {epochs: [10, 100]}, set: {aa: null, smoothing: 0.0}}
```
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from timm_rs.files import SHIPPED
from timm_rs.recipe.declaring import RecipeError, knob, nearest
from timm_rs.recipe.knobs import FIELDS, fields_of, value_type
from timm_rs.recipe.reading import check_value, read_mapping

STUDIES = SHIPPED / 'studies'
MAX_RUNS = 10_000


@dataclasses.dataclass
class Sizes:
    """Keys that go into `model_kwargs`, for `resnetrs`."""

    depth: int = knob(50, 'depth of the grid of the scaling search', low=1)
    width: float = knob(1.0, 'multiplier of every channel count', above=0)
    layers: list[int] = knob([3, 4, 6, 3], 'blocks of the four stages, instead of a depth', nargs=4, low=1)


SIZES = fields_of(Sizes)
# What a study gives each run itself, and what to do instead of setting it.
OURS = dict.fromkeys(('output', 'experiment', 'resume'), 'the study names the folders of its runs') | dict(
    seed='write seeds: [42, 43] at the top level',
    model_kwargs='write depth, width or layers, and put all others into the recipe')


class Rule(NamedTuple):
    """Settings for those points that have one of the values of each key."""

    where: str
    values: dict[str, list[Any]]
    settings: dict[str, Any]


@dataclasses.dataclass
class Study:
    """What a study file says, checked; `read_study` makes it."""

    recipe: str = knob('', 'the recipe that all runs share: its path from the study file, or its name')
    design: str = knob('series', 'from the base along one axis at a time, or all combinations',
                       choices=('series', 'grid'))
    base: dict[str, Any] = knob({}, 'what all runs share on top of the recipe')
    axes: dict[str, list[Any]] = knob({}, 'values of each key along which models are scaled')
    regimes: dict[str, list[Any]] = knob({}, 'values of each key that is crossed with everything')
    seeds: list[int] = knob([42], 'each point is trained once with each', low=0, high=4_000_000_000)
    path: Path = Path()
    rules: list[Rule] = dataclasses.field(default_factory=list)


def find_study(name: str) -> Path:
    """The file called `name`; where there is none, the study of that name which comes with timm_rs, such as paper."""
    shipped = STUDIES / f'{name.removeprefix("studies/").removesuffix(".yaml")}.yaml'
    return shipped if not Path(name).is_file() and shipped.is_file() else Path(name)


def read_study(path: Path, overrides: dict[str, Any] | None = None) -> Study:
    """The study in the file at `path`, with `overrides` in place of values of its base.

    Raises:
        RecipeError: what `read_file` refuses of recipes, for the same reasons: unknown or repeated keys, values of the
            wrong type or out of range; the message names the file, the key and the remedy. Also a key that stands in
            two places, and more than 10,000 runs.
    """
    content = read_mapping(path, 'study')
    known = [*fields_of(Study), 'rules']
    if unknown := [f'unknown key {key}.{nearest(str(key), known)}' for key in content if key not in known]:
        raise RecipeError(f'{path}: {"; ".join(unknown)}')
    values = {name: check_value(name, content[name], str(path), Study) for name in fields_of(Study) if name in content}
    study = Study(**values, path=path)
    if not study.recipe:
        raise RecipeError(f'{path}: recipe is missing; name the recipe that all runs share')
    study.base = check_settings(study.base, f'{path}: base') | (overrides or {})
    for place in ('axes', 'regimes'):
        setattr(study, place, {key: _check_values(str(key), row, f'{path}: {place}')
                               for key, row in getattr(study, place).items()})
    study.seeds = _unlike('seeds', study.seeds, str(path))
    if twice := [key for key in study.axes if key in study.regimes]:
        raise RecipeError(f'{path}: {twice[0]} is an axis and a regime; delete one of the two')
    study.rules = [_read_rule(rule, f'{path}: rule {number}', study)
                   for number, rule in enumerate(_list_of_rules(content.get('rules'), path), start=1)]
    _check_number_of_runs(study)
    return study


def check_setting(key: str, value: Any, where: str) -> Any:
    """`value` in the type of a recipe's `key`, or of depth, width or layers. Raises RecipeError as `check_value`."""
    if key in OURS:
        raise RecipeError(f'{where}: {key} is not set here; {OURS[key]}')
    if key in SIZES:
        return check_value(key, value, where, Sizes)
    if key not in FIELDS:
        raise RecipeError(f'{where}: unknown key {key}.{nearest(str(key).replace("-", "_"), [*FIELDS, *SIZES])}')
    return check_value(key, value, where)


def check_settings(settings: dict[Any, Any], where: str) -> dict[str, Any]:
    return {str(key): check_setting(str(key), value, where) for key, value in settings.items()}


def _check_values(key: str, values: Any, where: str) -> list[Any]:
    """The values of an axis or a regime. `recipe` is a key here, too: other recipes than the one that is shared."""
    if not isinstance(values, list) or not values:
        raise RecipeError(f'{where}: {key} must be a list of values such as [1, 2], got {values!r}')
    if key == 'recipe':
        return _unlike(key, [check_value(key, value, where, Study) for value in values], where)
    return _unlike(key, [check_setting(key, value, where) for value in values], where)


def _unlike(key: str, values: list[Any], where: str) -> list[Any]:
    if not values or any(value in values[:index] for index, value in enumerate(values)):
        raise RecipeError(f'{where}: {key} must be a list of different values, got {values!r}')
    return values


def _list_of_rules(rules: Any, path: Path) -> Iterable[dict[str, Any]]:
    wanted = 'a list of lines such as - {if: {epochs: [10, 100]}, set: {drop: 0.0}}'
    if not isinstance(rules, (list, type(None))):
        raise RecipeError(f'{path}: rules must be {wanted}, got {rules!r}')
    for number, rule in enumerate(rules or (), start=1):
        if not isinstance(rule, dict) or rule.keys() != {'if', 'set'} or not all(
                isinstance(part, dict) and part for part in rule.values()):
            raise RecipeError(f'{path}: rule {number} must be of {wanted}, got {rule!r}')
        yield rule


def _read_rule(rule: dict[str, Any], where: str, study: Study) -> Rule:
    conditions = {}
    for key, value in rule['if'].items():
        is_list = key in FIELDS and value_type(key)[0] is list or key == 'layers'
        several = isinstance(value, list) and not (is_list and not any(isinstance(item, list) for item in value))
        conditions[str(key)] = [check_setting(str(key), item, where) for item in (value if several else [value])]
    settings = check_settings(rule['set'], where)
    if fixed := [key for key in settings if key in study.axes or key in study.regimes]:
        raise RecipeError(f'{where} sets {fixed[0]}, which the axes or regimes of the study decide; delete it here')
    return Rule(where, conditions, settings)


def _check_number_of_runs(study: Study) -> None:
    lengths = [len(values) for values in study.axes.values()]
    points = math.prod(lengths) if study.design == 'grid' else 1 + sum(lengths)
    runs = points * math.prod(len(values) for values in study.regimes.values()) * len(study.seeds)
    if runs > MAX_RUNS:
        raise RecipeError(f'{study.path} has {runs:,} runs, and at most {MAX_RUNS:,} are allowed: shorten its lists')
