"""Classes with few and with many images, as a user meets them."""

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, write_images, write_pseudo
from test_resume import HARD, assert_same_run, train_and_stop  # noqa: F401
from test_train import refused

from timm_rs.publish.folder import write_folder
from timm_rs.recipe.reading import read_file
from timm_rs.training.trained import read_run


@pytest.fixture
def rare(image_folder):
    """The images without six of the eight eels for training."""
    for index in range(6):
        (image_folder / f'train/eel/{index}.jpg').unlink()
    return image_folder


@pytest.fixture
def weights(tmp_path):
    (tmp_path / 'weights.csv').write_text('class,weight\ncat,1\ndog,0.5\neel,4\n')
    return tmp_path / 'weights.csv'


def rows_of(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


def state_of(folder):
    return torch.load(folder / 'last.pth.tar', weights_only=True)['state_dict']


@pytest.mark.parametrize('extra', [['--balanced-sampling'], ['--class-weights', 'auto', *HARD]],
                         ids=['balanced', 'weights, all randomness'])
def test_a_run_stopped_anywhere_is_the_one_that_was_not(train_and_stop, rare, tmp_path, extra):  # noqa: F811
    out = train_and_stop('whole', *extra, data=rare)[0]
    assert '18 training images of 3 classes: from 2 of eel to 8 of cat\n' in out
    train_and_stop('part', *extra, data=rare, after=(1, 6))
    assert_same_run(tmp_path / 'runs/whole', tmp_path / 'runs/part')


@pytest.mark.parametrize('extra', [
    ['--smoothing', 0], [], ['--mixup', 0.5, '--cutmix', 1.0], ['--mixup', 0.5, '--mixup-off-epoch', 1, '--epochs', 2],
    ['--loader', 'timm', '--mixup', 0.5], ['--pseudo-hard', '--mixup', 0.5],
    ['--pseudo-hard', '--smoothing', 0.2], ['--smoothing', 0, '--pseudo-ratio', 1]],
    ids=lambda extra: ' '.join(map(str, extra)) or 'smoothing')
def test_weights_of_1_change_nothing(run, image_folder, tmp_path, extra):
    if {'--pseudo-hard', '--pseudo-ratio'} & {*extra}:
        write_images(tmp_path / 'pool', {'.': 11}, seed=3)
        extra = [*extra, '--pseudo-dir', write_pseudo(tmp_path / 'P', tmp_path / 'pool')]
    losses = []
    for name, options in (('with', ['--class-weights', 'auto']), ('without', [])):  # each class has 8 images
        torch.manual_seed(0)
        np.random.seed(0)
        result = run(*TINY, '--data-dir', image_folder, '--lr', 0.01, '--epochs', 1, *extra, *options,
                     '--experiment', name)
        assert result.code == 0, result.err
        assert '24 training images of 3 classes: 8 of each\n' in result.out
        losses.append([float(row['train_loss']) for row in rows_of(tmp_path / 'runs' / name)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_weights_change_the_training_and_no_evaluation(run, rare, weights, tmp_path):
    losses = {}
    for name, options in (('plain', []), ('auto', ['auto']), ('file', [weights])):
        result = run(*TINY, '--data-dir', rare, '--epochs', 1, '--lr', 0, '--bn-momentum', 0, '--experiment', name,
                     *(['--class-weights', *options] if options else []))
        assert result.code == 0, result.err
        row, = rows_of(tmp_path / 'runs' / name)
        losses[name] = row['train_loss'], row['eval_loss']
    assert len({train for train, _ in losses.values()}) == 3 and len({loss for _, loss in losses.values()}) == 1
    write_folder(read_run(tmp_path / 'runs/file'), tmp_path / 'published', 'org/tiny', 'mit')
    assert 'weights.csv' not in (tmp_path / 'published/args.yaml').read_text()
    write_folder(read_run(tmp_path / 'runs/auto'), tmp_path / 'too', 'org/tiny', 'mit')
    assert read_file(tmp_path / 'too/args.yaml')['class_weights'] == 'auto'


def test_a_class_without_images_is_warned_of_and_the_others_are_learned(run, rare, tiny_run, tmp_path):
    shutil.rmtree(rare / 'train/eel')
    for extra in (['--class-weights', 'auto'], ['--balanced-sampling']):
        result = run(*TINY, '--data-dir', rare, '--initial-checkpoint', tiny_run / 'model_best.pth.tar', '--epochs', 1,
                     '--experiment', extra[0].strip('-'), *extra)
        assert result.code == 0, result.err
        assert 'from 0 of eel to 8 of cat\nwarning: no training image is of class eel: the model' in result.out
        state = state_of(tmp_path / 'runs' / extra[0].strip('-'))
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(('extra', 'parts'), [
    (['--class-weights', 'auto', '--bce-loss'], ['class_weights', 'leave out bce_loss']),
    (['--class-weights', 'auto', '--balanced-sampling'], ['balanced_sampling does not go with class_weights auto']),
    (['--class-weights', 'nowhere.csv'], ['class_weights nowhere.csv cannot be read: No such file or directory']),
    (['--balanced-sampling', '--aug-repeats', 3], ['balanced_sampling does not go with aug_repeats']),
    (['--balanced-sampling', '--pseudo-dir', 'P'], ['balanced_sampling does not go with pseudo_dir', '--per-class']),
    (['--balanced-sampling', '--loader', 'timm'], ['balanced_sampling needs the loader "fast"'])])
def test_what_makes_no_sense_is_refused_in_a_line(run, image_folder, extra, parts):
    refused(run(*TINY, '--data-dir', image_folder, *extra), *parts)


def test_unknown_and_missing_classes_are_refused_before_anything_is_written(run, image_folder, weights, tmp_path):
    weights.write_text('class,weight\ncat,1\ndog,0.5\n')
    refused(run(*TINY, '--data-dir', image_folder, '--class-weights', weights), 'has no weight for eel')
    assert not (tmp_path / 'runs').exists()
