"""Compile the training step of a recipe with the real TPU compiler, without a TPU: memory, work, floors, exchanges.

The step is the engine's, traced by torch_xla on the CPU; the compiler runs in an environment of its own, which
--compiler-env DIR makes when there is none. Each compilation takes 5 to 15 minutes and 4 to 24 GB of memory. Nothing
runs on a TPU: rows are what the compiler says, floors what peak arithmetic and peak memory bandwidth would take.

examples:
  python tools/tpu_compile.py --recipe train_recipes/rs50.yaml --tpu v5e --compiler-env ~/.cache/timm_rs/tpu_compiler
  python tools/tpu_compile.py --recipe train_recipes/rs50.yaml --tpu v5e --chips 4 --batch-size 64
  python tools/tpu_compile.py --recipe train_recipes/rs350.yaml --tpu v6e --largest-batch
  python tools/tpu_compile.py --compare-table3 --tpu v3 --csv results/tpu_compile.csv
"""

import functools
import signal
import sys
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import append_rows, check_writable
from timm_rs.progress import track
from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.recipe.knobs import Recipe
from timm_rs.tpu.chips import TPUS, find_tpu


def main(argv: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: it ends the compiler, too
    parser = Parser(usage='%(prog)s --recipe FILE --tpu T [--chips N] [--OPTION VALUE ...]', description=__doc__)
    parser.add_argument('--tpu', metavar='T', help=f'{", ".join(TPUS)}; v3 by default with --compare-table3')
    parser.add_argument('--chips', type=int, default=1, metavar='N', help='chips that share the step [1]; a device, of '
                        'which there are two on a chip of v3 and one on all others, gets --batch-size images')
    parser.add_argument('--largest-batch', action='store_true', help='also find the largest batch that fits, a '
                        'multiple of 8 per device: some 5 more compilations')
    parser.add_argument('--compare-table3', action='store_true', help='compile the two pairs of the paper\'s Table 3 '
                        'instead, at 32 images per device')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='add the rows to it, e.g. results/tpu_compile.csv')
    parser.add_argument('--compiler-python', metavar='PYTHON', help='of an environment with jax and libtpu (also: '
                        'environment variable TIMM_RS_TPU_PYTHON)')
    parser.add_argument('--compiler-env', type=Path, metavar='DIR', help='environment with the compiler, made when '
                        'there is none [~/.cache/timm_rs/tpu_compiler, which is not made unasked]')
    add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        run(arguments)


def run(arguments: Any) -> None:
    from timm_rs.tpu.compiler import Compiler
    from timm_rs.tpu.report import KIND, compare_with_table_3, create_row, in_words
    if not arguments.tpu and not arguments.compare_table3:
        raise UserError(f'--tpu is missing: it takes {", ".join(TPUS)}')
    tpu = find_tpu(arguments.tpu or 'v3')
    tpu.topology(arguments.chips)  # or a UserError
    if arguments.csv:
        check_writable(arguments.csv)
    compiler = Compiler(arguments.compiler_python, arguments.compiler_env)
    recipes = choose_recipes(arguments)
    rows = {}
    for name, recipe in track(recipes.items(), 'compiling', total=len(recipes)):
        rows[name] = create_row(
            recipe, tpu, arguments.chips, compiler, arguments.largest_batch, functools.partial(print, flush=True))
        print(f'{name}: {in_words(rows[name])}', flush=True)
        if arguments.csv:
            append_rows(arguments.csv, [dict(kind=KIND, name=name) | rows[name]])
    if arguments.compare_table3:
        print(compare_with_table_3(rows))


def choose_recipes(arguments: Any) -> dict[str, Recipe]:
    recipe, sources = resolve(arguments)
    if not arguments.compare_table3:
        return {recipe.model: recipe}
    from timm_rs.tpu.report import table_3_recipes
    return table_3_recipes(32 if sources['batch_size'] == 'default' else recipe.batch_size)
