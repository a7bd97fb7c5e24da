"""The input pipeline: the same images whatever the number of workers and processes, and nothing lost on bad files."""

import csv
import random
import tarfile
import types

import numpy as np
import pytest
import torch
from conftest import TINY, write_images
from PIL import Image

from timm_rs.data.datasets import create_datasets
from timm_rs.data.loader import create_eval_loader, create_train_loader
from timm_rs.data.sampler import PADDING, EvalBatches, TrainBatches
from timm_rs.data.samples import Samples
from timm_rs.data.shards.packing import pack
from timm_rs.data.timm_loader import PilDataset
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.classification import Classification
from timm_rs.transforms.create import create_transform
from timm_rs.transforms.decode import open_picture

DATA = dict(input_size=(3, 24, 24), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875, crop_mode='center',
            interpolation='bicubic')
AA = 'rand-m15-n2-p1.0-mmax15'


def device(rank=0, world_size=1):
    return types.SimpleNamespace(
        rank=rank, is_primary=rank == 0, world_size=world_size, is_distributed=world_size > 1,
        is_lazy=False, num_local_devices=1, torch_device=torch.device('cpu'))


def recipe(folder, **changes):
    return Recipe(data_dir=str(folder), **dict(batch_size=4, workers=0, aa=AA) | changes)


def train_loader(folder, where=None, **changes):
    settings = recipe(folder, **changes)
    return create_train_loader(
        create_datasets(settings)[0], settings, DATA, Classification(settings), 3, where or device())


def epoch(loader, number=0):
    loader.set_epoch(number)
    images, targets = zip(*((images.clone(), targets) for images, targets in loader), strict=True)
    return torch.cat(images), torch.cat(targets)


def same(one, other):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


# ---- which images -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('settings', [
    dict(randaugment='tf', preprocessing='tf', train_interpolation='bicubic'),
    dict(reprob=0.5, mixup=0.2, cutmix=1.0),  # random erasing and mixing draw in the main process
    dict(aa=None, color_jitter=0.4, vflip=0.5, grayscale_prob=0.3),  # and timm's transforms in the workers
    dict(no_aug=True), dict(train_crop_mode='rkrr')])
def test_workers_change_nothing(image_folder, settings):
    def two_epochs(workers):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        loader = train_loader(image_folder, workers=workers, **settings)
        return *epoch(loader, 0), *epoch(loader, 1)
    alone = two_epochs(0)
    assert same(alone, two_epochs(1)) and same(alone, two_epochs(2))
    if not settings.get('no_aug'):
        assert not torch.equal(alone[0], alone[2])


def test_an_epoch_depends_on_its_number_and_the_seed_alone(image_folder):
    loader = train_loader(image_folder)
    first, second = epoch(loader, 0), epoch(loader, 1)
    assert same(first, epoch(loader, 0)) and not same(first, second)
    assert same(second, epoch(train_loader(image_folder), 1))
    assert not same(first, epoch(train_loader(image_folder, seed=1), 0))


def test_processes_share_the_batches_of_one(image_folder):
    alone = epoch(train_loader(image_folder, batch_size=8))
    parts = [epoch(train_loader(image_folder, device(rank, 2), batch_size=4)) for rank in (0, 1)]
    for whole, *halves in zip(alone, *parts, strict=True):
        batches = zip(*(half.split(4) for half in halves), strict=True)
        together = torch.cat([torch.stack(pair, dim=1).flatten(0, 1) for pair in batches])
        assert torch.equal(whole, together)


def test_the_loader_leaves_the_random_numbers_of_the_training_alone(image_folder):
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    epoch(train_loader(image_folder, aa='rand-m9', color_jitter_prob=0.5))
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]


class Numbers(Samples):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def indices(batches):
    return [ticket.sample for batch in batches for ticket in batch]


def test_an_epoch_has_every_image_once_but_the_ragged_end():
    batches = TrainBatches(Numbers(103), 5, seed=0)
    drawn = indices(batches)
    assert len(batches) == 20 and len(drawn) == len(set(drawn)) == 100 and max(drawn) < 103


def test_an_epoch_goes_on_anywhere_even_in_other_batches():
    batches = TrainBatches(Numbers(103), 5, seed=3)
    batches.set_epoch(7)
    whole = [ticket for batch in batches for ticket in batch]
    others = TrainBatches(Numbers(103), 4, seed=3, rank=1, world_size=2)
    others.set_epoch(7, start=40)
    assert len(others) == 7
    assert [ticket for batch in others for ticket in batch] == whole[41:96:2]


