"""Fixtures shared by all tests: a small folder of images and a way to run train.py inside the test process."""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hub_server import WRITE, HubServer
from PIL import Image

import timm_rs.publish.network
from timm_rs.data.pool import open_pool, pool_fingerprint
from timm_rs.data.pseudo_labels import MANIFEST, write_selection
from timm_rs.errors import exit_on_user_error
from timm_rs.programs import train

ROOT = Path(__file__).parents[1]
EXPECTED = ROOT / 'tests/expected'  # numbers, and the programs that make them

# The networks here are too small to share; two threads would only wait for each other. Children, too.
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'


class Run(NamedTuple):
    code: int
    out: str
    err: str


def write_images(root: Path, per_class: dict[str, int], size: int = 20, suffix: str = 'png', seed: int = 0) -> None:
    """Noisy images whose mean colour tells their class: `root`/CLASS/N.`suffix`."""
    rng = np.random.default_rng(seed)
    for number, (name, count) in enumerate(per_class.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 120, (size, size, 3)) + 45 * np.eye(3, dtype=int)[number % 3] * 3
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f'{index}.{suffix}')


def write_pseudo(folder: Path, pool: Path, classes: Sequence[str] = ('cat', 'dog', 'eel')) -> Path:
    """Labels as tools/pseudo_label.py selects them: two classes an image, every image once, the first twice."""
    folder.mkdir()
    samples = open_pool(str(pool))
    (folder / MANIFEST).write_text(json.dumps(dict(
        pool=str(pool), data_dir=None, split='train', num_images=len(samples),
        pool_sha256=pool_fingerprint(samples, str(pool)), num_classes=len(classes), classes=list(classes), top_k=2)))
    entries = np.array([0, *range(len(samples))])
    ids = np.stack([entries % len(classes), (entries + 1) % len(classes)], 1).astype(np.uint16)
    shares = np.tile(np.array([0.75, 0.125], np.float16), (len(entries), 1))
    write_selection(folder, dict(entries=entries, ids=ids, probabilities=shares), {})
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes, 8 training and 5 validation images each, as JPEGs of 20 px."""
    root = tmp_path / 'images'
    for split, count in (('train', 8), ('validation', 5)):
        write_images(root / split, dict.fromkeys(('cat', 'dog', 'eel'), count), suffix='jpg', seed=count)
    return root


# The smallest ResNet-RS that is still one: 4 bottlenecks, an eighth of the width.
TINY = ['--model', 'resnetrs', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--img-size', '32',
        '--device', 'cpu', '--workers', '0', '--batch-size', '8', '--epochs', '2', '--warmup-epochs', '0']


def assert_equal(first, second, where=''):
    """Bit-for-bit equality of nested dicts and lists of tensors and plain values."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f'{where}.{key}')
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f'{where}[{index}]')
    else:
        assert first == second, where


def load_tool(name: str) -> ModuleType:
    """The program behind tools/`name`.py."""
    return importlib.import_module(f'timm_rs.programs.{name}')


def failure(tool: ModuleType, capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a tool prints on its way out with status 2."""
    with pytest.raises(SystemExit) as exit_status:
        tool.main(list(map(str, argv)))
    assert exit_status.value.code == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1
    return err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Run]:
    """`train.py ARGUMENTS` in this process; output goes below tmp_path unless the arguments say otherwise."""
    def call(*arguments: object) -> Run:
        argv = [str(argument) for argument in arguments]
        if '--output' not in argv:
            argv += ['--output', str(tmp_path / 'runs')]
        code = 0
        try:
            with exit_on_user_error():
                train.main(argv)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        return Run(code, *capsys.readouterr())
    return call


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub on this machine, to which this process is logged in, with an empty cache and short patience."""
    from huggingface_hub import close_session, constants
    server = HubServer()
    for name, value in dict(
            ENDPOINT=server.url, HUGGINGFACE_CO_URL_TEMPLATE=server.url + '/{repo_id}/resolve/{revision}/{filename}',
            HF_HUB_CACHE=str(tmp_path / 'cache'), HF_TOKEN_PATH=str(tmp_path / 'no_token'),
            HF_HUB_DISABLE_XET=True, AGENT_HARNESSES_PATH=str(tmp_path / 'harnesses.json')).items():
        monkeypatch.setattr(constants, name, value)
    (tmp_path / 'certificates').mkdir()  # none: there is no TLS here, and reading all of them takes long
    for name, value in dict(HF_TOKEN=WRITE, NO_PROXY='127.0.0.1,localhost',
                            SSL_CERT_DIR=str(tmp_path / 'certificates')).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(timm_rs.publish.network, 'WAITS', (0.01,) * 3)
    close_session()
    yield server
    close_session()
    server.close()


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of train.py on three classes, with averaged weights and an evaluation."""
    folder = tmp_path_factory.mktemp('tiny_run')
    for split, count in (('train', 8), ('validation', 5)):
        write_images(folder / 'pets' / split, dict.fromkeys(('cat', 'dog', 'eel'), count), seed=count)
    argv = [*TINY, '--data-dir', str(folder / 'pets'), '--output', str(folder), '--experiment', 'run',
            '--model-ema', '--model-ema-decay', '0.5', '--crop-pct', '1.0']
    train.main(argv)
    train.main([*argv, '--eval', str(folder / 'run/model_best.pth.tar')])
    return folder / 'run'


# The smallest network for clips, and what recipes of images have and clips do not.
TINY_CLIPS = [*TINY, '--task', 'video', '--model', 'resnetrs3d', '--img-size', '24', '--num-frames', '3',
              '--color-jitter', '0', '--train-interpolation', 'bilinear', '--mean', '0', '--std', '1',
              '--batch-size', '4', '--lr', '0.01']


@pytest.fixture(scope='session')
def clips_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on videos of two classes, with six views of frames 1 apart; `clips` is beside it."""
    from videos import encode, write_frames  # which need PyAV
    folder = tmp_path_factory.mktemp('clips_run')
    for split in ('train', 'validation'):
        for name, colour in dict(blue=(40, 60, 250), red=(250, 60, 40)).items():
            (folder / 'clips' / split / name).mkdir(parents=True)
            for index in range(3):
                (folder / 'clips' / split / name / f'{index}.mp4').write_bytes(encode(8 + index, colour=colour))
            write_frames(folder / 'clips' / split / name / 'frames', 9, colour)
    train.main([*TINY_CLIPS, '--data-dir', str(folder / 'clips'), '--output', str(folder), '--experiment', 'run',
                '--epochs', '1', '--frame-stride', '1', '--eval-clips', '2', '--eval-crops', '3',
                '--eval-img-size', '32'])
    return folder / 'run'
