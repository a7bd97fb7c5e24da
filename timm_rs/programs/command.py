"""ResNet-RS and EfficientNet-RS for timm: every program by its name.

usage: timm-rs COMMAND [ARGUMENTS ...]

examples:
  timm-rs train --recipe quickstart
  timm-rs train --recipe rs50 --data-dir imagenet
  timm-rs eval output/train/NAME/model_best.pth.tar --recipe rs50 --data-dir imagenet
  timm-rs predict output/train/NAME photos

commands; each has --help of its own:"""

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.declaring import nearest

# The last is a test of ours, which a checkout has as tools/stress_resume.py.
NO_COMMANDS = ('__init__', 'command', 'stress_resume')
HELP = ('-h', '--help')


def main(argv: list[str] | None = None) -> None:
    """Run the program that the first word names with the words after it, or list all.

    Raises SystemExit as the program does; with status 2 for an unknown name, and with 130 for Ctrl-C.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
    with exit_on_user_error():
        known = commands()
        if name in HELP:
            print(__doc__, *(f'  {command:20}{purpose}' for command, purpose in known.items()), sep='\n')
            return
        if name not in known:
            raise UserError(f'unknown command {name}.{nearest(name, known)} (see timm-rs --help)')
        program = program_of(name)
        if name == 'eval':
            name, rest = 'train', rest if rest[:1] in ([word] for word in HELP) else ['--eval', *rest]
        sys.argv = [f'timm-rs {name}', *rest]  # what programs call themselves
        program.main(rest)


def program_of(command: str) -> Any:
    """The module whose `main` is the command."""
    return importlib.import_module('timm_rs.programs.' + ('train' if command == 'eval' else command.replace('-', '_')))


def commands() -> dict[str, str]:
    """The first line of each program's docstring, which needs no import, by the name of its command."""
    found = {'eval': 'Evaluate a checkpoint: timm-rs eval CHECKPOINT … is timm-rs train --eval CHECKPOINT …'}
    for path in Path(__file__).parent.glob('*.py'):
        if path.stem not in NO_COMMANDS:
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
            found[path.stem.replace('_', '-')] = docstring.partition('\n')[0]
    return dict(sorted(found.items()))
