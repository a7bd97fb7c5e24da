"""Images of several digits have the tags of their digits."""

import numpy as np
from PIL import Image

from timm_rs.data import builtin
from timm_rs.data.builtin import write_builtin
from timm_rs.data.tagged import open_tags


def test_tags_are_those_of_the_digits_and_splits_share_none(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_rs.data.several.COUNTS', dict(train=40, validation=20))
    monkeypatch.setitem(builtin.MADE, 'several', (builtin.MADE['several'][0], 60, '.png'))
    folder = write_builtin('several', tmp_path / 'several')
    stamp = folder.stat().st_mtime_ns
    assert write_builtin('several', folder).stat().st_mtime_ns == stamp
    digits = builtin.load_digits()
    known = {pixels.tobytes(): index for index, pixels in enumerate(digits.pixels)}
    numbers = set()
    for split, count in (('train', 40), ('validation', 20)):
        samples = open_tags(folder, split)
        names = list(samples.classes)
        assert len(samples) == count and not samples.left_out
        for index, tags in enumerate(samples.targets()):
            pixels = np.array(Image.open(samples.name(index)))
            cells = [pixels[top:top + 8, left:left + 8] for top in (0, 8) for left in (0, 8)]
            shown = [known[cell.tobytes()] for cell in cells if cell.any()]
            assert {names[tag] for tag in tags} == {str(digits.labels[digit]) for digit in shown}
            assert all(digits.is_validation[shown] == (split == 'validation'))
            numbers.add(len(shown))
    assert numbers == {0, 1, 2, 3}