def test_repeated_augmentation_hands_the_copies_of_an_image_to_different_processes():
    parts = [TrainBatches(Numbers(60), 5, seed=0, rank=rank, world_size=3, repeats=3) for rank in range(3)]
    drawn = [indices(part) for part in parts]
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == len(set(drawn[0])) == 20
    seeds = {ticket.seed for part in parts for batch in part for ticket in batch}
    assert len(seeds) == 60


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_evaluation_has_every_image_once(world_size):
    parts = [EvalBatches(13, 4, rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    drawn = [index for part in parts for index in indices(part)]
    assert sorted(index for index in drawn if index != PADDING) == list(range(13))


def test_batches_of_one_shape_are_filled_up():
    parts = [EvalBatches(13, 4, rank, 2, full_batches=True) for rank in range(2)]
    assert [[len(batch) for batch in part] for part in parts] == [[4, 4], [4, 4]]
    assert sorted(index for part in parts for index in indices(part) if index != PADDING) == list(range(13))


def test_less_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r'3 images, fewer than one batch of 2 in each of 2 process\(es\); lower'):
        TrainBatches(Numbers(3), 2, seed=0, world_size=2)


# ---- how they are cut and changed -------------------------------------------------------------------------------

def test_one_channel_goes_all_the_way(image_folder):
    settings = recipe(image_folder, input_size=[1, 24, 24], aa=None, vflip=0.5)
    data = dict(DATA, input_size=(1, 24, 24), mean=(0.5,), std=(0.25,))
    samples = create_datasets(settings)[0]
    for make in (create_train_loader, create_eval_loader):
        images, _ = next(iter(make(samples, settings, data, Classification(settings), 3, device())))
        assert images.shape == (4, 1, 24, 24)


def test_batches_are_normalised_floats_of_the_crops(image_folder):
    settings = recipe(image_folder)
    samples = create_datasets(settings)[0]
    images, targets = next(iter(create_eval_loader(samples, settings, DATA, Classification(settings), 3, device())))
    pixels = create_transform(settings, DATA, is_training=False)(samples.read(2)[0], 0)
    expected = (torch.tensor(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images[2], expected)
    assert targets.dtype == torch.int64 and targets.tolist() == [0, 0, 0, 0]


def test_mixing_makes_soft_targets_until_it_stops(image_folder):
    loader = train_loader(image_folder, mixup=0.5)
    np.random.seed(0)
    _, targets = epoch(loader)
    assert targets.shape == (24, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(24))
    assert (targets.max(1).values < 0.9).any()
    loader.stop_mixing()
    assert (epoch(loader)[1].max(1).values > 0.9).all()


# ---- shards -----------------------------------------------------------------------------------------------------

def test_shards_train_and_validate_as_any_other_data(run, image_folder, tmp_path):
    shards = tmp_path / 'shards'
    for split, samples in zip(('train', 'validation'), create_datasets(recipe(image_folder))[:2], strict=True):
        pack(samples, shards, split, short_side=0, num_shards=3)
    for extra in ([], ['--dataset', 'wds/any'], ['--loader', 'timm'], ['--workers', 2]):
        result = run(*TINY, '--data-dir', shards, *extra)
        assert result.code == 0, result.err
        assert '3 classes, 24 training images' in result.out
    orders = [epoch(train_loader(shards, workers=workers)) for workers in (0, 1, 2)]
    assert same(orders[0], orders[1]) and same(orders[0], orders[2])
    assert not same(orders[0], epoch(train_loader(shards), 1))


# ---- minival ----------------------------------------------------------------------------------------------------

def test_minival_and_the_rest_share_the_training_split(run, tmp_path):
    write_images(tmp_path / 'data/train', dict(cat=60, dog=60))
    splits = ['--train-split', 'train-minival', '--val-split', 'minival']
    result = run(*TINY, '--data-dir', tmp_path / 'data', *splits)
    assert result.code == 0, result.err
    assert '2 classes, 118 training images' in result.out
    train, minival, num_classes = create_datasets(Recipe(
        data_dir=str(tmp_path / 'data'), train_split='train-minival', val_split='minival'))
    names = [{samples.name(index) for index in range(len(samples))} for samples in (train, minival)]
    assert (len(names[0]), len(names[1]), num_classes) == (118, 2, 2) and not names[0] & names[1]
    assert minival.targets() == [0, 1]
    for loader in ('fast', 'timm'):
        assert run(*TINY, '--data-dir', tmp_path / 'data', *splits, '--loader', loader, '--epochs', 1).code == 0


def test_training_on_minival_and_validating_on_it_is_refused(run, tmp_path):
    write_images(tmp_path / 'data/train', dict(cat=60, dog=60))
    result = run(*TINY, '--data-dir', tmp_path / 'data', '--val-split', 'minival')
    assert result.code == 2 and 'train without it, by --train-split train-minival' in result.err


# ---- bad files --------------------------------------------------------------------------------------------------

def spoil(folder):
    """Every kind of bad file among the cats, and the word that each is named with."""
    cats = folder / 'train/cat'
    cats.joinpath('0.jpg').write_bytes(b'')
    cats.joinpath('1.jpg').write_text('not an image')
    whole = cats.joinpath('2.jpg').read_bytes()
    cats.joinpath('2.jpg').write_bytes(whole[:len(whole) // 2])
    cats.joinpath('3.jpg').unlink()
    cats.joinpath('3.jpg').symlink_to('gone')
    cats.joinpath('4.png').mkdir()
    Image.new('1', (20_000, 20_000)).save(cats / '5.png')
    return {'0.jpg': 'empty file', '1.jpg': 'not an image', '2.jpg': 'truncated', '3.jpg': 'no such file',
            '4.png': 'a directory, not a file', '5.png': '400000000 pixels, more than'}


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_finishes_and_names_each_bad_file_once(run, image_folder, tmp_path, workers):
    expected = {str(image_folder / 'train/cat' / name): reason for name, reason in spoil(image_folder).items()}
    result = run(*TINY, '--data-dir', image_folder, '--workers', workers, '--experiment', 'run')
    assert result.code == 0, result.err
    with open(tmp_path / 'runs/run/bad_samples.csv', newline='') as file:
        rows = {row['name']: row['reason'] for row in csv.DictReader(file)}
    assert rows.keys() == expected.keys()
    for name, reason in expected.items():
        assert rows[name].startswith(reason) and result.out.count(f'{name}: {reason}') == 1
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'run', '--resume', 'auto', '--epochs', 3,
                 '--allow-recipe-change')
    assert result.code == 0 and 'bad sample' not in result.out


def test_bad_members_of_a_tar_are_named_too(run, image_folder, tmp_path):
    (image_folder / 'train/dog/4.jpg').write_bytes(b'garbage')
    (tmp_path / 'packed').mkdir()
    for split in ('train', 'validation'):
        with tarfile.open(tmp_path / f'packed/{split}.tar', 'w') as archive:
            archive.add(image_folder / split, arcname='.')
    result = run(*TINY, '--data-dir', tmp_path / 'packed', '--experiment', 'run')
    assert result.code == 0, result.err
    assert 'dog/4.jpg: not an image' in (tmp_path / 'runs/run/bad_samples.csv').read_text().replace(',', ': ')


def test_too_many_bad_files_stop_the_run_and_leave_its_checkpoint(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--experiment', 'run']
    assert run(*arguments, '--epochs', 1).code == 0
    before = (tmp_path / 'runs/run/last.pth.tar').read_bytes()
    spoil(image_folder)
    result = run(*arguments, '--resume', 'auto', '--max-bad-samples', 5, '--allow-recipe-change')
    assert result.code == 2 and result.err.count('\n') == 1
    assert '6 images are bad, more than the 5 allowed' in result.err and 'bad_samples.csv' in result.err
    assert (tmp_path / 'runs/run/last.pth.tar').read_bytes() == before


def test_a_bad_image_is_replaced_by_the_next_good_one(image_folder):
    (image_folder / 'train/cat/7.jpg').write_bytes(b'')
    loader = train_loader(image_folder)
    images, targets = epoch(loader)
    assert len(images) == 24 and targets.bincount().tolist() == [7, 9, 8]
    assert len(loader.take_problems()) == 1 and loader.take_problems() == []


def test_evaluation_leaves_bad_files_out(image_folder):
    (image_folder / 'validation/dog/1.jpg').write_bytes(b'')
    settings = recipe(image_folder)
    loader = create_eval_loader(create_datasets(settings)[1], settings, DATA, Classification(settings), 3, device())
    _, targets = zip(*loader, strict=True)
    assert torch.cat(targets).tolist() == 5 * [0] + [1, -1, 1, 1, 1] + 5 * [2]
    assert [name.endswith('validation/dog/1.jpg') for name, _ in loader.take_problems()] == [True]


def test_nothing_but_bad_files_is_an_error(tmp_path):
    write_images(tmp_path / 'train', {'cat': 4})
    for path in (tmp_path / 'train/cat').iterdir():
        path.write_bytes(b'')
    settings = recipe(tmp_path, val_split='')
    loader = create_train_loader(create_datasets(settings)[0], settings, DATA, Classification(settings), 1, device())
    with pytest.raises(UserError, match=r'bad images in a row.*empty file.*scan_dataset'):
        next(iter(loader))


def test_samples_serve_timms_loader_as_a_dataset_of_images(image_folder):
    samples = create_datasets(recipe(image_folder))[0]
    dataset = PilDataset(samples)
    image, target = dataset[9]
    assert image.size == (20, 20) and target == 1
    np.testing.assert_array_equal(np.asarray(image), open_picture(samples.read(9)[0]).pixels())
