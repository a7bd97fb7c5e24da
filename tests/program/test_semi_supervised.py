"""Training on labelled and pseudo-labelled images together, as a user starts it."""

import csv

import pytest
import torch
from conftest import TINY, write_images, write_pseudo
from test_resume import HARD, assert_same_run, train_and_stop  # noqa: F401
from test_train import refused

from timm_rs.data import loader as fast_loader

PER_EPOCH = 24  # updates, of 1 labelled image and 3 of the pool


@pytest.fixture
def pseudo(tmp_path):
    """The options for a pool of 11 images, one of which cannot be read."""
    write_images(tmp_path / 'pool', {'.': 11}, seed=3)
    (tmp_path / 'pool/5.png').write_bytes(b'no image')
    return ['--pseudo-dir', write_pseudo(tmp_path / 'P', tmp_path / 'pool')]


@pytest.mark.parametrize('extra', [[], ['--workers', 2, *HARD]], ids=['plain', '2 workers, all randomness'])
def test_a_run_stopped_anywhere_is_the_one_that_was_not(train_and_stop, tmp_path, monkeypatch, pseudo, extra):  # noqa: F811
    monkeypatch.setattr(fast_loader, 'num_cores', lambda: 2)
    whole = train_and_stop('whole', *pseudo, *extra)
    assert ('an epoch is one pass over 24 labelled images, with 3 pseudo-labelled ones beside each; 2 epochs pass the '
            '12 of the pool 12 times') in whole[0]
    train_and_stop('part', *pseudo, *extra, after=(2, PER_EPOCH + 3))
    assert_same_run(tmp_path / 'runs/whole', tmp_path / 'runs/part')
    rows = list(csv.DictReader((tmp_path / 'runs/whole/bad_samples.csv').open()))
    assert [row['name'] for row in rows] == [str(tmp_path / 'pool/5.png')]
    content = torch.load(tmp_path / 'runs/whole/last.pth.tar', weights_only=True)
    assert content['place']['update'] == 2 * PER_EPOCH


def test_other_pseudo_labels_are_refused_like_another_recipe(run, image_folder, tmp_path, pseudo):
    arguments = [*TINY, '--data-dir', image_folder, '--epochs', 1]
    assert run(*arguments, *pseudo, '--experiment', 'A').code == 0
    moved = ['--pseudo-dir', (tmp_path / 'P').rename(tmp_path / 'Q'), '--pseudo-pool', tmp_path / 'pool']
    assert run(*arguments, *moved, '--experiment', 'A', '--resume', 'auto').code == 0
    moved[1] = write_pseudo(tmp_path / 'R', tmp_path / 'pool', classes=('dog', 'cat', 'eel'))
    refused(run(*arguments, *moved, '--experiment', 'A', '--resume', 'auto'), 'pseudo labels', '--allow-recipe-change')


def test_a_pool_of_nothing_but_the_labelled_images_is_refused(run, image_folder, tmp_path):
    labels = write_pseudo(tmp_path / 'P', image_folder / 'train')
    refused(run(*TINY, '--data-dir', image_folder, '--pseudo-dir', labels),
            'has no image but the labelled ones', 'train without --pseudo-dir')


@pytest.mark.parametrize(('extra', 'parts'), [
    (['-b', 6], ['batch_size 6 is no multiple of 4', 'give 4 or 8', '--pseudo-ratio']),
    (['-b', 3, '--pseudo-ratio', 4], ['batch_size 3', 'give 5']),
    (['--bn-group-size', 2], ['bn_group_size 2', 'give 4']),
    (['--loader', 'timm'], ['pseudo labels need the loader "fast"']),
    (['--bce-loss'], ['bce_loss does not go with pseudo_dir']),
    (['--pseudo-ratio', 0], ['pseudo_ratio must be at least 1']),
    (['--pseudo-temperature', 0], ['pseudo_temperature must be above 0']),
    (['--pseudo-dir', 'nowhere'], ['nowhere has no manifest.json', 'label POOL nowhere']),
    (['--pseudo-pool', 'nowhere'], ['pool nowhere does not exist']),
    (['-b', 100], ['the training set has 96 images, fewer than one batch of 100']),
])
def test_bad_settings_are_refused(run, image_folder, pseudo, extra, parts):
    refused(run(*TINY, '--data-dir', image_folder, *pseudo, *extra), *parts)
