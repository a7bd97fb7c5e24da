"""Data from packages: the real images, whole, always split alike."""

import gzip
import os

import numpy as np
import pytest
from PIL import Image

from timm_rs.data import builtin, scenes
from timm_rs.data.annotated import open_annotated
from timm_rs.data.builtin import write_builtin
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe


def test_digits_are_the_real_ones_in_a_fixed_split(tmp_path):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    folder = write_builtin('digits', tmp_path / 'digits')
    data = load_digits()
    files = sorted(folder.glob('*/*/*.png'), key=lambda path: path.name)
    assert [int(path.parent.name) for path in files] == data.target.tolist()
    for index in (0, 900, 1796):
        image = Image.open(files[index])
        assert image.mode == 'L' and image.size == (8, 8)
        np.testing.assert_array_equal(np.asarray(image), np.round(data.images[index] * (255 / 16)))
    _, validation = train_test_split(range(1797), test_size=360, stratify=data.target, random_state=0)
    assert [path.parent.parent.name for path in files] == [
        'validation' if index in set(validation) else 'train' for index in range(1797)]


def test_half_written_digits_are_written_anew_and_whole_ones_left_alone(tmp_path):
    folder = write_builtin('digits', tmp_path / 'digits')
    path = next(folder.glob('train/3/*.png'))
    stamp = folder.stat().st_mtime_ns
    assert write_builtin('digits', folder).stat().st_mtime_ns == stamp
    path.unlink()
    assert write_builtin('digits', folder) == folder and path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ['digits']


def test_several_processes_may_write_them_at_once(tmp_path):
    pids = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                write_builtin('digits', tmp_path / 'digits')
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert len(list(tmp_path.glob('digits/*/*/*.png'))) == 1797
    assert [entry.name for entry in tmp_path.iterdir()] == ['digits']


def test_digits_that_cannot_be_written_are_one_message(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match='digits cannot be written.*--data-dir'):
        write_builtin('digits', tmp_path / 'file/digits')


def write_idx(folder, split, pixels, labels):
    for what, header, values in (('images-idx3', 16, pixels), ('labels-idx1', 8, labels)):
        content = bytes(header) + np.uint8(values).tobytes()
        (folder / f'{split}-{what}-ubyte.gz').write_bytes(gzip.compress(content))


def test_fashion_mnist_is_read_from_the_files_of_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, 'FASHION_MNIST', tmp_path)
    with pytest.raises(UserError, match='Fashion-MNIST is not installed: .* dataset-fashion-mnist'):
        write_builtin('fashion-mnist', tmp_path / 'out')
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    write_idx(tmp_path, 'train', pixels[:3], [2, 0, 2])
    write_idx(tmp_path, 't10k', pixels[3:], [1, 0])
    folder = write_builtin('fashion-mnist', tmp_path / 'out')
    files = {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in folder.rglob('*.png')}
    assert sorted(files) == [
        'train/0/0001.png', 'train/2/0000.png', 'train/2/0002.png', 'validation/0/0004.png', 'validation/1/0003.png']
    for name, image in files.items():
        np.testing.assert_array_equal(image, pixels[int(name[-8:-4])])


@pytest.mark.skipif(not builtin.FASHION_MNIST.is_dir(), reason='apt-get install dataset-fashion-mnist')
def test_the_installed_fashion_mnist_is_whole_and_balanced():
    images = builtin.load_fashion_mnist()
    assert images.pixels.shape == (70_000, 28, 28) and images.pixels.max() == 255
    assert np.bincount(images.labels[~images.is_validation]).tolist() == 10 * [6000]
    assert np.bincount(images.labels[images.is_validation]).tolist() == 10 * [1000]


def test_few_labels_are_drawn_by_the_seed_and_all_other_images_are_the_pool(tmp_path):
    def written(seed):
        folder = write_builtin('digits-10', tmp_path / str(seed), seed)
        return [{int(path.stem) for path in folder.glob(f'{part}/**/*.png')}
                for part in ('train', 'pool', 'validation')]

    labels = builtin.load_digits().labels
    (few, pool, validation), (others, *_) = written(0), written(1)
    assert np.bincount(labels[list(few)]).tolist() == 10 * [10] and few != others
    assert not few & pool and len(pool) == 1437 - 100 and len(validation) == 360 and few | pool | validation == set(
        range(1797))
    assert not [path for path in (tmp_path / '0/pool').iterdir() if path.is_dir()]


def test_scenes_are_a_tree_of_voc_whose_splits_share_no_digit(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_rs.data.scenes.COUNTS', dict(train=12, val=6))
    monkeypatch.setitem(builtin.MADE, 'scenes', (builtin.MADE['scenes'][0], 18, '.xml'))
    drawn, draw = [], scenes._draw

    def noting(scene, mask, digit, label, rng):
        drawn.append(digit.tobytes())
        return draw(scene, mask, digit, label, rng)
    monkeypatch.setattr(scenes, '_draw', noting)
    folder = write_builtin('scenes', tmp_path / 'scenes')
    stamp = folder.stat().st_mtime_ns
    assert write_builtin('scenes', folder).stat().st_mtime_ns == stamp
    digits = builtin.load_digits()
    held_out = {pixels.tobytes() for pixels in digits.pixels[digits.is_validation]}
    of_validation = [pixels in held_out for pixels in drawn]
    first = of_validation.index(True)
    assert all(of_validation[first:]) and not any(of_validation[:first]) and 6 <= len(drawn) - first <= 12
    masks = [np.array(Image.open(path)) for path in sorted(folder.glob('SegmentationClass/*.png'))]
    assert len(masks) == 18 and {*np.unique(masks)} == {0, 1, 2, 3, 255}
    recipe = Recipe(data_dir=str(folder))
    assert [len(open_annotated(recipe, split, ['voc'])) for split in ('train', 'val')] == [12, 6]


def test_scenes_have_boxes_around_their_digits(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_rs.data.scenes.COUNTS', dict(train=12, val=1))
    scenes.write_scenes(tmp_path / 'scenes', *builtin.load_digits())
    samples = open_annotated(Recipe(data_dir=str(tmp_path / 'scenes')), 'train', ['voc_boxes'])
    assert samples.classes == dict(zero=0, one=1, two=2) and len(samples) == 12
    for index in range(12):
        mask = np.array(Image.open(tmp_path / f'scenes/SegmentationClass/train_{index:04}.png'))
        rest = mask > 0
        for left, top, right, bottom, label, _ in samples.read(index)[1].rows.int().tolist():
            inside = mask[top:bottom, left:right] > 0
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()  # at every edge
            assert label + 1 in mask[top:bottom, left:right]
            rest[top:bottom, left:right] = False
        assert not rest.any()
