"""What a training step would cost on a TPU that is not here: the step as torch_xla traces it, for the TPU's compiler.

The compiler comes with libtpu and is reached through jax, in an environment of its own (`Compiler`): torch_xla pins
another libtpu.
"""

import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import venv
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from PIL import Image

from timm_rs.data.loader import create_train_loader
from timm_rs.data.samples import Samples
from timm_rs.device.xla import XlaDevice
from timm_rs.errors import UserError
from timm_rs.files import CHECKOUT, SHIPPED
from timm_rs.recipe.knobs import Recipe
from timm_rs.tpu import compiler_child
from timm_rs.tpu.chips import GIB, Tpu
from timm_rs.training.build import build_model, create_training
from timm_rs.training.engine import train_updates, updates_per_epoch
from timm_rs.training.runlog import Progress
from timm_rs.training.schedule import create_optimizer, create_schedule
from timm_rs.training.state import Place

CONSTRAINTS = SHIPPED / 'constraints-tpu-compile.txt'
TYPED = CONSTRAINTS.name if SHIPPED == CHECKOUT else CONSTRAINTS  # what people write for it
DEFAULT_ENV = Path('~/.cache/timm_rs/tpu_compiler')
PYTHON_VARIABLE = 'TIMM_RS_TPU_PYTHON'
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
IMAGENET_CLASSES = 1000


# ---- the step ---------------------------------------------------------------------------------------------------

class BlankSamples(Samples):
    """`count` black images of one class, which need no disk."""

    classes = {}

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.new('RGB', (32, 32)), 0


def trace(recipe: Recipe, num_devices: int) -> bytes:
    """`trace_step` on torch_xla's CPU devices, in a process of its own: the compiler needs the memory that it takes.

    Raises UserError as `trace_step` does, without torch_xla, and when memory does not suffice.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(_trace, recipe, num_devices).result()
        except BrokenProcessPool:
            raise UserError('the process that traces the step was killed; it takes some 30 bytes of memory per '
                            'parameter and device: free some, or take fewer --chips') from None


def _trace(recipe: Recipe, num_devices: int) -> bytes:
    os.environ |= dict(PJRT_DEVICE='CPU', CPU_NUM_DEVICES=str(num_devices))
    warnings.simplefilter('ignore')
    device = XlaDevice()
    try:
        return trace_step(recipe, device)
    finally:
        device.close()


def trace_step(recipe: Recipe, device: XlaDevice) -> bytes:
    """The program of one training step of `recipe`, as a serialized HloModuleProto. Nothing is trained.

    It is the step of the engine with all that belongs to it, from uint8 images on: one batch per update, on the
    devices of `device`. Raises UserError for a recipe that cannot be trained there.
    """
    recipe = dataclasses.replace(
        recipe, num_classes=recipe.num_classes or IMAGENET_CLASSES, grad_accum_steps=1, log_interval=sys.maxsize,
        workers=0, aa=None, randaugment='timm')  # what happens on the host is not in the program
    model, data_config = build_model(recipe, device)
    samples = BlankSamples(4 * recipe.batch_size * device.num_devices)
    loader = create_train_loader(samples, recipe, data_config, model.num_classes, device)
    optimizer = create_optimizer(model, recipe, device.num_devices)
    schedule, _ = create_schedule(optimizer, recipe, updates_per_epoch(len(loader), recipe))
    training = create_training(model, recipe, device, optimizer, schedule)
    device.prepare(model, optimizer, training.ema and training.ema.module)

    place, programs, run = Place(), [], device.end_step

    def end_step() -> None:
        if place.update == 0:  # what the loop needs once
            run()
        elif place.update == 1:  # optimizers make what they keep in the first update: the second is like all others
            device.forget_collected()
        else:
            programs.append(device.collected_program())

    device.end_step = end_step  # type: ignore[method-assign]
    try:
        for _ in train_updates(training, loader, recipe, device, place, Progress(4, 0, 1, enabled=False)):
            if programs:
                break
    finally:
        device.end_step = run  # type: ignore[method-assign]
        device.forget_collected()
    return programs[0]


# ---- the compiler -----------------------------------------------------------------------------------------------

class Compiler:
    """The TPU compiler, in the environment of another Python."""

    def __init__(self, python: str | None = None, environment: Path | None = None):
        """Use `python`, or else that of `environment`, which is made if there is none (some 700 MB).

        By default the environment variable TIMM_RS_TPU_PYTHON says which Python, or it is that of an environment in
        ~/.cache. Raises UserError when there is none.
        """
        python = python or (None if environment else os.environ.get(PYTHON_VARIABLE))
        folder = (environment or DEFAULT_ENV).expanduser()
        if environment and not python and not _python_of(folder).exists():
            _make_environment(folder)
        self.python = Path(python) if python else _python_of(folder)
        if not self.python.exists():
            raise UserError(
                (f'{self.python} does not exist. ' if python else 'there is no environment with the TPU compiler. ')
                + f'Make one with --compiler-env {DEFAULT_ENV}, or with: {_commands(DEFAULT_ENV)}')

    def compile(self, program: bytes, tpu: Tpu, num_chips: int) -> dict[str, Any]:
        """What the compiler says of `program` on a slice of `tpu`: numbers per device, and `hlo`, the optimised text.

        When it does not fit into memory, there is only `needed_bytes` for temporaries, the `hbm_bytes` that there are,
        and `compile_s`. Raises UserError when the compiler is not there or cannot compile it.
        """
        topology = f'{tpu.name}:{tpu.topology(num_chips)}'
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, 'step.pb'), Path(folder, 'optimised.txt')
            source.write_bytes(program)
            done = subprocess.run(
                [self.python, '-I', compiler_child.__file__, source, topology, tpu.chip_config,
                 str(num_chips * tpu.devices_per_chip), target], capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(self._failure(done))
            result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            error = result.pop('error', None)
            if error is None:
                return result | dict(hlo=target.read_text())
        memory = parse_out_of_memory(error)
        if memory is None:
            raise UserError(f'the TPU compiler cannot compile this step for {topology}: {error}')
        needed, available = memory
        return result | dict(needed_bytes=needed, hbm_bytes=available)

    def _failure(self, done: subprocess.CompletedProcess[str]) -> str:
        reason = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
        if 'ModuleNotFoundError' in reason or 'ImportError' in reason:
            return (f'{self.python} has no TPU compiler ({reason}): pip install -c {TYPED} jax libtpu '
                    'there, or give --compiler-env DIR')
        if done.returncode < 0:
            return (f'the TPU compiler was killed by signal {-done.returncode}; it takes 4 to 24 GB of memory: free '
                    'some, or take a smaller batch')
        return f'the TPU compiler failed: {reason}'


def _python_of(folder: Path) -> Path:
    return folder / 'bin/python'


def _commands(folder: Path) -> str:
    return (f'python3 -m venv {folder} && {_python_of(folder)} -m pip install -c {TYPED} jax libtpu')


def _make_environment(folder: Path) -> None:
    print(f'making an environment with the TPU compiler in {folder}', file=sys.stderr)
    try:
        venv.create(folder, with_pip=True)
        subprocess.run([_python_of(folder), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
                        '-c', CONSTRAINTS, 'jax', 'libtpu'], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f'no environment with the TPU compiler can be made in {folder}: {error}. It needs a network '
                        'and 1 GB of disk; remove the folder and try again, or give --compiler-python') from error


def parse_out_of_memory(message: str) -> tuple[float, float] | None:
    """Bytes of HBM needed for temporaries, and available, from the compiler's error; None for another error."""
    if 'RESOURCE_EXHAUSTED' not in message:
        return None
    amounts = re.search(r'\(([\d.]+)([BKMGT])\) exceeds available HBM \(([\d.]+)([BKMGT])\)', message)
    if amounts is None:
        amounts = re.search(r'Used ([\d.]+)([BKMGT]) of ([\d.]+)([BKMGT]) hbm', message)
    if amounts is None:
        return None
    needed, needed_unit, available, available_unit = amounts.groups()
    return _bytes(needed, needed_unit), _bytes(available, available_unit)


