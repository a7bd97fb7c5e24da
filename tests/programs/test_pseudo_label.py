"""tools/pseudo_label.py: the same labels however often it is killed and by however many processes they are made."""

import contextlib
import csv
import errno
import json
import os
import random
import shutil
import signal
import time
import traceback

import numpy as np
import pytest
from conftest import TINY, failure, load_tool, write_images
from PIL import Image, ImageOps

from timm_rs.data.pool import open_pool, pool_names
from timm_rs.inference.predict import predict
from timm_rs.inference.source import open_model
from timm_rs.labelling import units

KILLS = int(os.environ.get('TIMM_RS_LABEL_KILLS', 4))

tool = load_tool('pseudo_label')


@pytest.fixture(scope='module')
def pool(tiny_run, tmp_path_factory):
    """43 images, of which one is broken and three are of the teacher's validation data."""
    root = tmp_path_factory.mktemp('semi') / 'pool'
    write_images(root, {'.': 19, 'deeper/x': 20}, seed=55)
    cats = sorted((tiny_run.parent / 'pets/validation/cat').iterdir())
    shutil.copy(cats[0], root / 'same.png')
    Image.open(cats[1]).save(root / 'again.jpg', quality=95, subsampling=0)
    ImageOps.mirror(Image.open(cats[2])).save(root / 'flipped.png')
    (root / '5.png').write_bytes(b'no image')
    return root


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, 'UNIT', 8)
    monkeypatch.setattr('timm_rs.labelling.label.POLL_S', 0.02)


@pytest.fixture
def label(tiny_run, pool):
    def call(folder, *more, exclude=True):
        tool.main(['label', str(pool), str(folder), '--teacher', str(tiny_run), '--device', 'cpu', '-j', '0', '-b', '4',
                   '--top-k', '2', *map(str, more),
                   *(['--exclude-like', str(tiny_run.parent / 'pets/validation')] if exclude else [])])
    return call


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_every_image_has_the_teachers_label_and_a_broken_one_shifts_nobody(label, tiny_run, pool, tmp_path, capsys):
    label(tmp_path / 'P')
    assert '42 images labelled by resnetrs, 1 bad, 3 of the excluded data' in capsys.readouterr().out
    manifest = json.loads((tmp_path / 'P/manifest.json').read_text())
    assert (manifest['num_images'], manifest['classes'], manifest['top_k']) == (42, ['cat', 'dog', 'eel'], 2)
    made = units.Units(tmp_path / 'P', manifest)
    assert len(made) == 6 and made.images(5) == range(40, 42)
    ids, shares = (np.concatenate([getattr(made.read(number), name) for number in range(6)])
                   for name in ('ids', 'probabilities'))
    images = [str(pool / name) for name in pool_names(open_pool(str(pool)), str(pool))]
    expected = list(predict(open_model(str(tiny_run)), images, top_k=2, batch_size=4, workers=0))
    bad = images.index(str(pool / '5.png'))
    assert not ids[bad].any() and not shares[bad].any()
    for index, prediction in enumerate(expected):
        if index != bad:
            assert [one.number for one in prediction.classes] == ids[index].tolist()
            np.testing.assert_allclose(
                [one.probability for one in prediction.classes], shares[index].astype(float), rtol=1e-3)
    with open(tmp_path / 'P/bad_samples.csv', newline='') as file:
        assert [row['name'] for row in csv.DictReader(file)] == [str(pool / '5.png')]


def test_images_of_the_validation_data_are_found_however_they_were_copied(label, pool, tiny_run, tmp_path):
    label(tmp_path / 'P')
    with open(tmp_path / 'P/leaks.csv', newline='') as file:
        rows = {os.path.basename(row['name']): row for row in csv.DictReader(file)}
    assert rows.keys() == {'same.png', 'again.jpg', 'flipped.png'}
    cats = tiny_run.parent / 'pets/validation/cat'
    assert [rows[name]['is_again'] for name in ('same.png', 'again.jpg', 'flipped.png')] == [
        str(cats / f'{number}.png') for number in range(3)]
    assert rows['same.png']['kind'] == 'same bytes' and rows['flipped.png']['kind'] == 'same features'


