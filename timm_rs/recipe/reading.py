"""Recipes as YAML, in and out, and their values checked.

A recipe is a flat YAML file whose keys are the argument names of timm's `train.py`, so the same file runs there
(`--config`) and here (`--recipe`). What only our trainer can do sits in one nested block, `timm_rs:`.
"""

import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from timm_rs.files import RECIPES
from timm_rs.recipe.declaring import BLOCK, RecipeError, nearest
from timm_rs.recipe.foreign import check_code
from timm_rs.recipe.knobs import FIELDS, Recipe, fields_of, value_type
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
        if not value and element is float:
            raise RecipeError(f'{where}: {name} is an empty list; give it values or delete the line')
        value = [_scalar(name, element, item, where) for item in value]
        if field.metadata['nargs'] and len(value) != field.metadata['nargs']:
            raise RecipeError(f'{where}: {name} needs {field.metadata["nargs"]} values, got {len(value)}')
        items = value
    else:
        value = _scalar(name, kind, value, where)
        if not is_plain(value):
            raise RecipeError(f'{where}: {name} may hold text, numbers, true, false, lists and mappings, got {value!r}')
        items = [value]
    choices = field.metadata['choices']
    for item in items:
        if choices and item not in choices:
            shown = ', '.join(repr(choice) for choice in choices)
            raise RecipeError(f'{where}: {name} must be one of {shown}, got {item!r}.{nearest(str(item), choices)}')
        _check_number(name, item, field.metadata, where)
    return value


def is_plain(value: Any) -> bool:
    """Whether YAML and checkpoints can hold a value, and Python print it."""
    if isinstance(value, dict):
        return all(isinstance(key, (str, int, float)) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, int):
        return value.bit_length() <= 4096
    return value is None or isinstance(value, (float, str))


def _check_number(name: str, number: Any, bounds: Mapping[str, Any], where: str) -> None:
    if isinstance(number, dict):
        for key, value in number.items():
            if not isinstance(value, dict):
                _check_number(f'{name}: {key}', value, {}, where)
            if isinstance(value, str) and re.fullmatch(r'[-+]?\d+[eE][-+]?\d+', value):
                raise RecipeError(f'{where}: {name}: {key} must be a number, got {value!r}{_number_hint(float, value)}')
    elif isinstance(number, float) and not math.isfinite(number):
        raise RecipeError(f'{where}: {name} must be finite, got {number}')
    low, high, above, below = (bounds.get(key) for key in ('low', 'high', 'above', 'below'))
    if (low is not None and number < low or high is not None and number > high
            or above is not None and number <= above or below is not None and number >= below):
        least = f'above {above}' if low is None else f'at least {low}'
        most = '' if high is below is None else f' and below {below}' if high is None else f' and at most {high}'
        wanted = f'between {low} and {high}' if None not in (low, high) else least + most
        raise RecipeError(f'{where}: {name} must be {wanted}, got {number}')


def _scalar(name: str, kind: type | None, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise RecipeError(f'{where}: {name} is too large a number') from None
    if kind is str and isinstance(value, str) and '\0' in value:
        raise RecipeError(f'{where}: {name} has a character 0 in it: {value!r}')
    if kind is not None and type(value) is kind:
        return value
    hint = ''
    if kind in (int, float) and isinstance(value, str):
        hint = _number_hint(kind, value)
    elif kind is str and not isinstance(value, (list, dict)):
        hint = '; put text in quotes' + (
            ' (YAML 1.1 reads yes, no, on and off as true or false)' if isinstance(value, bool) else '')
    wanted = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text', dict: 'a mapping'}
    raise RecipeError(f'{where}: {name} must be {wanted.get(kind or str)}, got {value!r}{hint}')


def _number_hint(kind: type, text: str) -> str:
    """What to write for a number that came as `text`, or nothing where it says none."""
    try:
        number = float(text)
    except ValueError:
        return ''
    if not math.isfinite(number) or kind is int and not number.is_integer():
        return ''
    reason = f'YAML 1.1 reads {text} as text: an exponent needs a dot before it' if 'e' in text.lower() else 'no quotes'
    return f'; write {as_yaml(kind(number))} ({reason})'


def _example(element: type | None) -> str:
    return {int: '1, 2', float: '0.1, 1.0'}.get(element or str, 'a, b')


# ---- the file ---------------------------------------------------------------------------------------------------

PLAIN_INT = r'[-+]?(0|[1-9][0-9]*)'
PLAIN_FLOAT = r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)'


