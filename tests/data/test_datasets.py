"""Every kind of dataset that timm's prefixes name, made here from small files."""

import io
import json
import tarfile

import pytest
from conftest import TINY

from timm_rs.data.datasets import create_datasets
from timm_rs.recipe.knobs import Recipe


def pack(folder, tar):
    with tarfile.open(tar, 'w') as archive:
        archive.add(folder, arcname='.')


def test_tar_files_train(run, image_folder, tmp_path):
    packed = tmp_path / 'packed'
    packed.mkdir()
    for split in ('train', 'validation'):
        pack(image_folder / split, packed / f'{split}.tar')
    result = run(*TINY, '--data-dir', packed)
    assert result.code == 0, result.err
    assert '3 classes, 24 training images' in result.out


def test_a_single_tar_trains_without_validation(run, image_folder, tmp_path):
    pack(image_folder / 'train', tmp_path / 'all.tar')
    assert run(*TINY, '--data-dir', tmp_path / 'all.tar', '--val-split', '').code == 0
    result = run(*TINY, '--data-dir', tmp_path / 'all.tar')
    assert result.code == 2 and '--val-split ""' in result.err


def test_torchvision_datasets_train(run, image_folder):
    (image_folder / 'validation').rename(image_folder / 'val')
    result = run(*TINY, '--dataset', 'torch/image_folder', '--data-dir', image_folder)
    assert result.code == 0, result.err
    assert '3 classes, 24 training images' in result.out


def test_webdataset_shards_train(run, image_folder, tmp_path):
    shards = tmp_path / 'shards'
    shards.mkdir()
    splits = {}
    for split in ('train', 'validation'):
        with tarfile.open(shards / f'toy-{split}-00.tar', 'w') as archive:
            paths = sorted((image_folder / split).glob('*/*.jpg'))
            for number, path in enumerate(paths):
                label = str(['cat', 'dog', 'eel'].index(path.parent.name)).encode()
                for suffix, content in (('jpg', path.read_bytes()), ('cls', label)):
                    member = tarfile.TarInfo(f'{number:04}.{suffix}')
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        splits[split] = dict(name=split, num_samples=len(paths), filenames=[f'toy-{split}-00.tar'],
                             shard_lengths=[len(paths)])
    (shards / '_info.json').write_text(json.dumps(dict(splits=splits)))
    arguments = [*TINY, '--dataset', 'wds/toy', '--data-dir', shards]
    result = run(*arguments, '--num-classes', 3)
    assert result.code == 0, result.err
    # Shards do not say how many classes there are: a label out of range must not end in a crash.
    result = run(*arguments, '--num-classes', 2, '--workers', 1)
    assert result.code == 2 and 'label 2, but the model has 2 classes' in result.err


def test_hugging_face_datasets_train(run, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    arguments = [*TINY, '--dataset', f'hfds/{image_folder}', '--data-dir', tmp_path / 'cache']
    result = run(*arguments)
    assert result.code == 0, result.err
    assert '3 classes, 24 training images' in result.out


def test_a_class_map_trains_with_a_worker(run, image_folder, tmp_path):
    (tmp_path / 'map.txt').write_text('cat\ndog\neel\n')
    result = run(*TINY, '--data-dir', image_folder, '--class-map', tmp_path / 'map.txt', '--workers', 1)
    assert result.code == 0, result.err


@pytest.mark.parametrize('name', ['val', 'validation', 'valid'])
def test_split_folders_may_have_any_of_timms_names(image_folder, name):
    (image_folder / 'validation').rename(image_folder / name)
    train, validation, num_classes = create_datasets(Recipe(data_dir=str(image_folder)))
    assert (len(train), len(validation), num_classes) == (24, 15, 3)
