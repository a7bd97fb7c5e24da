import numpy as np

from timm_rs.benchmark.loaders import photo, write_photos


def test_photos_are_the_same_every_time_and_as_large_as_imagenets(tmp_path):
    folder = write_photos(3, tmp_path / 'photos')
    files = sorted(folder.glob('train/0/*.jpg'))
    assert len(files) == 3 and all(80_000 < path.stat().st_size < 130_000 for path in files)
    stamp = folder.stat().st_mtime_ns
    assert write_photos(3, folder).stat().st_mtime_ns == stamp
    assert len(list(write_photos(2, folder).glob('train/0/*'))) == 2
    assert photo(np.random.default_rng(0), 10, 12).shape == (10, 12, 3)
