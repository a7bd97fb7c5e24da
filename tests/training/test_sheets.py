"""Pictures for people: sheets of images, and who is taken for whom."""

import numpy as np
import pytest

from timm_rs.training.sheets import Confusion, Tile, as_image, confusion_picture, fitting, save_picture, sheet


def confusion(number):
    """Half of the 8 images of each class are taken for the next class."""
    truth = np.repeat(np.arange(number), 2)
    return Confusion(truth, (truth + np.tile([0, 1], number)) % number, np.full(2 * number, 4))


def pixels_of(picture, is_wrong):
    """How many pixels have the hue of what is right, or wrong."""
    red, _, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
    return int((red > blue + 40).sum() if is_wrong else (blue > red + 40).sum())


@pytest.mark.parametrize(('number', 'cells'), [(3, 44), (12, 44), (13, 28), (30, 28), (31, 21), (1000, 1), (2500, 1)])
def test_every_confusion_has_its_cell_at_any_number_of_classes(number, cells):
    picture = confusion_picture(confusion(number), [f'class {index}' for index in range(number)])
    assert max(picture.size) < 1700
    rows = min(number, -(-number // -(-number // 1000)))
    for is_wrong in (False, True):
        share = pixels_of(picture, is_wrong) / (rows * cells ** 2)
        assert 0.6 < share <= 1.01  # numbers and lines cover some of the pixels


def test_one_image_of_many_is_seen():
    counts = Confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([9999, 1, 10]))
    assert pixels_of(confusion_picture(counts, ['cat', 'dog']), is_wrong=True) == 0  # pale, but no white
    assert np.asarray(confusion_picture(counts, ['cat', 'dog'])).min(2)[:, -150:].max() == 255
    assert counts.mistakes() == [(0, 1, 1)] and counts.totals(3).tolist() == [10_000, 10, 0]


@pytest.mark.parametrize('names', [['only'], ['', '\n', '$x', '\udcff', 'Ω' * 300, 'a' * 100_000]])
def test_names_may_be_anything(names, tmp_path):
    number = len(names)
    save_picture(tmp_path / 'a.png', confusion_picture(confusion(number), names))
    tiles = [Tile(np.zeros((32, 32, 3), np.uint8), (name,)) for name in names]
    assert sheet(tiles, 'heading', columns=4).width < 1000


@pytest.mark.parametrize('text', ['short', 'long ' * 50, 'x' * 10_000, '\udc80\x00'])
def test_a_line_fits_or_is_shortened_in_its_middle(text):
    from timm_rs.training.sheets import _font
    line = fitting(text, 100, 12)
    assert _font(12).getlength(line) <= 100 and line.isprintable()
    assert line == text or '…' in line or '\N{REPLACEMENT CHARACTER}' in line
    if '…' in line:
        assert line[0] == text[0] and line[-1] == text[-1]


@pytest.mark.parametrize('shape', [(8, 6, 3), (8, 6, 1), (8, 6, 4), (5, 8, 6, 3), (2, 5, 8, 6, 3)])
def test_images_clips_and_views_of_any_channels_are_shown(shape):
    pixels = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    shown = as_image(pixels)
    assert shown.size == (6, 8) and shown.mode == 'RGB'
    middle = pixels.reshape(-1, *shape[-3:])[np.prod(shape[:-3], dtype=int) // 2]
    assert (np.asarray(shown)[..., 0] == middle[..., 0]).all()


def test_a_sheet_shows_pixels_as_they_are_and_small_ones_enlarged():
    tile = np.random.default_rng(0).integers(256, size=(200, 200, 3)).astype(np.uint8)
    assert (np.asarray(sheet([Tile(tile, ('a',))], 'b', 4))[34:234, 8:208] == tile).all()
    small = sheet([Tile(tile[:20, :20], ('a',))] * 5, 'b', 4)
    assert (np.asarray(small)[34:194, 8:168] == tile[:20, :20].repeat(8, 0).repeat(8, 1)).all()
    assert small.height > 2 * 160
