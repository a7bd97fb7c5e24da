import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, failure, load_tool

from timm_rs.programs.command import commands

tool = load_tool('completion')


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp('completion') / 'timm-rs'
    path.write_text(tool.completion('bash'))
    return path


def completed(script, line):
    """What bash offers for the last word of `line`."""
    if not shutil.which('bash'):
        pytest.skip('there is no bash here')
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _shtab_timm_rs 2>&1; echo "${COMPREPLY[*]}"'
    result = subprocess.run(['bash', '-c', ask, 'bash', script, *line.split(' ')], capture_output=True, text=True,
                            cwd=ROOT)
    return result.stdout.split()


@pytest.mark.parametrize(('line', 'expected'), [
    ('timm-rs tr', ['train', 'transfer-table']),
    ('timm-rs train --smooth', ['--smoothing']),
    ('timm-rs train --no-am', ['--no-amp']),
    ('timm-rs train --recipe rs350', ['rs350', 'rs350_i320']),
    ('timm-rs train --recipe train_r', ['train_recipes']),
    ('timm-rs eval READ', ['README.md']),
    ('timm-rs train --gp catav', ['catavgmax']),
    ('timm-rs pseudo-label sel', ['select']),
    ('timm-rs pseudo-label select --min', ['--min-confidence']),
    ('timm-rs with-timm READ', ['README.md']),
    ('timm-rs completion z', ['zsh'])])
def test_bash_completes(script, line, expected):
    assert completed(script, line) == expected


@pytest.mark.parametrize('shell', tool.SHELLS)
def test_every_command_is_in_the_script_of_each_shell(shell, capsys):
    tool.main([shell])
    shown = capsys.readouterr().out
    assert not [name for name in commands() if name not in shown]


def test_without_the_package_that_writes_it_people_hear_which(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert 'pip install shtab' in failure(tool, capsys, 'bash')
