"""Write the table of train_recipes/README.md from the recipes' own headers."""

import re
from pathlib import Path

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import RECIPES, atomic_write
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.reading import read_file

START, END = '<!-- table: tools/list_recipes.py -->', '<!-- end of table -->'
EXAMPLE = """example:
  python tools/list_recipes.py            print the table
  python tools/list_recipes.py --write    put it into train_recipes/README.md
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('--write', action='store_true', help='replace the table in train_recipes/README.md')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        if args.write:
            write(RECIPES / 'README.md')
        else:
            print(recipe_table())


def recipe_table() -> str:
    """A GitHub table with a row per recipe, in the folder's order."""
    lines = ["| recipe | model | px | the paper's number | measured here | cost |", '|---|---|---:|---|---|---|']
    for path in sorted(RECIPES.rglob('*.yaml'), key=lambda path: (len(path.parts), path.as_posix())):
        values = read_file(path)
        size = ', '.join(f'{key}={value}' for key, value in values.get('model_kwargs', {}).items())
        model = f'{values["model"]}({size})' if size else values['model']
        px = str(values.get('img_size') or 'x'.join(map(str, values['input_size'][1:])))
        expected = entry(path, 'Expected')
        numbers = [expected.replace('; not rerun here', ''), '-'] if '(paper' in expected else ['-', expected]
        cells = [f'`{path.relative_to(RECIPES).as_posix()}`', f'`{model}`', px, *numbers,
                 entry(path, 'Cost')]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def entry(path: Path, name: str) -> str:
    """What the header of a recipe says after `name:`."""
    found = re.search(rf'^# {name}: +(.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
    if not found:
        raise UserError(f'{path} has no "# {name}:" line in its header')
    return found[1]


def write(readme: Path) -> None:
    if not readme.exists():
        raise UserError(f'{readme} does not exist: --write is for a checkout of timm_rs')
    before, start, rest = readme.read_text(encoding='utf-8').partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise UserError(f'{readme} lacks the lines {START} and {END}')
    with atomic_write(readme, encoding='utf-8') as file:
        file.write(f'{before}{START}\n{recipe_table()}\n{END}{after}')
