"""Print the JSON Schema of recipes, by which editors complete and check them.

An editor with a YAML language server reads its name in the first line of a recipe:
  # yaml-language-server: $schema=recipe.schema.json
"""

import json
from pathlib import Path

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import RECIPES, atomic_write
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.schema import FILE, recipe_schema
from timm_rs.tasks import TASKS, find_task

EXAMPLE = """examples:
  python tools/schema.py > recipe.schema.json    for recipes of your own, beside them
  python tools/schema.py --write                 the one in train_recipes/, after a knob has changed
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('--write', action='store_true', help=f'replace train_recipes/{FILE}')
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        declared = {name: knobs for name in TASKS if (knobs := find_task(name).Knobs) is not None}
        text = json.dumps(recipe_schema(declared), indent=1) + '\n'
        if arguments.write:
            write(RECIPES / FILE, text)
        else:
            print(text, end='')


def write(path: Path, text: str) -> None:
    try:
        with atomic_write(path) as file:
            file.write(text)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error
