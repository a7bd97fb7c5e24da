import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

README = (ROOT / 'README.md').read_text()
PAGES = {path: path.read_text() for path in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md'))}


def commands():
    """The lines of README's plain code blocks."""
    return [line for block in re.findall(r'```\n(.*?)```', README, re.DOTALL) for line in block.splitlines()]


def test_ci_runs_the_two_commands_exactly_as_readme_opens_with_them():
    first, second = commands()[:2]
    assert first.startswith('pip install') and first.endswith('train.py --recipe train_recipes/quickstart.yaml')
    assert second.startswith('pip install') and second.endswith('&& pytest')
    ci = (ROOT / '.ci/run').read_text().splitlines()
    assert first in ci and second in ci


def test_table_of_recipes_is_what_the_tool_prints():
    printed = subprocess.run([sys.executable, ROOT / 'tools/list_recipes.py'], capture_output=True, text=True,
                             check=True)
    assert printed.stdout in (ROOT / 'train_recipes/README.md').read_text()


def test_readme_is_a_door_to_every_page():
    assert len(README.splitlines()) <= 160
    for path in PAGES:
        assert path.name == 'README.md' or f'](docs/{path.name})' in README, path.name


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r'\]\((?!https?:)([^)#]+)', PAGES[path]):
        assert (path.parent / target).exists(), target


SHOW_HELP = """
import os, runpy, sys
for path in sys.argv[1:]:
    sys.argv = [*path.split(), '--help']
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        assert not end.code, path
"""


def test_every_program_has_help_with_an_example_and_no_page_names_other_options():
    programs = [ROOT / 'train.py', *(ROOT / 'tools').glob('*.py')]
    programs += [f'{ROOT / "train.py"} --task video', *(f'{ROOT / "tools" / command}' for command in (
        'pseudo_label.py label', 'pseudo_label.py select', 'scaling.py plan', 'scaling.py run', 'scaling.py report',
        'scaling.py family'))]
    programs += [*map(str, {*ROOT.glob('studies/*.py')} - {ROOT / 'studies/seeds.py'}),
                 *(f'{ROOT / "train.py"} --task {task}' for task in (
                     'segmentation', 'depth', 'detection', 'multilabel'))]
    # in one process, since most of the time goes to imports
    shown = subprocess.run([sys.executable, '-c', SHOW_HELP, *programs], capture_output=True, text=True,
                           check=True).stdout
    for beginning in ('usage: ', 'examples?:'):
        assert len(re.findall(f'^{beginning}', shown, re.MULTILINE)) == len(programs)
    of_others = {'--nproc-per-node', '--max-restarts', '--logdir'}  # torchrun's, tensorboard's
    known = set(re.findall(r'--[a-z][a-z-]+', shown)) | of_others
    for path, page in PAGES.items():
        assert set(re.findall(r'--[a-z][a-z-]+', page)) <= known, path.name


@pytest.mark.parametrize('path', [*(ROOT / 'train_recipes').glob('*.yaml')], ids=lambda path: path.stem)
def test_recipes_are_plain_yaml_for_timm(path):
    content = yaml.safe_load(path.read_text())
    assert all(isinstance(key, str) and '-' not in key for key in content)
