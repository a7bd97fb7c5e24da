"""Windows of the motorcycle: their depths, splits that share no pixel, and what is said without scikit-image."""

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from timm_rs.data import motorcycle
from timm_rs.data.annotated import open_annotated, read_depth
from timm_rs.data.builtin import write_builtin
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe


@pytest.fixture
def pair(monkeypatch):
    """Stands for scikit-image's: every pixel has the colour of its column, and a disparity of its own column."""
    columns = np.broadcast_to(np.arange(741), (500, 741))
    disparity = (10 + columns / 10).astype(np.float32)
    disparity[:9] = np.inf
    image = np.stack([columns % 256, columns // 256, columns * 0], 2).astype(np.uint8)
    skimage, data = ModuleType('skimage'), ModuleType('skimage.data')
    skimage.data, data.stereo_motorcycle = data, lambda: (image, image, disparity)
    monkeypatch.setitem(sys.modules, 'skimage', skimage)
    monkeypatch.setitem(sys.modules, 'skimage.data', data)
    return image, disparity


def test_windows_have_their_depths_and_splits_share_no_column(pair, tmp_path):
    folder = write_builtin('motorcycle', tmp_path / 'motorcycle')
    seen = {}
    for split, count in (('train', 320), ('val', 21)):
        samples = open_annotated(Recipe(data_dir=str(folder)), split, ['depth_folders'])
        assert len(samples) == count
        for index in range(0, count, 5):
            image = np.asarray(Image.open(samples.pairs[index][0])).astype(int)
            columns = image[..., 0] + 256 * image[..., 1]
            metres = read_depth(samples.read(index)[1]).numpy()
            expected = 0.193001 * 994.978 / (10 + columns / 10 + 31.086)
            np.testing.assert_allclose(metres[9:], expected[9:], atol=6e-4)
            seen.setdefault(split, set()).update(columns.ravel().tolist())
    assert not seen['train'] & seen['val'] and max(seen['val']) == 740
    first = read_depth(open_annotated(Recipe(data_dir=str(folder)), 'val', ['depth_folders']).read(0)[1])
    assert (first[:9] == 0).all() and (first[9:] > 0).all()  # not measured


def test_the_real_scene_is_between_2_and_6_metres(tmp_path):
    pytest.importorskip('skimage')
    motorcycle.write_motorcycle(tmp_path)
    depths = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob('depth/val/*.png'))])
    assert depths.shape == (21, 128, 128) and 2000 < depths[depths > 0].min() < depths.max() < 6000
    assert (depths == 0).mean() < 0.1


def test_without_its_package_there_is_one_message_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.data', None)
    with pytest.raises(UserError, match='motorcycle needs the package scikit-image: pip install scikit-image'):
        write_builtin('motorcycle', tmp_path / 'motorcycle')
    assert not list(tmp_path.iterdir())