MAX_BYTES = 1 << 16  # of a file, and of what it holds with its aliases written out
MAX_DEPTH = 20
PLAIN_TAGS = ('null', 'bool', 'int', 'float', 'str', 'seq', 'map', 'merge', 'value', 'timestamp')


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (YAML keeps the last one silently), and ambiguous numbers.

    It also refuses what is no plain value, and what grows beyond measure: a line of aliases to the line before, ten
    times over, is more than any memory holds once it is printed or merged.
    """

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name, self.sizes = name, dict[int, tuple[int, int] | None]()  # by node; None while it is measured

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level > MAX_DEPTH:  # PyYAML would look through all brackets again for each
            raise RecipeError(f'{self.name} is not valid YAML: more than {MAX_DEPTH} brackets within each other')
        super().fetch_flow_collection_start(token)

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        self.measure(node)
        return self.construct_document(node)

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """Characters and levels of `node` with its aliases written out. Raises RecipeError where those are too many."""
        where, tag = f'{self.name}:{node.start_mark.line + 1}', node.tag.removeprefix('tag:yaml.org,2002:')
        if id(node) in self.sizes:
            if size := self.sizes[id(node)]:
                return size
            raise RecipeError(f'{where}: what is written here holds itself, by an alias; write it out')
        if tag not in PLAIN_TAGS:
            raise RecipeError(f'{where}: a recipe holds text, numbers, true and false, lists and mappings, not {tag}')
        self.sizes[id(node)] = None
        length, depth = 1, 0
        if isinstance(node, yaml.ScalarNode):
            node.value.encode(errors='surrogateescape')  # or "\ud800" would fail where it is first printed or opened
            length += len(node.value)
        else:
            is_list = isinstance(node, yaml.SequenceNode)
            children = node.value if is_list else [child for pair in node.value for child in pair]
            for child_length, child_depth in map(self.measure, children):
                length, depth = length + child_length, max(depth, child_depth + 1)
        if length > MAX_BYTES or depth > MAX_DEPTH:
            raise RecipeError(f'{where}: what begins here is too long or nested too deep for a recipe, which has '
                              f'at most {MAX_BYTES} characters and {MAX_DEPTH} levels')
        self.sizes[id(node)] = length, depth
        return length, depth

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == 'tag:yaml.org,2002:merge':
                continue  # <<, which gives way to what is written beside it
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f'{self.name}:{line}: a list or mapping cannot be a key; is this a template with '
                                  '{{ … }} that was not filled in?')
            key = self.construct_object(key_node)
            if key in seen:
                raise RecipeError(f'{self.name}:{line}: {key} is written twice (first in line {seen[key]})')
            seen[key] = line
        return super().construct_mapping(node, deep)

    def construct_plain_number(self, node: yaml.ScalarNode) -> int | float:
        """010, 0x10, 1:30 and 1_000 are 8, 16, 90 and 1000 to YAML 1.1, but hardly to whoever wrote them."""
        is_whole = node.tag.endswith('int')
        number = self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        if not re.fullmatch(PLAIN_INT if is_whole else PLAIN_FLOAT, node.value):
            raise RecipeError(f'{self.name}:{node.start_mark.line + 1}: {node.value} is ambiguous: YAML 1.1 reads it '
                              f'as {number}; write {as_yaml(number)}, or put text in quotes')
        return number


_StrictLoader.add_constructor('tag:yaml.org,2002:int', _StrictLoader.construct_plain_number)
_StrictLoader.add_constructor('tag:yaml.org,2002:float', _StrictLoader.construct_plain_number)


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """The file called `name`; where there is none, the recipe of that name which comes with timm_rs, such as rs50.

    Names may be written as in a checkout, too: train_recipes/rs50.yaml. What is neither is returned as a path.
    """
    path = Path(name)
    return path if path.is_file() else shipped_recipes().get(_plain(path), path)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with timm_rs, by their names."""
    return {_plain(path.relative_to(RECIPES)): path for path in sorted(RECIPES.rglob('*.yaml'))}