def start(label, folder):
    """`label` in a child process."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
                label(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def test_labels_killed_at_any_moment_and_made_by_two_at_once_are_those_of_one_run(label, tmp_path):
    started = time.monotonic()
    assert os.waitpid(start(label, tmp_path / 'whole'), 0)[1] == 0
    seconds = time.monotonic() - started
    rng, killed = random.Random(0), 0
    for _ in range(KILLS):
        pids = [start(label, tmp_path / 'part') for _ in range(2)]
        time.sleep(rng.uniform(0, seconds))
        victim = rng.choice(pids)
        if os.waitpid(victim, os.WNOHANG) == (0, 0):
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            killed += 1
        pids.remove(victim)
        assert os.waitpid(pids[0], 0)[1] == 0  # the other goes on, and does what the first one left
        assert content(tmp_path / 'whole').items() <= content(tmp_path / 'part').items()
        label(tmp_path / 'part')  # the next start removes what the killed one left
        assert content(tmp_path / 'part') == content(tmp_path / 'whole')
        for path in rng.sample(sorted((tmp_path / 'part/units').iterdir()), 4):
            path.unlink()
    assert killed  # some come too late: what is left to label takes less and less time


def test_a_damaged_unit_is_made_again(label, tmp_path):
    label(tmp_path / 'P')
    before = content(tmp_path / 'P')
    (tmp_path / 'P/units/000003.npz').write_bytes(before['units/000003.npz'][:-30])
    label(tmp_path / 'P')
    assert content(tmp_path / 'P') == before


@pytest.mark.slow
def test_workers_change_nothing(label, tmp_path, monkeypatch):
    monkeypatch.setattr('timm_rs.data.loader.num_cores', lambda: 2)
    label(tmp_path / 'P')
    label(tmp_path / 'Q', '-j', 2)
    assert content(tmp_path / 'P') == content(tmp_path / 'Q')


def test_a_full_disk_keeps_what_is_labelled(label, tmp_path, monkeypatch, capsys):
    replace = os.replace

    def full(source, target):
        if str(target).endswith('000002.npz'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)
    label(tmp_path / 'whole')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(SystemExit) as stop:
        label(tmp_path / 'part')
    assert stop.value.code == 2 and 'No space left on device; what is labelled is kept' in capsys.readouterr().err
    assert sorted(content(tmp_path / 'part')) == ['manifest.json', 'units/000000.npz', 'units/000001.npz']
    monkeypatch.undo()
    monkeypatch.setattr(units, 'UNIT', 8)
    label(tmp_path / 'part')
    assert content(tmp_path / 'part') == content(tmp_path / 'whole')


def test_from_a_pool_to_a_student(label, run, image_folder, tmp_path, capsys):
    label(tmp_path / 'P', exclude=False)
    assert 'selected from it, unless you select otherwise' in capsys.readouterr().out
    tool.main(['select', str(tmp_path / 'P'), '--min-confidence', '0.34', '--per-class', '12'])
    out = capsys.readouterr().out
    assert 'class' in out and 'entries of' in out and '--pseudo-dir' in out
    entries = np.load(tmp_path / 'P/selected-entries.npy')
    assert len(entries) % 12 == 0 and len(entries)
    result = run(*TINY, '--epochs', 1, '--data-dir', image_folder, '--pseudo-dir', tmp_path / 'P')
    assert result.code == 0 and f'pass the {len(entries)} of the pool' in result.out


def test_what_cannot_be_labelled_is_refused_in_one_line(label, tiny_run, pool, tmp_path, capsys):
    def told(*argv):
        return failure(tool, capsys, *argv)

    teacher = ['--teacher', tiny_run, '--device', 'cpu', '-j', 0]
    assert 'pool nowhere does not exist' in told('label', 'nowhere', tmp_path / 'P', *teacher)
    (tmp_path / 'empty').mkdir()
    assert 'there are no images in' in told('label', tmp_path / 'empty', tmp_path / 'P', *teacher)
    assert 'no_model' in told('label', pool, tmp_path / 'P', '--teacher', 'no_model')
    (tmp_path / 'file').write_bytes(b'')
    assert 'file cannot be written' in told('label', pool, tmp_path / 'file', *teacher)
    label(tmp_path / 'P', exclude=False)
    capsys.readouterr()
    assert 'has labels of another kind: batch_size, excluded, top_k differ' in told(
        'label', pool, tmp_path / 'P', *teacher, '--exclude-like', pool)
    assert 'has no manifest.json: label a pool first' in told('select', tmp_path / 'empty')
    assert '--min-confidence must be between 0 and 1' in told('select', tmp_path / 'P', '--min-confidence', 2)
