import csv
import tarfile

import numpy as np
import pytest
from annotated_trees import save_mask, write_depth, write_voc, write_voc_boxes
from conftest import failure, load_tool, write_images
from PIL import Image
from videos import encode, write_audio, write_frames

BAD = {'empty.jpg': 'empty file', 'text.jpg': 'not an image'}


@pytest.fixture(scope='module')
def tool():
    return load_tool('scan_dataset')


@pytest.fixture
def images(tmp_path):
    """Two splits of good images, and in validation an empty file, a text, and a directory that passes for an image."""
    for split in ('train', 'validation'):
        write_images(tmp_path / 'D' / split, {'cat': 3, 'dog': 3}, suffix='jpg')
    dogs = tmp_path / 'D/validation/dog'
    (dogs / 'empty.jpg').touch()
    (dogs / 'text.jpg').write_text('no image')
    (dogs / 'folder.jpg').mkdir()
    return tmp_path / 'D'


def scan(tool, capsys, *arguments):
    status = 0
    try:
        tool.main([*map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.mark.parametrize('workers', [0, 2])
def test_bad_files_are_listed_in_the_datasets_order(tool, images, capsys, workers):
    dogs = images / 'validation/dog'
    expected = [(f'{dogs}/empty.jpg', 'empty file'), (f'{dogs}/text.jpg', 'not an image'),
                (f'{dogs}/folder.jpg', 'a directory, not a file')]
    output = images / 'bad.csv'
    status, lines, err = scan(tool, capsys, images, '--workers', workers, '--output', output)
    assert (status, err) == (1, '')
    assert lines == [*(f'{name}: {reason}' for name, reason in expected), '14 images, 3 bad']
    with open(output, newline='') as file:
        assert [tuple(row) for row in csv.reader(file)] == [('name', 'reason'), *expected]


def test_a_good_split_passes_and_takes_an_old_list_away(tool, images, capsys):
    (images / 'bad.csv').write_text('of yesterday')
    arguments = images, '--split', 'train', '--workers', 0, '--output', images / 'bad.csv'
    assert scan(tool, capsys, *arguments) == (0, ['6 images, 0 bad'], '')
    assert not (images / 'bad.csv').exists()


def test_a_missing_split_and_data_without_splits_are_scanned(tool, images, capsys):
    (images / 'train').rename(images.parent / 'all')
    assert scan(tool, capsys, images, '--workers', 0)[1][-1] == '8 images, 3 bad'
    assert scan(tool, capsys, images.parent / 'all', '--workers', 0) == (0, ['6 images, 0 bad'], '')


def test_members_of_tars_are_named_with_their_split(tool, images, capsys, tmp_path):
    (tmp_path / 'tars').mkdir()
    for split in ('train', 'validation'):
        with tarfile.open(tmp_path / f'tars/{split}.tar', 'w') as archive:
            archive.add(images / 'validation', arcname='.')
    status, lines, _ = scan(tool, capsys, tmp_path / 'tars', '--workers', 2)
    assert status == 1
    assert lines == [*(f'{split}: dog/{name}: {reason}' for split in ('train', 'validation')
                       for name, reason in BAD.items()), '16 images, 4 bad']


def test_damaged_tars_are_told(tool, images, capsys, tmp_path):
    path = tmp_path / 'all.tar'
    with tarfile.open(path, 'w') as archive:
        archive.add(images / 'train', arcname='.')
    with tarfile.open(path) as archive:
        hidden = archive.getmember('./dog/1.jpg').offset
    content = path.read_bytes()
    path.write_bytes(content[:hidden] + b'x' * 512 + content[hidden + 512:])
    status, lines, _ = scan(tool, capsys, path, '--workers', 0)
    assert status == 1 and lines[0].startswith(f'{path}: damaged archive') and lines[-1] == '4 images, 1 bad'
    path.write_bytes(content[:hidden + 600])
    assert 'split train' in (message := failure(tool, capsys, path)) and 'damaged archive' in message


def test_hugging_face_and_torchvision_datasets_are_scanned(tool, images, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    status, lines, _ = scan(tool, capsys, tmp_path / 'cache', '--dataset', f'hfds/{images}', '--workers', 0)
    assert status == 1 and lines[-1] == '14 images, 2 bad'
    status, lines, _ = scan(tool, capsys, images, '--dataset', 'torch/image_folder', '--workers', 0)
    assert status == 1 and lines[-1] == '14 images, 2 bad'


def test_a_split_that_hugging_face_does_not_have_is_named(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    write_images(tmp_path / 'D/train', {'cat': 3, 'dog': 3})
    status, lines, err = scan(tool, capsys, tmp_path / 'cache', '--dataset', f'hfds/{tmp_path / "D"}', '--workers', 0)
    assert (status, lines[-1]) == (0, '6 images, 0 bad')
    assert 'not scanned: dataset hfds/' in err and 'split validation' in err


def test_names_that_are_not_utf8_are_printed(tool, images, capsys):
    (images / 'train/cat/\udcff.jpg').touch()
    status, lines, _ = scan(tool, capsys, images, '--split', 'train', '--workers', 0)
    assert status == 1 and lines[0] == f'{images}/train/cat/\\xff.jpg: empty file'


def test_what_cannot_be_scanned_is_one_line(tool, images, capsys):
    assert 'does not exist' in failure(tool, capsys, images / 'nothing')
    assert 'no split test' in failure(tool, capsys, images, '--split', 'test')
    assert 'there is no folder' in failure(tool, capsys, images, '--output', images / 'no/bad.csv')
    assert '--workers -1' in failure(tool, capsys, images, '--workers', -1)


def test_the_limits_of_the_run_are_the_limits_of_the_scan(tool, images, capsys):
    arguments = images, '--split', 'train', '--workers', 0, '--max-image-pixels'
    assert scan(tool, capsys, *arguments, 20 * 20)[:2] == (0, ['6 images, 0 bad'])
    status, lines, _ = scan(tool, capsys, *arguments, 20 * 20 - 1)
    assert status == 1 and 'pixels, more than the 399 allowed' in lines[0] and lines[-1] == '6 images, 6 bad'
    status, _, err = scan(tool, capsys, *arguments, 0)
    assert status == 2 and 'max_image_pixels must be between 1 and' in err


def test_masks_are_scanned_with_their_images(tool, tmp_path, capsys):
    root = write_voc(tmp_path / 'voc', num_train=4, num_val=2)
    assert scan(tool, capsys, root, '--dataset', 'torch/timm_rs/voc', '--workers', '0')[:2] == (
        0, ['6 images, 0 bad'])
    masks = root / 'SegmentationClass'
    save_mask(np.rot90(np.array(Image.open(masks / 'train_001.png'))), masks / 'train_001.png')
    save_mask(np.full((40, 48), 9, np.uint8), masks / 'train_002.png')
    (masks / 'val_000.png').unlink()
    status, lines, _ = scan(tool, capsys, root, '--dataset', 'voc', '--workers', '0')
    assert status == 1 and lines[-1] == '6 images, 3 bad'
    for line, words in zip(lines, ('is one of them turned?', 'has label 9', 'no such file'), strict=False):
        assert words in line


def test_depths_are_scanned_with_their_images(tool, tmp_path, capsys):
    root = write_depth(tmp_path / 'd', num_train=2, num_val=1)
    Image.fromarray(np.zeros((40, 48), np.uint16)).save(root / 'depth/train/1.png')
    status, lines, _ = scan(tool, capsys, root, '--dataset', 'depth_folders', '--workers', '0')
    assert status == 1 and 'was measured nowhere' in lines[0] and lines[1] == '3 images, 1 bad'


def test_boxes_are_scanned_with_their_images(tool, tmp_path, capsys):
    root = write_voc_boxes(tmp_path / 'v', num_train=4, num_val=2)
    assert scan(tool, capsys, root, '--dataset', 'voc_boxes', '--workers', '0')[:2] == (0, ['6 images, 0 bad'])
    path = root / 'Annotations/train_000.xml'
    path.write_text(path.read_text().replace('<xmin>', '<xmin>-'))
    path = root / 'Annotations/train_001.xml'
    path.write_text(path.read_text().replace('<name>', '<name>infra'))
    (root / 'JPEGImages/val_000.jpg').unlink()
    status, lines, _ = scan(tool, capsys, root, '--dataset', 'voc_boxes', '--workers', '0')
    assert status == 1 and lines[-1] == '6 images, 3 bad'
    for line, words in zip(lines, ('reaches out of', 'which is no class', 'no such file'), strict=False):
        assert words in line


def test_videos_are_decoded_to_the_end_and_missing_ones_listed(tool, tmp_path, capsys):
    root = tmp_path / 'videos'
    for split in ('train', 'validation'):
        (root / split / 'cat').mkdir(parents=True)
        (root / split / 'cat/good.mp4').write_bytes(encode(12))
    whole = encode(100, key_distance=10, crf=5)
    (root / 'train/cat/late.mp4').write_bytes(whole[:len(whole) // 2] + bytes(60) + whole[len(whole) // 2 + 60:])
    (root / 'train/cat/sound.mp4').write_bytes(write_audio())
    write_frames(root / 'train/cat/frames', 3)
    (root / 'train/cat/frames/img_00003.jpg').write_bytes(b'')
    (root / 'validation.txt').write_text('cat/good.mp4 cat\ncat/gone.mp4 cat\n')
    output = tmp_path / 'bad.csv'
    status, lines, err = scan(tool, capsys, root, '--videos', '--workers', 2, '--output', output)
    assert (status, err) == (1, '')
    assert lines[0] == f'{root}/train/cat/frames: empty file'
    assert lines[1].startswith(f'{root}/train/cat/late.mp4: damaged')
    assert lines[2:] == [f'{root}/train/cat/sound.mp4: no video stream', '5 videos, 3 bad',
                         'left out of validation: 1 named by the list, but not there (cat/gone.mp4)']
    assert 'cat/gone.mp4,"named by the list' in output.read_text()
