import contextlib
import io
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, failure, load_tool

from timm_rs.benchmark.rows import provenance

tool = load_tool('command')


@pytest.fixture(autouse=True)
def _argv(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['timm-rs'])


@pytest.fixture
def called(monkeypatch):
    """A program's name and its arguments, instead of running it."""
    calls = []
    monkeypatch.setattr(tool.importlib, 'import_module', lambda name: SimpleNamespace(
        main=lambda argv: calls.append((name.removeprefix('timm_rs.programs.'), argv))))
    return calls


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']], ids=str)
def test_list_has_every_program_with_the_first_line_of_its_docstring(capsys, argv):
    tool.main(argv)
    shown = dict(re.findall(r'^  ([a-z-]+) {2,}(.+)$', capsys.readouterr().out, re.MULTILINE))
    doors = {path.stem for path in [ROOT / 'train.py', *(ROOT / 'tools').glob('*.py')]} - {'stress_resume'}
    assert list(shown) == sorted({door.replace('_', '-') for door in doors} | {'eval'})
    assert shown['predict'] == (
        'Print the most likely classes of images or videos, or draw what a network says of their pixels.')


@pytest.mark.parametrize('name', sorted({path.stem for path in (ROOT / 'timm_rs/programs').glob('[!_]*.py')}))
def test_help_can_be_read_where_there_is_only_ascii(monkeypatch, name):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(shown, encoding='ascii', write_through=True))
    with pytest.raises(SystemExit) if name != 'command' else contextlib.nullcontext():
        load_tool(name).main(['--help'])
    assert b'usage: ' in shown.getvalue()


HELP = """
import contextlib, importlib, io, sys
from timm_rs.programs.command import commands, main
for words in [[], *([name] for name in commands()), ['stress-resume'], ['benchmark', 'train'], ['scaling', 'run']]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        if words == ['stress-resume']:
            importlib.import_module('timm_rs.programs.stress_resume').main(['--help'])
        else:
            main([*words, '--help'])
    assert 'usage: ' in shown.getvalue(), words
    heavy = {'torch', 'timm', 'numpy', 'PIL', 'matplotlib', 'huggingface_hub'} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def test_help_waits_for_no_large_package():
    subprocess.run([sys.executable, '-c', HELP], check=True, cwd=ROOT)


def test_program_gets_the_words_after_its_name_and_calls_itself_by_it(called):
    tool.main(['pack-dataset', 'photos', '--help'])
    assert called == [('pack_dataset', ['photos', '--help'])]
    assert sys.argv == ['timm-rs pack-dataset', 'photos', '--help']


def test_eval_is_the_option_of_train(called):
    tool.main(['eval', 'best.pth.tar', '--recipe', 'rs50'])
    tool.main(['eval', '--help'])
    assert called == [('train', ['--eval', 'best.pth.tar', '--recipe', 'rs50']), ('train', ['--help'])]


def test_unknown_name_gets_the_nearest(capsys):
    assert failure(tool, capsys, 'pack_dataset') == (
        'error: unknown command pack_dataset. Did you mean pack-dataset? (see timm-rs --help)\n')


def test_errors_and_usage_name_the_command(capsys):
    assert failure(tool, capsys, 'train', '--epoch', 1).endswith('(see timm-rs train --help)\n')
    for name in ('train', 'flops', 'with-timm', 'tpu-compile'):
        with pytest.raises(SystemExit, match='0'):
            tool.main([name, '--help'])
        assert f'usage: timm-rs {name} ' in capsys.readouterr().out


def test_ctrl_c_ends_with_130(monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt
    monkeypatch.setattr(tool.importlib, 'import_module', interrupt)
    with pytest.raises(SystemExit) as stop:
        tool.main(['train'])
    assert stop.value.code == 130


@pytest.mark.parametrize(('argv', 'typed'), [
    (['timm-rs benchmark', 'infer', 'a b'], "timm-rs benchmark infer 'a b'"),
    (['tools/benchmark.py', 'infer'], 'python tools/benchmark.py infer')])
def test_rows_of_a_benchmark_say_what_was_typed(monkeypatch, argv, typed):
    monkeypatch.setattr(sys, 'argv', argv)
    assert provenance()['command'] == typed
