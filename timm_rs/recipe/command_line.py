"""The parser, its options, and which value wins."""

import argparse
import ast
import contextlib
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from timm_rs.errors import escape_unknown_letters
from timm_rs.recipe.declaring import nearest
from timm_rs.recipe.foreign import TRUST_HELP
from timm_rs.recipe.knobs import FIELDS, Recipe, value_type
from timm_rs.recipe.reading import DEFAULTS, as_yaml, check_value, find_recipe, is_plain, read_file
from timm_rs.recipe.timm_options import is_of_timm, refusal

ALONE = dict(torchcompile='inductor')  # what an option means without a value, as in timm


def flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def at_least(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an option of a tool: a whole number from `low` to `high`."""
    def number(text: str) -> int:
        value = int(text)
        if value < low or high is not None and value > high:
            bounds = f'at least {low}' if high is None else f'between {low} and {high}'
            raise argparse.ArgumentTypeError(f'must be {bounds}, got {value}')
        return value
    number.__name__ = 'int'  # as argparse calls it
    return number


class Parser(argparse.ArgumentParser):
    """ArgumentParser that names the nearest option, never abbreviates, and takes no empty word for a place."""

    def __init__(self, **kwargs: Any):
        escape_unknown_letters()
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # What comes behind the name of a command, or of a script, may be the value of an option there.
        checked = {argparse.PARSER: arg_strings[:1], argparse.REMAINDER: []}.get(str(action.nargs), arg_strings)
        if not action.option_strings and not all(word.strip() for word in checked):  # an unset variable of a shell
            self.error(f'{action.metavar or action.dest} is empty; write . for the current folder')
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        prefix, _, unknown = message.partition('unrecognized arguments: ')
        if unknown and not prefix:
            option, options = unknown.split()[0], [word.partition('=')[0] for word in unknown.split()]
            names = [option.lstrip('-').replace('-', '_') for option in options if option.startswith('-')]
            known = [name for action in self._actions for name in action.option_strings]
            message = f'unknown option {option}.{nearest(option.replace("_", "-"), known)}'
            if theirs := [name for name in names if is_of_timm(name)]:
                message = refusal(theirs, '--')
        self.exit(2, f'error: {message} (see {self.prog} --help)\n')


class KeyValues(argparse.Action):
    """`--model-kwargs depth=26 width=0.25` as a dict of Python literals (text where it is none)."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        pairs = {}
        for pair in values:
            key, equals, value = pair.partition('=')
            if not equals:
                parser.error(f'{option_string} takes key=value pairs, got {pair!r}')
            pairs[key] = value
            with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')  # Python's, of text that looks like its own: 1if, '\\d'
                    read = ast.literal_eval(value)
                if is_plain(read):
                    pairs[key] = read
        setattr(namespace, self.dest, pairs)


class Switch(argparse.Action):
    """`--amp` and `--no-amp`; of a knob that begins with no itself `--no-aug` and `--aug`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        on = option_strings[0]
        self.off = on.replace('--no-', '--', 1) if on.startswith('--no-') else on.replace('--', '--no-', 1)
        super().__init__([*option_strings, self.off], dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string != self.off)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option --recipe and one option per knob, grouped as in `Recipe`, absent unless given."""
    parser.add_argument(
        '--recipe', '--config', '-c', metavar='FILE', help='YAML file with the values of a run (train_recipes/)')
    parser.add_argument('--trust', action='store_true', help=f'of a recipe from the Hub: {TRUST_HELP}')
    group: Any = parser
    for name, field in FIELDS.items():
        if field.metadata['section']:
            group = parser.add_argument_group(field.metadata['section'])
        add_knob(group, name, field, getattr(DEFAULTS, name), Recipe)


def add_knob(
        group: Any, name: str, field: dataclasses.Field[Any], default: Any, declared: type, prefix: str = '') -> None:
    """The option of a knob that the dataclass `declared` declares. Its value, if given, is in `prefix` + `name`."""
    metadata, (kind, element, _) = field.metadata, value_type(name, declared)
    options: dict[str, Any] = dict(dest=prefix + name, default=argparse.SUPPRESS)
    options['help'] = (metadata['help'] + f' [{as_yaml(default)}]').replace('%', '%%')
    if kind is bool:
        options['action'] = Switch
    elif kind is dict:
        options.update(nargs='*', action=KeyValues, metavar='KEY=VALUE')
    elif kind is list:
        shown = '|'.join(metadata['choices'] or ()) or 'N'
        options.update(nargs=metadata['nargs'] or '+', type=element, metavar=shown)
    else:
        shown = '|'.join(filter(None, metadata['choices'] or ())) or kind.__name__.upper()
        options.update(type=kind, metavar=shown)
        if declared is Recipe and name in ALONE:
            options.update(nargs='?', const=ALONE[name])
    group.add_argument(flag(name), *metadata['flags'], **options)


def _say(line: str) -> None:
    if os.environ.get('RANK', '0') == '0':  # there is no device yet that knows which process is the primary
        print(line, file=sys.stderr)  # not between the lines of --show


def resolve(arguments: argparse.Namespace) -> tuple[Recipe, dict[str, str]]:
    """The recipe of a parsed command line and, per knob, where its value came from.

    Later wins: default, then the file of --recipe, then the command line. Sources are 'default', the file's path
    or 'command line'. Raises `RecipeError` as `read_file` and `check_value` do.
    """
    path = find_recipe(arguments.recipe) if arguments.recipe else None
    values = read_file(path, _say, getattr(arguments, 'trust', False)) if path else {}
    sources = dict.fromkeys(FIELDS, 'default') | dict.fromkeys(values, str(path))
    task_knobs = values.setdefault('task_knobs', {})
    for task, knobs in task_knobs.items():
        sources |= {f'{task}.{name}': str(path) for name in knobs}
    for name, value in vars(arguments).items():
        task, dot, knob_name = name.partition('.')
        if dot:
            task_knobs.setdefault(task, {})[knob_name] = value
            sources[name] = 'command line'
    for name in FIELDS:
        if hasattr(arguments, name):
            values[name] = check_value(name, getattr(arguments, name), 'command line')
            sources[name] = 'command line'
    return Recipe(**values), sources
