import os
import subprocess
import sys

import pytest
from conftest import ROOT
from tpu_compilers import COMPILED, HLO, OUT_OF_MEMORY, fake_python, script

from timm_rs.errors import UserError
from timm_rs.tpu import compiler as tpu_compiler
from timm_rs.tpu.chips import GIB, find_tpu
from timm_rs.tpu.compiler import (
    CONSTRAINTS,
    PYTHON_VARIABLE,
    Compiler,
    count_collectives,
    describe,
    guess_largest_batch,
    hbm_bytes,
    largest_batch,
    parse_out_of_memory,
)

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


def test_exchanges_count_once_however_often_the_text_has_them():
    assert count_collectives(HLO) == {
        'all-reduce': 2, 'all-gather': 2, 'reduce-scatter': 0, 'all-to-all': 0, 'collective-permute': 0}


def test_memory_counts_what_results_take_over_once():
    assert hbm_bytes(dict(argument_bytes=100, output_bytes=60, alias_bytes=50, temp_bytes=7,
                          generated_code_bytes=1)) == 118


def test_floors_are_work_over_peaks():
    result = COMPILED | dict(flops=V5E.peak_flops / 10, bytes_accessed=V5E.hbm_bytes_per_s / 5, hlo='')
    row = describe(result, V5E, batch_size=32)
    assert (row['compute_floor_ms'], row['bandwidth_floor_ms']) == (100, 200)
    assert (row['images_per_s_compute_bound'], row['images_per_s_bandwidth_bound']) == (320, 160)


def test_row_has_memory_in_gib_and_exchanges():
    row = describe(COMPILED | dict(temp_bytes=3 * GIB, argument_bytes=GIB, output_bytes=GIB, alias_bytes=GIB // 2,
                                   generated_code_bytes=0, hlo=HLO), V5E, batch_size=8)
    assert row['fits']
    assert (row['temporaries_gib'], row['arguments_gib'], row['results_gib']) == (3, 1, 0.5)
    assert (row['hbm_gib'], row['hbm_limit_gib']) == (4.5, 15.75)
    assert (row['all_reduce'], row['all_gather'], row['all_to_all']) == (2, 2, 0)


def test_row_of_what_does_not_fit_says_how_much_is_needed():
    row = describe(dict(needed_bytes=20 * GIB, hbm_bytes=15.75 * GIB, compile_s=5.0), V5E, batch_size=8)
    assert row == dict(fits=False, temporaries_gib=20, hbm_limit_gib=15.75, compile_s=5)


# ---- the largest batch ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('limit', [0, 7, 8, 9, 64, 100, 1000])
@pytest.mark.parametrize('guess', [8, 96, 2000])
def test_largest_batch_is_the_last_multiple_of_8_that_fits(limit, guess):
    asked = []

    def fits(batch):
        asked.append(batch)
        return batch <= limit

    assert largest_batch(fits, guess) == limit // 8 * 8
    assert len(asked) == len(set(asked)) and 0 not in asked


def test_a_good_guess_takes_few_compilations_and_what_is_known_none():
    asked = []
    assert largest_batch(lambda batch: asked.append(batch) or batch <= 200, 200, {208: False}) == 200
    assert asked == [200]


def test_guess_fills_what_memory_is_left():
    result = COMPILED | dict(
        temp_bytes=2 * GIB, argument_bytes=1.75 * GIB, output_bytes=0, alias_bytes=0, generated_code_bytes=0)
    assert guess_largest_batch(result, V5E, batch_size=64) == 7 * 64
    assert guess_largest_batch(dict(needed_bytes=4.0, hbm_bytes=1.0), V5E, batch_size=64) == 16


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


# ---- the step ---------------------------------------------------------------------------------------------------

COMPARE = """
import collections, os, re, sys
os.environ.update(PJRT_DEVICE='CPU', CPU_NUM_DEVICES='2', XLA_FLAGS='--xla_backend_optimization_level=0')
from timm_rs.tpu import compiler as tpu_compiler
from timm_rs.device.xla import XlaDevice
from timm_rs.recipe.knobs import Recipe
model = dict(resnetrs=dict(model='resnetrs', model_kwargs=dict(layers=(1, 1, 1, 1), width=0.125), opt='sgd', drop=0.2),
             efficientnet=dict(model='test_efficientnet', opt='rmsproptf'))[sys.argv[1]]
recipe = Recipe(**model, img_size=32, batch_size=4, num_classes=10, warmup_epochs=0, lr=0.1, model_ema=True,
                model_ema_warmup=True, amp=True, amp_dtype='bfloat16', mixup=0.2)
device = XlaDevice()

def operations():  # in place of the serialized program: what it computes, in no order
    tensors = device._live_tensors()
    needed = device._xla._XLAC._check_tensor_need_materialization(tensors)
    text = device._xla._XLAC._get_xla_tensors_hlo([tensor for tensor, needs in zip(tensors, needed) if needs])
    return collections.Counter(re.findall(r'= (\\S+ [a-z-]+\\()', text))

device.collected_program = operations
traced = tpu_compiler.trace_step(recipe, device)
# Now the same, but the first update is run, not forgotten.
forget = [device._xla.sync, device.forget_collected]
device.forget_collected = lambda: forget.pop(0)()
ran = tpu_compiler.trace_step(recipe, device)
assert sum(traced.values()) > 500 and sum(shape.startswith('u8[8,32,32,3]') for shape in traced) == 1, traced
assert traced == ran, (traced - ran, ran - traced)
print('equal')
"""


@pytest.mark.xla
@pytest.mark.parametrize('model', ['resnetrs', 'efficientnet'])
def test_the_traced_step_is_the_one_that_runs_after_the_first(model):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', COMPARE, model], cwd=ROOT, capture_output=True,
                          text=True, check=False, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'equal\n'