def _plain(path: Path) -> str:
    return path.as_posix().removeprefix('train_recipes/').removesuffix('.yaml')


def read_mapping(path: Path, what: str, shipped: Iterable[str] = ()) -> dict[Any, Any]:
    """The "key: value" lines of a YAML file that is `what`, such as a recipe: plain values, no key twice.

    Raises RecipeError for a file that is missing (with the nearest name beside it, or of those `shipped`), unreadable
    or too long, bad YAML and ambiguous numbers.
    """
    try:
        with open(path, 'rb') as file:
            start = file.read(MAX_BYTES + 1)
        if len(start) > MAX_BYTES:
            raise RecipeError(f'{what} {path} has more than {MAX_BYTES} bytes, as no {what} has; is it another file?')
        text = start.decode()
    except FileNotFoundError:
        beside = sorted(str(other) for other in path.parent.glob('*.yaml'))
        hint = nearest(str(path), beside) or nearest(_plain(path), shipped)
        raise RecipeError(f'{what} {path} does not exist.{hint}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f'{what} {path} cannot be read: {error}') from None
    try:
        content = _StrictLoader(text, str(path)).get_single_data()
    except RecipeError:
        raise
    except Exception as error:  # PyYAML lets through what Python says of !!int x, 2024-13-45 or a thousand brackets
        raise RecipeError(f'{what} {path} is not valid YAML: {" ".join(str(error).split())}') from None
    if not isinstance(content, dict):
        raise RecipeError(f'{what} {path} holds no "key: value" lines')
    return content


def read_file(path: str | os.PathLike[str], say: Callable[[str], None] = lambda line: None, trusted: bool = False
              ) -> dict[str, Any]:
    """The checked values of a recipe file, flat (the block's keys beside the others); `find_recipe` says which.

    An args.yaml of timm's train.py is a recipe, too: options that we do not have are left out where they are at timm's
    default, and `say` hears which. It hears of modules that the recipe imports, too.

    Raises:
        RecipeError: a missing or unreadable file, bad YAML, unknown, hyphenated, misplaced or repeated keys, or a
            value of the wrong type or out of range; the message names the file, the keys and the remedy. Also a recipe
            from the Hub that names code of others, unless it is `trusted`.
    """
    path = find_recipe(path)
    content = read_mapping(path, 'recipe', shipped_recipes())
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
    if line := check_code(path, values, trusted):
        say(line)
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


def changed_knobs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """'lr 0.1 -> 0.2' for each value, in both recipes, that decides what a run computes and is not that of before.

    Knobs of tasks are compared one by one, since a version before may not have had one of them.
    """
    free = {name for name, knob in FIELDS.items() if knob.metadata['free']} | {'task_knobs'}
    before, now = ({**values, **{f'{task}.{name}': value for task, knobs in values.get('task_knobs', {}).items()
                                 for name, value in knobs.items()}} for values in (before, now))
    return [f'{name} {before[name]!r} -> {now[name]!r}' for name in now
            if name in before and name not in free and before[name] != now[name]
            and as_yaml(before[name]) != as_yaml(now[name])]  # a command line's tuple is a list in YAML


DEFAULTS = Recipe()
