"""Print the script by which a shell completes timm-rs: its commands, their options, recipes and files."""

import argparse
from typing import Any
from unittest import mock

from timm_rs.errors import exit_on_user_error, needing
from timm_rs.programs.command import commands, program_of
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.reading import shipped_recipes

SHELLS = ('bash', 'zsh', 'fish')
EXAMPLE = """examples:
  timm-rs completion bash > ~/.local/share/bash-completion/completions/timm-rs
  timm-rs completion zsh > ~/.zfunc/_timm-rs      where ~/.zfunc is in $fpath
  timm-rs completion fish > ~/.config/fish/completions/timm-rs.fish
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('shell', choices=SHELLS, help='which is to complete')
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        print(completion(arguments.shell), end='')


def completion(shell: str) -> str:
    """The script for one of `SHELLS`. Raises UserError where shtab, which writes it, is not installed."""
    with needing('a script for completion', 'shtab'):
        import shtab
    every = argparse.ArgumentParser(prog='timm-rs')
    named = every.add_subparsers()
    for name, purpose in commands().items():
        own = parser_of(name)
        _say_what_completes(own, shtab.FILE)
        named.add_parser(name, help=purpose, parents=[own], add_help=False)
    return str(shtab.complete(every, shell))


def _say_what_completes(parser: argparse.ArgumentParser, files: Any) -> None:
    """Give each argument of `parser` what can stand there: shtab reads `choices`, and `complete` of whatever else."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                _say_what_completes(own, files)
        elif action.dest == 'recipe':
            action.complete = _recipes_and_files()  # type: ignore[attr-defined]
        elif '|' in str(action.metavar):  # a knob, whose value is checked later
            action.choices = str(action.metavar).split('|')
        elif action.nargs != 0 and not action.choices and action.type not in (int, float):
            action.complete = files  # type: ignore[attr-defined]


def _recipes_and_files() -> dict[str, Any]:
    name, recipes = '_timm_rs_recipe_files', ' '.join(sorted(shipped_recipes()))
    functions = dict(
        bash=f'{name}() {{ compgen -W "{recipes}" -- "$1"; compgen -f -- "$1"; }}',
        zsh=f"{name}() {{ _alternative 'recipes:recipe:({recipes})' 'files:file:_files' }}")
    return dict(preamble=functions, bash=name, zsh=name, fish=f'{recipes} (__fish_complete_path (commandline -ct))')


class _Made(Exception):
    """Holds a parser that was about to parse."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, which its program makes where it begins."""
    def give(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise _Made(parser)

    with mock.patch.object(argparse.ArgumentParser, 'parse_args', give):
        try:
            program_of(command).main([])
        except _Made as made:
            return made.args[0]  # type: ignore[no-any-return]
    raise AssertionError(f'{command} did not parse its arguments')
