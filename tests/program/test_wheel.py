"""The package as people install it: a wheel, and no checkout anywhere."""

import csv
import json
import os
import shlex
import shutil
import site
import subprocess
import venv
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.long
# A smaller network than the quickstart's, and two updates for its 1,437 images.
QUICK = ['--recipe', 'quickstart', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--img-size', '32', '--device',
         'cpu', '--workers', '1', '--batch-size', '718', '--epochs', '1', '--warmup-epochs', '0']


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder of the environment's programs, and an empty one to work in."""
    root = tmp_path_factory.mktemp('wheel')
    for part in ('timm_rs', 'train_recipes', 'studies', 'results/paper.csv', 'constraints-tpu-compile.txt',
                 'pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
        (root / 'source' / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, root / 'source' / part)
    venv.create(root / 'env', with_pip=True, symlinks=True)
    pip = root / 'env/bin/python', '-m', 'pip', '--quiet', '--disable-pip-version-check'
    call(*pip, 'wheel', '--no-deps', '--wheel-dir', root, root / 'source')
    shutil.rmtree(root / 'source')
    call(*pip, 'install', '--no-deps', *root.glob('*.whl'))
    # The libraries installed here are there, too. Python does not read their .pth files, which may name the checkout.
    packages, = (root / 'env/lib').glob('python*/site-packages')
    (packages / 'libraries.pth').write_text('\n'.join(site.getsitepackages()))
    (root / 'cwd').mkdir()
    return root / 'env/bin', root / 'cwd'


def call(*command, cwd=None):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_trains_the_quickstart_evaluates_and_predicts(installed):
    scripts, folder = installed
    assert 'pack-dataset' in call(scripts / 'timm-rs', '--help', cwd=folder)
    origin = call(scripts / 'python', '-c', "import importlib.util as util; print(util.find_spec('timm_rs').origin)",
                  cwd=folder)
    assert Path(origin.strip()).is_relative_to(scripts.parent)

    assert 'update 2/2' in call(scripts / 'timm-rs', 'train', *QUICK, '--experiment', 'run', cwd=folder)
    run = folder / 'output/train/run'
    call(scripts / 'timm-rs', 'eval', run / 'model_best.pth.tar', *QUICK, cwd=folder)
    assert json.loads((run / 'model_best.eval.json').read_text())['num_samples'] == 360
    digit = next((folder / 'data/digits/validation/7').iterdir())
    assert call(scripts / 'timm-rs', 'predict', run, digit, cwd=folder).startswith(f'{digit}: ')


def test_processes_start_anew_from_an_installed_package_which_has_the_papers_numbers(installed):
    scripts, folder = installed
    call(scripts / 'timm-rs', 'benchmark', 'train', '--models', 'test_resnet@32', '--device', 'cpu', '--batch-size', 2,
         '--rounds', 1, cwd=folder)
    row, = csv.DictReader((folder / 'results/train.csv').read_text().splitlines())
    assert row['command'].startswith('timm-rs benchmark train --models')
    call(scripts / 'timm-rs', 'pareto', '--paper-latency', 'v100', '--output', 'pareto.svg', cwd=folder)
    assert (folder / 'pareto.svg').exists()


def test_an_installed_package_has_studies_whose_commands_are_its_own(installed):
    scripts, folder = installed
    commands = call(scripts / 'timm-rs', 'scaling', 'run', 'small_digits', '--commands', cwd=folder).splitlines()
    assert len(commands) == 24 and shlex.split(commands[0])[1:3] == [str(scripts / 'timm-rs'), 'train']
    assert 'builtin_data: digits-20' in call(*shlex.split(commands[0]), '--show', cwd=folder)
