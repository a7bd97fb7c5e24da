import io
import shutil
import tarfile

import pytest
from conftest import failure, load_tool
from PIL import Image

from timm_rs.data.shards.reading import open_shards


@pytest.fixture(scope='module')
def tool():
    return load_tool('pack_dataset')


@pytest.fixture
def call(tool, capsys):
    """The tool in this process; what it prints."""
    def call(*argv):
        tool.main(['--workers', '0', *map(str, argv)])
        return capsys.readouterr().out
    return call


def test_both_splits_of_a_folder_are_packed(call, image_folder, tmp_path):
    shown = call(image_folder, tmp_path / 'packed', '--short-side', 10, '--shards', 3)
    assert [line.rpartition(',')[0] for line in shown.splitlines()] == [
        'train: 24 images in 3 shards', 'validation: 15 images in 3 shards']
    for split, count in (('train', 24), ('validation', 15)):
        samples = open_shards(tmp_path / 'packed', split)
        assert len(samples) == count and samples.classes == {'cat': 0, 'dog': 1, 'eel': 2}
        assert Image.open(io.BytesIO(samples.read(0)[0])).size == (10, 10)


def test_verify_reads_what_was_packed(call, tool, capsys, image_folder, tmp_path):
    shown = call(image_folder, tmp_path / 'packed', '--verify')
    assert 'packed: 16 shards' in shown and 'as they were written' in shown
    assert '16 shards' in call('--verify', tmp_path / 'packed')
    with open(tmp_path / 'packed/validation-000003.tar', 'r+b') as file:
        file.write(b'x')
    assert '1 of 16 shards' in failure(tool, capsys, '--verify', tmp_path / 'packed')


def test_bad_images_are_counted_in_the_last_line(call, image_folder, tmp_path):
    (image_folder / 'train/cat/torn.jpg').write_bytes(b'nothing')
    shown = call(image_folder, tmp_path / 'packed', '--split', 'train')
    assert f'; bad images left out: 1, see {tmp_path}/packed/bad_samples.csv' in shown.splitlines()[-1]
    assert 'train/cat/torn.jpg,"not an image' in (tmp_path / 'packed/bad_samples.csv').read_text()


def test_a_folder_of_one_split_is_that_split(call, image_folder, tmp_path):
    call(image_folder / 'validation', tmp_path / 'packed', '--split', 'validation')
    assert len(open_shards(tmp_path / 'packed', 'validation')) == 15
    call(image_folder / 'train', tmp_path / 'alone')
    assert len(open_shards(tmp_path / 'alone', 'train')) == 24


def test_a_split_may_be_missing(call, image_folder, tmp_path):
    (image_folder / 'train').rename(tmp_path / 'train')
    assert call(image_folder, tmp_path / 'packed').startswith('validation: 15')


def test_validation_without_some_class_is_numbered_as_training_is(call, image_folder, tmp_path):
    for path in (image_folder / 'validation/cat').iterdir():
        path.unlink()
    call(image_folder, tmp_path / 'packed')
    assert sorted(open_shards(tmp_path / 'packed', 'validation').targets()) == [1] * 5 + [2] * 5


def test_a_tar_is_packed_by_several_processes(call, image_folder, tmp_path):
    with tarfile.open(tmp_path / 'train.tar', 'w') as archive:
        archive.add(image_folder / 'train', arcname='.')
    call(tmp_path / 'train.tar', tmp_path / 'packed', '--workers', 1, '--short-side', 0)
    samples = open_shards(tmp_path / 'packed', 'train')
    assert sorted(samples.read(index)[0] for index in range(24)) == sorted(
        path.read_bytes() for path in (image_folder / 'train').glob('*/*'))


def test_raw_pixels_say_beforehand_what_they_take(call, image_folder, tmp_path):
    argv = image_folder, tmp_path / 'packed', '--raw', '--short-side', 10
    shown = call(*argv).splitlines()
    assert [line.partition(',')[0] for line in shown] == [
        'train: about 0.0 MB as raw pixels', 'validation: about 0.0 MB as raw pixels',
        'train: 24 images in 8 shards', 'validation: 15 images in 8 shards']
    assert '(by 24 of 24 images); ' in shown[0] and shown[0].endswith('B are free')
    assert open_shards(tmp_path / 'packed', 'train').read(0)[0].startswith(b'P6\n10 10\n255\n')
    assert 'of which 0.1 MB are there' in call(*argv).splitlines()[0]


def test_a_disk_too_small_for_raw_pixels_is_one_line(tool, capsys, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    assert 'raw pixels need about 0.1 MB more, and 0.0 MB are free; free some space' in failure(
        tool, capsys, image_folder, tmp_path / 'packed', '--raw', '--workers', 0)
    assert not (tmp_path / 'packed').exists()


def test_torchvision_datasets_are_packed(call, image_folder, tmp_path):
    (image_folder / 'validation').rename(image_folder / 'val')
    call(image_folder, tmp_path / 'packed', '--dataset', 'torch/image_folder')
    assert len(open_shards(tmp_path / 'packed', 'validation')) == 15


@pytest.mark.parametrize(('argv', 'message'), [
    (['here'], 'give two folders'), (['missing', 'packed'], 'data folder missing does not exist'),
    (['.', 'packed', '--raw', '--quality', '80'], '--quality 80 is of JPEGs, and --raw stores none'),
    (['.', 'packed', '--raw', '--videos'], '--raw is for images'), (['.', 'packed', '--raw', '--frames'], 'for images'),
    (['.', 'packed', '--workers', '-1'], '--workers -1: give 0 or more'),
    (['--verify', '.'], 'has no shards with a manifest')])
def test_wrong_arguments_are_one_line(tool, capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in failure(tool, capsys, *argv)


def test_raw_pixels_are_not_continued_as_jpegs(call, tool, capsys, image_folder, tmp_path):
    call(image_folder, tmp_path / 'packed', '--raw')
    assert 'kind images instead of raw' in failure(tool, capsys, image_folder, tmp_path / 'packed', '--workers', 0)


def test_other_settings_are_one_line(call, tool, capsys, image_folder, tmp_path):
    call(image_folder, tmp_path / 'packed')
    assert 'short_side 200 instead of 288' in failure(
        tool, capsys, image_folder, tmp_path / 'packed', '--short-side', 200, '--workers', 0)


def test_no_quality_is_not_the_default(tool, capsys, image_folder, tmp_path):
    assert 'JPEG quality 0: give 1 to 100' in failure(tool, capsys, image_folder, tmp_path / 'packed', '--quality', 0)


def test_help_has_examples(tool, capsys):
    with pytest.raises(SystemExit, match='0'):
        tool.main(['--help'])
    shown = capsys.readouterr().out
    assert 'examples:' in shown and '--verify packed' in shown
