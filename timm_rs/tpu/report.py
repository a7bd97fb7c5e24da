"""What a training step would cost on a TPU that is not here, by its compiler: rows of results, and sentences."""

import dataclasses
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

from timm_rs.benchmark.rows import GIB, four_digits, provenance
from timm_rs.files import RECIPES
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.study.paper import table_3
from timm_rs.tpu.chips import Tpu
from timm_rs.tpu.compiler import Compiler
from timm_rs.tpu.trace import create_program

KIND = 'TPU compiler, not a run'
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


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


def table_3_recipes(batch_size: int) -> dict[str, Recipe]:
    """The recipes whose steps are those of the paper's Table 3, at `batch_size` images per device."""
    return {name: Recipe(**read_file(RECIPES / f'{row.recipe}.yaml') | row.changes | dict(batch_size=batch_size))
            for name, row in TABLE3.items()}


# ---- rows -------------------------------------------------------------------------------------------------------

def create_row(recipe: Recipe, tpu: Tpu, num_chips: int, compiler: Compiler, with_largest_batch: bool,
                tell: Callable[[str], None]) -> dict[str, Any]:
    """A row of results for the training step of `recipe` on `num_chips` of `tpu`.

    With `with_largest_batch` it also has the largest batch that fits, found by compiling; `tell` hears of each trial.
    Raises UserError as `create_program` and `Compiler.compile` do.
    """
    num_devices = num_chips * tpu.devices_per_chip

    def compile_step(batch_size: int) -> dict[str, Any]:
        program = create_program(dataclasses.replace(recipe, batch_size=batch_size), num_devices)
        return compiler.compile(program, tpu, num_chips)

    result = compile_step(recipe.batch_size)
    row = compiled_costs(result, tpu, recipe.batch_size)
    row['largest_batch_guess'] = guess_largest_batch(result, tpu, recipe.batch_size)
    if with_largest_batch:
        def fits(batch_size: int) -> bool:
            answer = 'needed_bytes' not in compile_step(batch_size)
            tell(f'  {batch_size} images per device {"fit" if answer else "do not fit"}')
            return answer

        known = {recipe.batch_size: row['fits']} if recipe.batch_size % 8 == 0 else {}
        row['largest_batch'] = largest_batch(fits, row['largest_batch_guess'], known)
    where = provenance()
    where['versions'] += f', torch_xla {version("torch_xla")}, {result["versions"]}'
    return dict(
        model=recipe.model, img_size=recipe.img_size, batch_size=recipe.batch_size,
        precision=recipe.amp_dtype if recipe.amp else 'float32', tpu=tpu.name, chips=num_chips,
        devices=num_devices, **row, **where)


def compiled_costs(result: dict[str, Any], tpu: Tpu, batch_size: int) -> dict[str, Any]:
    """What the compiler's `result` means: memory of a device in GiB, work, floors of a step's time (ms), images/s.

    The floors are what peak arithmetic and peak bandwidth would take. XLA counts bytes that stay on the chip too, so
    a real step may need less bandwidth than that floor. `batch_size` and images/s are those of a device.
    """
    compile_s = four_digits(result['compile_s'])
    if 'needed_bytes' in result:
        return dict(fits=False, hbm_limit_gib=four_digits(result['hbm_bytes'] / GIB),
                    temporaries_gib=four_digits(result['needed_bytes'] / GIB), compile_s=compile_s)
    compute_s, bandwidth_s = result['flops'] / tpu.peak_flops, result['bytes_accessed'] / tpu.hbm_bytes_per_s
    # Results that took over the memory of an argument are counted with the arguments.
    results = result['output_bytes'] - result['alias_bytes']
    costs = dict(
        hbm_gib=hbm_bytes(result) / GIB, hbm_limit_gib=tpu.hbm_bytes / GIB,
        temporaries_gib=result['temp_bytes'] / GIB, arguments_gib=result['argument_bytes'] / GIB,
        results_gib=results / GIB, code_gib=result['generated_code_bytes'] / GIB,
        tflop=result['flops'] / 1e12, gbytes=result['bytes_accessed'] / 1e9,
        compute_floor_ms=1e3 * compute_s, bandwidth_floor_ms=1e3 * bandwidth_s,
        images_per_s_compute_bound=batch_size / compute_s, images_per_s_bandwidth_bound=batch_size / bandwidth_s)
    exchanges = {kind.replace('-', '_'): count for kind, count in count_collectives(result['hlo']).items()}
    return dict(fits=True, **{name: four_digits(cost) for name, cost in costs.items()}, **exchanges,
                compile_s=compile_s)


