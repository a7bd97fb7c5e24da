"""Recipes as YAML, in and out, and their values checked.

A recipe is a flat YAML file whose keys are the argument names of timm's `train.py`, so the same file runs there
(`--config`) and here (`--recipe`). What only our trainer can do sits in one nested block, `timm_rs:`.
"""

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from timm_rs.files import RECIPES
from timm_rs.recipe.knobs import BLOCK, FIELDS, Recipe, RecipeError, fields_of, nearest, value_type
from timm_rs.recipe.timm_options import changes_nothing, is_of_timm, refusal

# ---- values -----------------------------------------------------------------------------------------------------

def check_value(name: str, value: Any, where: str, declared: type = Recipe) -> Any:
    """`value` in the type of a knob that a dataclass declares.

    Raises `RecipeError` that says what is wrong, `where`, and what to write.
    """
    field, (kind, element, optional) = fields_of(declared)[name], value_type(name, declared)
    if value is None:
        if optional:
            return None
        raise RecipeError(f'{where}: {name} is empty; give it a value or delete the line')
    if kind is list:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f'{where}: {name} must be a list such as [{_example(element)}], got {value!r}')
        value = [_scalar(name, element, item, where) for item in value]
        if field.metadata['nargs'] and len(value) != field.metadata['nargs']:
            raise RecipeError(f'{where}: {name} needs {field.metadata["nargs"]} values, got {len(value)}')
        numbers = value
    else:
        value = _scalar(name, kind, value, where)
        numbers = [value]
    low, high, choices = (field.metadata[key] for key in ('low', 'high', 'choices'))
    if choices and value not in choices:
        shown = ', '.join(repr(choice) for choice in choices)
        raise RecipeError(f'{where}: {name} must be one of {shown}, got {value!r}.{nearest(str(value), choices)}')
    for number in numbers:
        if low is not None and number < low or high is not None and number > high:
            bounds = f'at least {low}' if high is None else f'between {low} and {high}'
            raise RecipeError(f'{where}: {name} must be {bounds}, got {number}')
    return value


def _scalar(name: str, kind: type | None, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is not None and type(value) is kind:
        return value
    hint = ''
    if kind in (int, float) and isinstance(value, str) and _is_number(value):
        hint = f'; write {as_yaml(float(value))} (YAML 1.1 reads {value} as text: an exponent needs a dot before it)'
    wanted = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text', dict: 'a mapping'}
    raise RecipeError(f'{where}: {name} must be {wanted.get(kind or str)}, got {value!r}{hint}')


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _example(element: type | None) -> str:
    return {int: '1, 2', float: '0.1, 1.0'}.get(element or str, 'a, b')


# ---- the file ---------------------------------------------------------------------------------------------------

class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (YAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in seen:
                raise RecipeError(f'{self.name}:{line}: {key} is written twice (first in line {seen[key]})')
            seen[key] = line
        return super().construct_mapping(node, deep)


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """The file called `name`; where there is none, the recipe of that name which comes with timm_rs, such as rs50.

    Names may be written as in a checkout, too: train_recipes/rs50.yaml. What is neither is returned as a path.
    """
    path = Path(name)
    return path if path.is_file() else _shipped().get(_plain(path), path)


def _shipped() -> dict[str, Path]:
    return {_plain(path.relative_to(RECIPES)): path for path in sorted(RECIPES.rglob('*.yaml'))}


def _plain(path: Path) -> str:
    return path.as_posix().removeprefix('train_recipes/').removesuffix('.yaml')


def read_file(path: str | os.PathLike[str], say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The checked values of a recipe file, flat (the block's keys beside the others); `find_recipe` says which.

    An args.yaml of timm's train.py is a recipe, too: options that we do not have are left out where they are at timm's
    default, and `say` hears which.

    Raises:
        RecipeError: a missing or unreadable file, bad YAML, unknown, hyphenated, misplaced or repeated keys, or a
            value of the wrong type or out of range; the message names the file, the keys and the remedy.
    """
    path = find_recipe(path)
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        beside = sorted(str(other) for other in path.parent.glob('*.yaml'))
        hint = nearest(str(path), beside) or nearest(_plain(path), _shipped())
        raise RecipeError(f'recipe {path} does not exist.{hint}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f'recipe {path} cannot be read: {error}') from None
    loader = _StrictLoader(text)
    loader.name = str(path)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        raise RecipeError(f'recipe {path} is not valid YAML: {" ".join(str(error).split())}') from None
    if not isinstance(content, dict):
        raise RecipeError(f'recipe {path} holds no "key: value" lines')
    block = content.pop(BLOCK, None) or {}
    if not isinstance(block, dict):
        raise RecipeError(f'{path}: {BLOCK} must be a block of "key: value" lines, got {block!r}')
    values: dict[str, Any] = {}
    for name in [name for name, value in block.items() if name not in FIELDS and isinstance(value, dict)]:
        values.setdefault('task_knobs', {})[name] = block.pop(name)  # which the task checks
    if (data_dir := content.pop('data', None)) is not None:  # timm's older name, also of its first argument
        content['data_dir'] = content.get('data_dir') or data_dir
    if ignored := [str(key) for key, value in content.items() if changes_nothing(str(key), value)]:
        say(f'{path}: left out, since with these values they change nothing: {", ".join(ignored)}')
    keys = [(str(key), False) for key in content if str(key) not in ignored] + [(str(key), True) for key in block]
    problems = [problem for key, in_block in keys if (problem := _problem_with(key, in_block))]
    if theirs := [key for key, in_block in keys if not in_block and is_of_timm(key)]:
        problems.append(refusal(theirs))
    if problems:
        raise RecipeError(f'{path}: {"; ".join(problems)}')
    for name, value in (content | block).items():
        if name not in ignored:
            values[name] = check_value(name, value, str(path))
    return values


def _problem_with(key: str, in_block: bool) -> str:
    """What is wrong with a key where it stands, other than that only timm has it; empty where nothing is."""
    if key in FIELDS and FIELDS[key].metadata['block'] == in_block or not in_block and is_of_timm(key):
        return ''
    if key in FIELDS:
        place = f'inside the block {BLOCK}:' if not in_block else f'at the top level, not inside {BLOCK}:'
        return f'{key} belongs {place}'
    if '-' in key and key.replace('-', '_') in FIELDS:
        return f'keys are written with underscores: {key.replace("-", "_")}, not {key}'
    return f'unknown key {key}.{nearest(key.replace("-", "_"), FIELDS)}'


# ---- back to text -----------------------------------------------------------------------------------------------

def to_yaml(recipe: Recipe, sources: dict[str, str] | None = None) -> str:
    """All effective values as a recipe file that `read_file` accepts; with `sources`, each line names its origin."""
    lines, block = [], []
    for name, field in FIELDS.items():
        line = f'{name}: {as_yaml(getattr(recipe, name))}'
        if sources:
            line = f'{line:48}  # {sources[name]}'
        if field.metadata['block']:
            block.append(line)
            continue
        if field.metadata['section']:
            lines.append(f'\n# {field.metadata["section"]}')
        lines.append(line)
    for task, knobs in recipe.task_knobs.items():
        block.append(f'{task}:')
        for name, value in knobs.items():
            line = f'  {name}: {as_yaml(value)}'
            block.append(f'{line:48}  # {sources.get(f"{task}.{name}", "default")}' if sources else line)
    return '\n'.join(lines).lstrip() + f'\n\n{BLOCK}:\n' + textwrap.indent('\n'.join(block), '  ') + '\n'


def as_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix('...\n').strip()


DEFAULTS = Recipe()
