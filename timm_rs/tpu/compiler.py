"""The TPU's compiler, which comes with libtpu and is reached through jax, in an environment of its own.

It needs that environment because torch_xla pins another libtpu.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError
from timm_rs.files import CHECKOUT, SHIPPED
from timm_rs.tpu import compiler_child
from timm_rs.tpu.chips import Tpu

CONSTRAINTS = SHIPPED / 'constraints-tpu-compile.txt'
TYPED = CONSTRAINTS.name if SHIPPED == CHECKOUT else CONSTRAINTS  # what people write for it
DEFAULT_ENV = Path('~/.cache/timm_rs/tpu_compiler')
PYTHON_VARIABLE = 'TIMM_RS_TPU_PYTHON'


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
