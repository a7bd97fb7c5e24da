import subprocess
import sys

import pytest
from conftest import ROOT
from tpu_compilers import COMPILED, HLO, OUT_OF_MEMORY, fake_python, script

from timm_rs.benchmark.rows import GIB
from timm_rs.errors import UserError
from timm_rs.tpu import compiler as tpu_compiler
from timm_rs.tpu.chips import find_tpu
from timm_rs.tpu.compiler import CONSTRAINTS, PYTHON_VARIABLE, Compiler, parse_out_of_memory

V5E = find_tpu('v5e')


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch, tmp_path):
    """Tests find no compiler but the one they name."""
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(tpu_compiler, 'DEFAULT_ENV', tmp_path / 'none')


# ---- what the compiler says -------------------------------------------------------------------------------------

def test_out_of_memory_is_read_as_bytes():
    assert parse_out_of_memory(OUT_OF_MEMORY) == (105.73 * GIB, 15.75 * GIB)
    assert parse_out_of_memory(
        'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 520.50M of 128.0M hbm.') == (
        520.5 * 2**20, 128 * 2**20)


@pytest.mark.parametrize('message', [
    'INVALID_ARGUMENT: Computation requires more parameters (6405) than supported (limit 3293).',
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem', ''])
def test_other_errors_are_no_lack_of_hbm(message):
    assert parse_out_of_memory(message) is None


# ---- the environment of the compiler ----------------------------------------------------------------------------

def test_without_an_environment_one_line_has_the_commands_that_make_it(tmp_path):
    with pytest.raises(UserError) as error:
        Compiler()
    assert 'no environment with the TPU compiler' in str(error.value)
    for command in ('--compiler-env', 'python3 -m venv', f'pip install -c {CONSTRAINTS.name} jax libtpu'):
        assert command in str(error.value)
    with pytest.raises(UserError, match='missing/python does not exist'):
        Compiler(str(tmp_path / 'missing/python'))


def test_python_comes_from_the_option_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    paths = {}
    for name in ('option', 'variable', 'none/bin', 'other/bin'):
        (tmp_path / name).mkdir(parents=True)
        paths[name] = script(tmp_path / name, 'true')
    assert Compiler().python == paths['none/bin']
    monkeypatch.setenv(PYTHON_VARIABLE, str(paths['variable']))
    assert Compiler().python == paths['variable']
    assert Compiler(environment=tmp_path / 'other').python == paths['other/bin']
    assert Compiler(str(paths['option'])).python == paths['option']


def test_an_environment_asked_for_is_made_and_a_failure_is_told(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(tpu_compiler.venv, 'create', lambda folder, with_pip: (folder / 'bin').mkdir(parents=True))
    monkeypatch.setattr(tpu_compiler.subprocess, 'run', lambda command, check: commands.append(command) or script(
        tmp_path / 'new/bin', 'true'))
    assert Compiler(environment=tmp_path / 'new').python.exists()
    assert [str(part) for part in commands[0][-4:]] == ['-c', str(CONSTRAINTS), 'jax', 'libtpu']

    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)
    monkeypatch.setattr(tpu_compiler.subprocess, 'run', fail)
    with pytest.raises(UserError, match=r'can be made in .*newer.* needs a network'):
        Compiler(environment=tmp_path / 'newer')


def test_constraints_pin_all_that_the_compiler_needs():
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith('#')]
    assert all('==' in pin for pin in pins)
    assert {'jax', 'jaxlib', 'libtpu'} <= {pin.partition('==')[0] for pin in pins}


# ---- compiling --------------------------------------------------------------------------------------------------

def test_the_answer_comes_with_the_optimised_program(tmp_path):
    result = Compiler(str(fake_python(tmp_path, COMPILED))).compile(b'program', V5E, 4)
    assert result == COMPILED | dict(hlo=HLO)


def test_the_compiler_gets_the_slice_and_the_devices(tmp_path):
    python = script(tmp_path, f'echo "$@" > {tmp_path}/arguments\nexit 1')
    for tpu, num_chips, expected in (('v3', 4, 'v3:2x2 default 8'), ('v4', 4, 'v4:2x2x1 megacore_dense 4')):
        with pytest.raises(UserError, match='the TPU compiler failed: it said nothing'):
            Compiler(str(python)).compile(b'program', find_tpu(tpu), num_chips)
        assert expected in (tmp_path / 'arguments').read_text()


def test_out_of_memory_is_an_answer(tmp_path):
    answer = dict(error=OUT_OF_MEMORY, compile_s=5.5, versions='jax 0, libtpu 0')
    assert Compiler(str(fake_python(tmp_path, answer))).compile(b'', V5E, 1) == dict(
        compile_s=5.5, versions='jax 0, libtpu 0', needed_bytes=105.73 * GIB, hbm_bytes=15.75 * GIB)


@pytest.mark.parametrize(('lines', 'message'), [
    ('echo "ModuleNotFoundError: No module named \'jax\'" >&2; exit 1', r'has no TPU compiler \(ModuleNotFoundError'),
    ('kill -9 $$', 'killed by signal 9; it takes 4 to 24 GB of memory'),
    ('echo "first" >&2; echo "last" >&2; exit 3', 'the TPU compiler failed: last'),
    ("""echo '{"error": "INVALID: no such op", "compile_s": 1}'""", 'cannot compile this step for v5e:1x1: INVALID'),
])
def test_failures_are_one_sentence(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        Compiler(str(script(tmp_path, lines))).compile(b'', V5E, 1)


def test_the_child_imports_nothing_of_ours():
    code = ('import runpy, sys; runpy.run_path(sys.argv[1]); '
            'print({name.partition(".")[0] for name in sys.modules} & {"torch", "timm", "timm_rs", "jax", "numpy"})')
    done = subprocess.run([sys.executable, '-I', '-c', code, ROOT / 'timm_rs/tpu/compiler_child.py'],
                          capture_output=True, text=True, check=True)
    assert done.stdout == 'set()\n'
