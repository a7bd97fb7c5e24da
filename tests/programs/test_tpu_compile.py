import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY, failure, load_tool
from tpu_compilers import COMPILED, HLO, OUT_OF_MEMORY, fake_python, script

from timm_rs.tpu import report
from timm_rs.tpu.compiler import PYTHON_VARIABLE, Compiler

RECIPE = ROOT / 'train_recipes/rs50.yaml'
STEP = [*TINY[:TINY.index('--device')], '--batch-size', '8']


@pytest.fixture(scope='module')
def tool():
    return load_tool('tpu_compile')


@pytest.fixture
def compile_with(tool, capsys, tmp_path):
    """Run the tool on a small step; its output and the row it wrote."""
    def run(python, *options):
        rows = tmp_path / 'rows.csv'
        tool.main([*STEP, '--compiler-python', str(python), *options, '--csv', str(rows)])
        with open(rows, newline='') as file:
            row, = csv.DictReader(file)
        return capsys.readouterr().out, row
    return run


@pytest.mark.xla
def test_row_says_that_it_is_no_run_and_where_it_comes_from(compile_with, tmp_path):
    out, row = compile_with(fake_python(tmp_path, COMPILED), '--tpu', 'v3')
    assert 'of 15.48 GiB' in out and 'exchanges: 2 all-reduce, 2 all-gather' in out
    assert row['kind'] == 'TPU compiler, not a run'
    assert (row['model'], row['img_size'], row['batch_size'], row['precision']) == ('resnetrs', '32', '8', 'float32')
    assert (row['tpu'], row['chips'], row['devices'], row['fits']) == ('v3', '1', '2', 'True')
    assert float(row['tflop']) == pytest.approx(COMPILED['flops'] / 1e12, rel=1e-3)
    assert all(word in row['versions'] for word in ('torch_xla', 'jax 0.10.2', 'libtpu 0.0.52'))
    assert row['date'] and row['commit'] and row['hardware'] and row['command']


@pytest.mark.xla
def test_out_of_memory_is_said_with_what_helps(compile_with, tmp_path):
    python = fake_python(tmp_path, dict(error=OUT_OF_MEMORY, compile_s=5.5, versions='jax 0, libtpu 0'))
    out, row = compile_with(python, '--tpu', 'v5e')
    assert 'out of memory, 105.7 GiB of temporaries are needed and 15.75 GiB there: take a smaller --batch-size' in out
    assert (row['fits'], row['temporaries_gib'], row['largest_batch_guess']) == ('False', '105.7', '8')


@pytest.mark.xla
def test_terminated_it_ends_the_compiler_too(tmp_path):
    compiler = script(tmp_path, f'echo $$ > {tmp_path}/starting\nmv {tmp_path}/starting {tmp_path}/pid\nexec sleep 600')
    tool = subprocess.Popen([sys.executable, ROOT / 'tools/tpu_compile.py', *STEP, '--tpu', 'v5e', '--compiler-python',
                             compiler], stderr=subprocess.DEVNULL)
    while not (tmp_path / 'pid').exists():
        assert tool.poll() is None
        time.sleep(0.1)
    tool.send_signal(signal.SIGTERM)
    assert tool.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)


@pytest.mark.xla
def test_largest_batch_is_found_by_compiling(tool, compile_with, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'create_program', lambda recipe, num_devices: str(recipe.batch_size).encode())
    monkeypatch.setattr(Compiler, 'compile', lambda self, program, tpu, chips: COMPILED | dict(hlo=HLO) if int(
        program) <= 20 else dict(needed_bytes=3.0, hbm_bytes=2.0, compile_s=1.0, versions=''))
    out, row = compile_with(fake_python(tmp_path, COMPILED), '--tpu', 'v5e', '--largest-batch', '--batch-size', '32')
    assert 'out of memory' in out and '24 images per device do not fit' in out
    assert 'largest batch that fits: 16 per device' in out and row['largest_batch'] == '16'


@pytest.mark.xla
def test_what_cannot_be_trained_on_xla_is_said_by_the_process_that_traces(tool, capsys, tmp_path):
    assert 'mixed precision on device xla is bfloat16' in failure(
        tool, capsys, *STEP, '--tpu', 'v5e', '--amp', '--compiler-python', fake_python(tmp_path, COMPILED))


def test_wrong_requests_are_refused_in_a_line(tool, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON_VARIABLE, str(fake_python(tmp_path, COMPILED)))
    monkeypatch.setattr(report, 'create_program', lambda *arguments: pytest.fail('went on'))
    for options, message in (
            (['--recipe', RECIPE], '--tpu is missing: it takes v3, v4'),
            (['--recipe', RECIPE, '--tpu', 'v5'], 'unknown TPU v5'),
            (['--recipe', RECIPE, '--tpu', 'v5e', '--csv', tmp_path], f'{tmp_path} cannot be written'),
            (['--recipe', RECIPE, '--tpu', 'v5e', '--csv', RECIPE / 'rows.csv'], 'rows.csv cannot be written'),
            (['--recipe', RECIPE, '--tpu', 'v5e', '--chips', 3], 'v5e has no slice of 3 chips'),
            (['--recipe', tmp_path / 'none.yaml', '--tpu', 'v5e'], 'does not exist'),
            (['--recipe', RECIPE, '--tpu', 'v5e', '--compiler-python', 'none'], 'none does not exist. Make one')):
        assert message in failure(tool, capsys, *options)


def test_table3_is_the_papers_pairs_at_32_images(tool):
    arguments = tool_arguments(tool, '--compare-table3')
    recipes = tool.choose_recipes(arguments)
    assert [(recipe.model, recipe.img_size) for recipe in recipes.values()] == [
        ('resnetrs_350', 256), ('tf_efficientnet_b6', 528), ('resnetrs_420', 320), ('tf_efficientnet_b7', 600)]
    assert all(recipe.batch_size == 32 and recipe.amp and recipe.amp_dtype == 'bfloat16' for recipe in recipes.values())
    assert {recipe.batch_size for recipe in tool.choose_recipes(
        tool_arguments(tool, '--compare-table3', '-b', '8')).values()} == {8}


def tool_arguments(tool, *argv):
    caught = []
    original, tool.run = tool.run, caught.append
    try:
        tool.main(list(argv))
    finally:
        tool.run = original
    return caught[0]


@pytest.mark.xla
@pytest.mark.skipif(not os.environ.get(PYTHON_VARIABLE), reason=(
    f'needs the TPU compiler: python3 -m venv venv_tpu && venv_tpu/bin/pip install -c constraints-tpu-compile.txt jax '
    f'libtpu && export {PYTHON_VARIABLE}=$PWD/venv_tpu/bin/python'))
def test_the_real_compiler_takes_a_step_over_four_chips(compile_with):
    _, row = compile_with(Compiler().python, '--tpu', 'v5e', '--chips', '4', '--amp', '--amp-dtype', 'bfloat16')
    assert row['fits'] == 'True' and row['devices'] == '4'
    assert 0 < float(row['hbm_gib']) < 1
    assert 1 <= int(row['all_reduce']) <= 5  # batch norm has none of its own; otherwise there would be dozens
    assert float(row['results_gib']) < 0.5 * float(row['arguments_gib'])  # weights are updated in place