def _bytes(amount: str, unit: str) -> float:
    return float(amount) * 1024 ** 'BKMGT'.index(unit)


def count_collectives(hlo: str) -> dict[str, int]:
    """How many exchanges of each kind an optimised program has.

    One that overlaps with arithmetic is in the text several times, on the same channel, and counts once.
    """
    found = re.findall(rf' ({"|".join(COLLECTIVES)})(?:-start)?\(.*?channel_id=(\d+)', hlo)
    return {kind: len({channel for name, channel in found if name == kind}) for kind in COLLECTIVES}


# ---- what follows from it ---------------------------------------------------------------------------------------

def describe(result: dict[str, Any], tpu: Tpu, batch_size: int) -> dict[str, Any]:
    """A row of results: memory of a device in GiB, work, floors of the time of a step (ms), images/s of a device.

    The floors are what peak arithmetic and peak bandwidth would take. XLA counts bytes that stay on the chip too, so
    a real step may need less bandwidth than that floor. `batch_size` is images per device.
    """
    if 'needed_bytes' in result:
        return dict(fits=False, hbm_limit_gib=_round(result['hbm_bytes'] / GIB),
                    temporaries_gib=_round(result['needed_bytes'] / GIB), compile_s=_round(result['compile_s']))
    compute_s, bandwidth_s = result['flops'] / tpu.peak_flops, result['bytes_accessed'] / tpu.hbm_bytes_per_s
    # Results that took over the memory of an argument are counted with the arguments.
    results = result['output_bytes'] - result['alias_bytes']
    return dict(
        fits=True, hbm_gib=_round(hbm_bytes(result) / GIB), hbm_limit_gib=_round(tpu.hbm_bytes / GIB),
        temporaries_gib=_round(result['temp_bytes'] / GIB), arguments_gib=_round(result['argument_bytes'] / GIB),
        results_gib=_round(results / GIB), code_gib=_round(result['generated_code_bytes'] / GIB),
        tflop=_round(result['flops'] / 1e12), gbytes=_round(result['bytes_accessed'] / 1e9),
        compute_floor_ms=_round(1e3 * compute_s), bandwidth_floor_ms=_round(1e3 * bandwidth_s),
        images_per_s_compute_bound=_round(batch_size / compute_s),
        images_per_s_bandwidth_bound=_round(batch_size / bandwidth_s),
        **{kind.replace('-', '_'): count for kind, count in count_collectives(result['hlo']).items()},
        compile_s=_round(result['compile_s']))


def hbm_bytes(result: dict[str, Any]) -> float:
    """Memory of a device that a compiled program takes while it runs."""
    return float(result['argument_bytes'] + result['output_bytes'] - result['alias_bytes'] + result['temp_bytes']
                 + result['generated_code_bytes'])


def _round(value: float) -> float:
    return float(f'{value:.4g}')


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
