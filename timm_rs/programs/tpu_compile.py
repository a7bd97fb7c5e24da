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

import dataclasses
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from timm_rs.benchmark.rows import provenance
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import RECIPES, append_rows, check_writable
from timm_rs.progress import track
from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.study.paper import table_3
from timm_rs.tpu.chips import TPUS, Tpu, find_tpu
from timm_rs.tpu.compiler import Compiler, describe, guess_largest_batch, largest_batch, trace

KIND = 'TPU compiler, not a run'


class Table3(NamedTuple):
    """What we compile for a row of the paper's Table 3, and which row that is."""

    recipe: str
    changes: dict[str, Any]
    model: str
    img_size: str


# EfficientNets with the recipe of EfficientNet-RS, which is the original's but for the resolution.
TABLE3 = {
    'ResNet-RS-350 at 256': Table3('rs350', {}, 'resnetrs_350', '256'),
    'EfficientNet-B6 at 528': Table3(
        'enet_rs_b6_i320', dict(model='tf_efficientnet_b6', img_size=528), 'tf_efficientnet_b6', '528'),
    'ResNet-RS-420 at 320': Table3('rs420', {}, 'resnetrs_420', '320'),
    'EfficientNet-B7 at 600': Table3(
        'enet_rs_b6_i320', dict(model='tf_efficientnet_b7', img_size=600), 'tf_efficientnet_b7', '600')}


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
        rows[name] = compile_row(recipe, tpu, arguments, compiler)
        print(f'{name}: {in_words(rows[name])}', flush=True)
        if arguments.csv:
            append_rows(arguments.csv, [dict(kind=KIND, name=name) | rows[name]])
    if arguments.compare_table3:
        print(compare(rows))


def choose_recipes(arguments: Any) -> dict[str, Recipe]:
    recipe, sources = resolve(arguments)
    if not arguments.compare_table3:
        return {recipe.model: recipe}
    batch_size = 32 if sources['batch_size'] == 'default' else recipe.batch_size
    return {name: Recipe(**read_file(RECIPES / f'{row.recipe}.yaml') | row.changes | dict(batch_size=batch_size))
            for name, row in TABLE3.items()}


def compile_row(recipe: Recipe, tpu: Tpu, arguments: Any, compiler: Compiler) -> dict[str, Any]:
    """A row of results for `recipe`."""
    num_devices = arguments.chips * tpu.devices_per_chip

    def compile_step(batch_size: int) -> dict[str, Any]:
        program = trace(dataclasses.replace(recipe, batch_size=batch_size), num_devices)
        return compiler.compile(program, tpu, arguments.chips)

    result = compile_step(recipe.batch_size)
    row = describe(result, tpu, recipe.batch_size)
    row['largest_batch_guess'] = guess_largest_batch(result, tpu, recipe.batch_size)
    if arguments.largest_batch:
        row['largest_batch'] = find_largest_batch(compile_step, result, tpu, recipe.batch_size)
    where = provenance()
    where['versions'] += f', torch_xla {version("torch_xla")}, {result["versions"]}'
    return dict(
        model=recipe.model, img_size=recipe.img_size, batch_size=recipe.batch_size,
        precision=recipe.amp_dtype if recipe.amp else 'float32', tpu=tpu.name, chips=arguments.chips,
        devices=num_devices, **row, **where)


def find_largest_batch(
        compile_step: Callable[[int], dict[str, Any]], result: dict[str, Any], tpu: Tpu, batch_size: int) -> int:
    def fits(candidate: int) -> bool:
        answer = 'needed_bytes' not in compile_step(candidate)
        print(f'  {candidate} images per device {"fit" if answer else "do not fit"}', flush=True)
        return answer

    known = {batch_size: 'needed_bytes' not in result} if batch_size % 8 == 0 else {}
    return largest_batch(fits, guess_largest_batch(result, tpu, batch_size), known)


def in_words(row: dict[str, Any]) -> str:
    """A row for people."""
    if row['fits']:
        exchanges = {kind: row[kind] for kind in ('all_reduce', 'all_gather', 'reduce_scatter', 'all_to_all',
                                                  'collective_permute') if row[kind]}
        compute, bandwidth = row['compute_floor_ms'], row['bandwidth_floor_ms']
        text = (f'{row["hbm_gib"]} of {row["hbm_limit_gib"]} GiB ({row["temporaries_gib"]} temporaries, '
                f'{row["arguments_gib"]} arguments), {row["tflop"]} TFLOP and {row["gbytes"]} GB per step\n'
                f'  floors: {compute} ms of arithmetic, {bandwidth} ms of memory; at most '
                f'{row["images_per_s_compute_bound"]} and {row["images_per_s_bandwidth_bound"]} images/s per device\n'
                '  exchanges: ' + (', '.join(f'{count} {kind.replace("_", "-")}' for kind, count in exchanges.items())
                                  or 'none'))
    else:
        text = (f'out of memory, {row["temporaries_gib"]} GiB of temporaries are needed and {row["hbm_limit_gib"]} GiB '
                'there: take a smaller --batch-size, --grad-checkpointing or another --tpu')
    text += '\n  largest batch that fits: ' + (
        f'{row["largest_batch"]} per device' if 'largest_batch' in row else
        f'about {row["largest_batch_guess"]} per device, if temporaries grow in proportion (--largest-batch finds out)')
    return (f'{row["batch_size"]} images on each of {row["devices"]} devices of {row["tpu"]}: {text}; '
            f'compiled in {row["compile_s"]} s')


def compare(rows: dict[str, dict[str, Any]]) -> str:
    """The paper's Table 3, and beside it ratios within each pair, the paper's and ours."""
    paper, memory, step = table_3(), 'tpuv3_memory_gb', 'tpuv3_bf16_s'
    theirs = {name: {column: float(paper[row.model, row.img_size][column]) for column in (memory, step)}
              for name, row in TABLE3.items()}
    lines = ['', 'The paper, Table 3 (measured on TPU v3, 32 images per core, without fusion or rematerialisation):']
    lines += [f'  {name:24} {row[memory]:5} GB  {row[step]:4} s for 1024 images on 8 cores'
              for name, row in theirs.items()]
    lines += ['', 'EfficientNet / ResNet-RS:        paper  TPU compiler, not a run']
    names = list(TABLE3)
    for ours, other in zip(names[::2], names[1::2], strict=True):
        for label, printed, column in (
                ('memory', memory, 'temporaries_gib'), ('time, bandwidth floor', step, 'bandwidth_floor_ms'),
                ('time, compute floor', step, 'compute_floor_ms')):
            claimed = theirs[other][printed] / theirs[ours][printed]
            ratio = f'{rows[other][column] / rows[ours][column]:.2f}' if all(
                column in rows[name] for name in (ours, other)) else 'out of memory'
            lines.append(f'  {ours.split(" at ")[0]:14} {label:22} {claimed:5.2f}  {ratio}')
    return '\n'.join(lines)