def hbm_bytes(result: dict[str, Any]) -> float:
    """Memory of a device that a compiled program takes while it runs."""
    return float(result['argument_bytes'] + result['output_bytes'] - result['alias_bytes'] + result['temp_bytes']
                 + result['generated_code_bytes'])


def count_collectives(hlo: str) -> dict[str, int]:
    """How many exchanges of each kind an optimised program has.

    One that overlaps with arithmetic is in the text several times, on the same channel, and counts once.
    """
    found = re.findall(rf' ({"|".join(COLLECTIVES)})(?:-start)?\(.*?channel_id=(\d+)', hlo)
    return {kind: len({channel for name, channel in found if name == kind}) for kind in COLLECTIVES}


# ---- the largest batch ------------------------------------------------------------------------------------------

def guess_largest_batch(result: dict[str, Any], tpu: Tpu, batch_size: int) -> int:
    """The batch per device that may just fit, if temporaries grow with it as they are: a multiple of 8, at least 8."""
    if 'needed_bytes' in result:
        share = result['hbm_bytes'] / result['needed_bytes']
    else:
        share = (tpu.hbm_bytes - hbm_bytes(result) + result['temp_bytes']) / result['temp_bytes']
    return max(8, int(batch_size * share) // 8 * 8)


def largest_batch(fits: Callable[[int], bool], guess: int, known: dict[int, bool] | None = None) -> int:
    """The largest multiple of 8 for which `fits`, near `guess`; 0 if not even 8 does. `known` answers are not asked."""
    known = dict(known or {})

    def try_out(batch: int) -> bool:
        if batch not in known:
            known[batch] = batch == 0 or fits(batch)
        return known[batch]

    step = max(8, guess // 16 // 8 * 8)
    low = high = guess
    while not try_out(low):
        low, high, step = max(0, low - step), low, 2 * step
    while low == high or try_out(high):
        low, high, step = high, high + step, 2 * step
    while high - low > 8:
        middle = (low + high) // 16 * 8
        low, high = (middle, high) if try_out(middle) else (low, middle)
    return low


# ---- sentences --------------------------------------------------------------------------------------------------

def in_words(row: dict[str, Any]) -> str:
    """A row for people."""
    if row['fits']:
        exchanges = [f'{count} {kind}' for kind in COLLECTIVES if (count := row[kind.replace('-', '_')])]
        compute, bandwidth = row['compute_floor_ms'], row['bandwidth_floor_ms']
        text = (f'{row["hbm_gib"]} of {row["hbm_limit_gib"]} GiB ({row["temporaries_gib"]} temporaries, '
                f'{row["arguments_gib"]} arguments), {row["tflop"]} TFLOP and {row["gbytes"]} GB per step\n'
                f'  floors: {compute} ms of arithmetic, {bandwidth} ms of memory; at most '
                f'{row["images_per_s_compute_bound"]} and {row["images_per_s_bandwidth_bound"]} images/s per device\n'
                f'  exchanges: {", ".join(exchanges) or "none"}')
    else:
        text = (f'out of memory, {row["temporaries_gib"]} GiB of temporaries are needed and {row["hbm_limit_gib"]} GiB '
                'there: take a smaller --batch-size, --grad-checkpointing or another --tpu')
    text += '\n  largest batch that fits: ' + (
        f'{row["largest_batch"]} per device' if 'largest_batch' in row else
        f'about {row["largest_batch_guess"]} per device, if temporaries grow in proportion (--largest-batch finds out)')
    return (f'{row["batch_size"]} images on each of {row["devices"]} devices of {row["tpu"]}: {text}; '
            f'compiled in {row["compile_s"]} s')


def compare_with_table_3(rows: dict[str, dict[str, Any]]) -> str:
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
