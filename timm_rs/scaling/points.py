"""The runs that a study asks for, each with a recipe of its own."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.foreign import check_code
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import as_yaml, read_file
from timm_rs.scaling.study_file import SIZES, Rule, Study

SHORT = dict(depth='d', width='w', layers='l', img_size='i', epochs='e', seed='s')  # of names, which always have these
BASE_OF_ALL, SEVERAL = '+', '*'  # between names of series: the point belongs to each; to a series of its own


class Point(NamedTuple):
    """One run of a study.

    `series` names the axes along which it differs from the base: 'depth', 'depth*width' in a grid. The base itself
    belongs to all: 'depth+width'. An axis `layers` is called depth. `regime` is text such as 'epochs=100 img_size=224'.
    """

    name: str
    recipe: Recipe
    series: str
    regime: str
    axes: dict[str, Any]


def create_points(study: Study) -> list[Point]:
    """All runs of a study, in its order: regimes, then models, then seeds.

    Raises RecipeError for a recipe that cannot be read, an axis of which the base has no value, a rule that is for none
    of the points, two points of one name, and a recipe whose runs cannot be compared.
    """
    points, used, recipes = [], set[str](), _read(study)
    for regime in _combinations(study.regimes):
        base = _values(study, recipes, regime)
        at_base = {axis: _value_of(study, base, axis) for axis in study.axes}
        for changes in _models(study, at_base):
            values = _values(study, recipes, changes | regime)
            for rule in study.rules:
                if _holds(rule, values):
                    values = _with(values, rule.settings)
                    used.add(rule.where)
            check_code(study.path, values, trusted=False)
            for seed in study.seeds:
                points.append(_point(study, values | dict(seed=seed), at_base, changes, regime))
    if idle := [rule.where for rule in study.rules if rule.where not in used]:
        raise RecipeError(f'{idle[0]} is for none of the points: correct its values, or delete it')
    names = [point.name for point in points]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f'{study.path}: two points would be called {twice[0]}: give values that differ in letters '
                          'and digits')
    return points


def _combinations(values: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def _models(study: Study, at_base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each model has instead of the base's values; nothing for the base itself."""
    def changed(chosen: dict[str, Any]) -> dict[str, Any]:
        return {axis: value for axis, value in chosen.items() if value != at_base[axis]}
    if study.design == 'grid':
        yield from map(changed, _combinations(study.axes))
        return
    yield {}
    for axis, values in study.axes.items():
        yield from filter(None, (changed({axis: value}) for value in values))


def _values(study: Study, recipes: dict[str, dict[str, Any]], chosen: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe, before the rules: the recipe's, the base's, then those `chosen` of axes and regimes."""
    own = {key: value for key, value in chosen.items() if key != 'recipe'}
    return _with(_with(recipes[chosen.get('recipe', study.recipe)], study.base), own)


def _read(study: Study) -> dict[str, dict[str, Any]]:
    """The values of each recipe that a study names."""
    names = [study.recipe, *study.axes.get('recipe', ()), *study.regimes.get('recipe', ())]
    beside = {name: study.path.parent / name for name in names}
    return {name: read_file(path if path.is_file() else name) for name, path in beside.items()}


def _with(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`values` of a recipe with others in their place; depth, width and layers are arguments of its model."""
    arguments = dict(values.get('model_kwargs') or {})
    for key in (key for key in SIZES if key in settings):
        arguments.pop(dict(layers='depth', depth='layers').get(key, ''), None)  # either sets the blocks
        arguments[key] = settings[key]
    own = {key: value for key, value in settings.items() if key not in SIZES}
    return values | own | (dict(model_kwargs=arguments) if arguments else {})


def _value_of(study: Study, values: dict[str, Any], key: str) -> Any:
    if key == 'recipe':
        return study.recipe
    if key not in SIZES:
        return values.get(key, getattr(Recipe(), key))
    if key not in (values.get('model_kwargs') or {}):
        raise RecipeError(f'{study.path}: {key} is an axis, and the base has none; give it one, such as '
                          f'base: {{{key}: {as_yaml(study.axes[key][0])}}}')
    return values['model_kwargs'][key]


def _holds(rule: Rule, values: dict[str, Any]) -> bool:
    def value(key: str) -> Any:
        return (values.get('model_kwargs') or {}).get(key) if key in SIZES else values.get(key, getattr(Recipe(), key))
    return all(value(key) in wanted for key, wanted in rule.values.items())


def _point(study: Study, values: dict[str, Any], at_base: dict[str, Any], changes: dict[str, Any],
           regime: dict[str, Any]) -> Point:
    recipe = Recipe(**values | dict(output='', experiment='', resume=''))
    if recipe.task != 'classification' or not recipe.val_split or recipe.eval_metric != 'top1':
        raise RecipeError(f'{study.path}: a study compares top-1 accuracies: its recipe needs task: classification, '
                          'eval_metric: top1 and a val_split')
    if recipe.patience:
        raise RecipeError(f'{study.path}: a study compares runs of full length: leave out patience')
    names = ['depth' if axis == 'layers' else axis for axis in study.axes]
    differs = ['depth' if axis == 'layers' else axis for axis in study.axes if axis in changes]
    return Point(
        _create_name(recipe, changes | regime, study), recipe,
        SEVERAL.join(dict.fromkeys(differs)) or BASE_OF_ALL.join(dict.fromkeys(names)),
        ' '.join(f'{key}={as_yaml(value)}' for key, value in regime.items()), at_base | changes)


def _create_name(recipe: Recipe, chosen: dict[str, Any], study: Study) -> str:
    """Such as d101-w1.5-i224-e100-s42. What models and recipes usually have stands in every name.

    So a run keeps its name when the study gets another axis of that kind.
    """
    usual = {key: value for key in SHORT if (value := recipe.model_kwargs.get(key, getattr(recipe, key, None)))}
    others = {key: chosen.get(key, getattr(recipe, key, study.recipe)) for key in (*study.axes, *study.regimes)
              if key not in SHORT}
    if 'recipe' in others:
        others['recipe'] = Path(others['recipe']).stem
    parts = [f'{SHORT[key]}{_plain(value)}' for key, value in usual.items() if key != 'seed']
    return '-'.join([*parts, *(f'{key}_{_plain(value)}' for key, value in others.items()), f's{recipe.seed}'])


def _plain(value: Any) -> str:
    """A value as letters, digits, dots and dashes, which every file system takes."""
    text = '.'.join(map(str, value)) if isinstance(value, list) else as_yaml(value)
    return re.sub(r'[^\w.+-]+', '_', text).strip('_')
