"""The quickstart's digits: the real ones, whole, always split alike."""

import numpy as np
import pytest
from PIL import Image

from timm_rs.data.digits import DIGITS_SPLITS, write_digits
from timm_rs.errors import UserError


def test_digits_are_the_real_ones_in_a_fixed_split(tmp_path):
    from sklearn.datasets import load_digits
    folder = write_digits(tmp_path / 'digits')
    data = load_digits()
    files = sorted((path for split in ('train', 'validation') for path in folder.glob(f'{split}/*/*.png')),
                   key=lambda path: path.name)
    assert [int(path.parent.name) for path in files] == data.target.tolist()
    for index in (0, 900, 1796):
        image = Image.open(files[index])
        assert image.mode == 'L' and image.size == (8, 8)
        np.testing.assert_array_equal(np.asarray(image), np.round(data.images[index] * (255 / 16)))
    counts = {split: len(list((folder / split).glob('*/*.png'))) for split in DIGITS_SPLITS}
    assert counts == DIGITS_SPLITS and counts['train'] + counts['validation'] == 1797


def test_few_digits_are_some_of_the_training_images_of_each_class(tmp_path):
    folder = write_digits(tmp_path / 'digits')
    few = list(folder.glob('train_few/*/*.png'))
    assert all(path.read_bytes() == (folder / 'train' / path.parent.name / path.name).read_bytes() for path in few)
    assert {len(list(path.iterdir())) for path in folder.glob('train_few/*')} <= {19, 20, 21}


def test_half_written_digits_are_written_anew_and_whole_ones_left_alone(tmp_path):
    folder = write_digits(tmp_path / 'digits')
    path = next(folder.glob('train/3/*.png'))
    stamp = folder.stat().st_mtime_ns
    assert write_digits(folder).stat().st_mtime_ns == stamp
    path.unlink()
    assert write_digits(folder) == folder and path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ['digits']


def test_digits_that_cannot_be_written_are_one_message(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match='digits cannot be written.*--data-dir'):
        write_digits(tmp_path / 'file/digits')
