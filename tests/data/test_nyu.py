"""NYU's labelled rooms, in the file they come in."""

import pickle

import h5py
import numpy as np
import pytest
import scipy.io

from timm_rs.data.annotated import open_annotated, read_depth
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import BadImage


@pytest.fixture
def nyu(tmp_path):
    """The file as MATLAB writes it, columns first and with references beside the numbers; images of 6 x 4 pixels."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / 'nyu_depth_v2_labeled.mat', 'w') as file:
        file['images'] = rng.integers(0, 256, (5, 3, 6, 4)).astype(np.uint8)
        file['depths'] = rng.uniform(1, 5, (5, 6, 4)).astype(np.float32)
        file.create_dataset('names', data=[file.ref], dtype=h5py.ref_dtype)
    scipy.io.savemat(tmp_path / 'splits.mat', dict(trainNdxs=[[1], [4]], testNdxs=[[2], [3], [5]]))
    return tmp_path


def opened(root, split):
    return open_annotated(Recipe(data_dir=str(root)), split, ('nyu', 'depth_folders'))


def test_images_and_depths_are_turned_as_matlab_shows_them(nyu):
    train, test = opened(nyu, 'train'), opened(nyu, 'validation')
    assert (len(train), len(test), len(opened(nyu, 'test'))) == (2, 3, 3)
    with h5py.File(nyu / 'nyu_depth_v2_labeled.mat') as file:
        images, depths = file['images'][:], file['depths'][:]
    for samples, index, number in ((train, 1, 3), (test, 2, 4), (pickle.loads(pickle.dumps(test)), 0, 1)):
        image, annotation = samples.read(index)
        assert image.size == (6, 4) and samples.name(index).endswith(f'.mat/{number + 1}')
        assert (np.array(image)[1, 2] == images[number, :, 2, 1]).all()
        metres = read_depth(annotation)
        assert metres.shape == (4, 6) and metres[1, 2] == depths[number, 2, 1]
    with pytest.raises(BadImage, match='has 6 x 4 pixels, not 640 x 480'):
        read_depth(train.read(0)[1], size=(480, 640))


@pytest.mark.parametrize(('change', 'words'), [
    (lambda root: (root / 'splits.mat').unlink(), 'needs nyu_depth_v2_labeled.mat and splits.mat'),
    (lambda root: (root / 'splits.mat').write_bytes(b'x' * 200), 'splits.mat cannot be read'),
    (lambda root: scipy.io.savemat(root / 'splits.mat', dict(testNdxs=[[1]])), 'has no split train'),
    (lambda root: scipy.io.savemat(root / 'splits.mat', dict(trainNdxs=[[6]])), 'is not the one that'),
    (lambda root: (root / 'nyu_depth_v2_labeled.mat').write_bytes(b'x' * 200), 'nyu_depth_v2_labeled.mat')])
def test_files_that_do_not_go_together_are_refused(nyu, change, words):
    change(nyu)
    with pytest.raises(UserError, match=words):
        opened(nyu, 'train')
