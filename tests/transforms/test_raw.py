"""Raw pixels read row by row: the same as the whole image decoded, whatever is made of it, and no more is read."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import MODES, create_transform
from timm_rs.transforms.decode import BadImage, Limits, open_picture
from timm_rs.transforms.joint import JointTransform
from timm_rs.transforms.raw import HEADER_BYTES, OpenFile, Stretch

DATA = dict(input_size=(3, 24, 24), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875, crop_mode='center',
            interpolation='bicubic')
BEFORE = b'what lies before'


def ppm(height, width, mode='RGB'):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, 'PPM')
    return content.getvalue()


@pytest.fixture
def stretch(tmp_path):
    """A function from bytes to a stretch with them, in the middle of a file."""
    def write(content):
        (tmp_path / 'file').write_bytes(BEFORE + content + b'what lies behind')
        return Stretch(OpenFile(tmp_path / 'file'), len(BEFORE), len(content))
    return write


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('stored', ['RGB', 'L'])
def test_every_crop_has_the_pixels_of_the_whole_image(stretch, stored, mode):
    for size in ((30, 41), (1, 50), (50, 1)):
        content = ppm(*size, stored)
        ours, whole = open_picture(stretch(content), mode), open_picture(content, mode).pixels()
        assert (ours.height, ours.width) == size
        np.testing.assert_array_equal(ours.pixels(), whole)
        rng = np.random.default_rng(0)
        for _ in range(20):
            height, width = (int(rng.integers(1, side + 1)) for side in size)
            top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
            found = ours.pixels((top, left, height, width))
            np.testing.assert_array_equal(found, whole[top:top + height, left:left + width])
            assert found.flags.writeable


@pytest.mark.parametrize(('is_training', 'settings'), [
    (True, dict()), (True, dict(decode='scaled')), (True, dict(aa='rand-m9-n2', vflip=0.5, color_jitter=0.4)),
    (True, dict(no_aug=True)), (True, dict(train_interpolation='lanczos', scale=[0.08, 0.2])),
    (True, dict(preprocessing='tf', randaugment='tf', aa='rand-m15-n2', train_interpolation='bicubic')),
    (True, dict(train_crop_mode='rkrc')), (True, dict(input_img_mode='L', in_chans=1)), (False, dict()),
    (False, dict(preprocessing='tf', train_interpolation='bicubic')), (False, dict(crop_mode='border')),
    (False, dict(crop_pct=1.0))])
@pytest.mark.parametrize('stored', ['RGB', 'L'])
def test_every_transform_makes_the_same_of_it(stretch, stored, is_training, settings):
    content = ppm(40, 53, stored)
    config = DATA | dict(input_size=(settings.get('in_chans', 3), 24, 24)) | {
        name: settings[name] for name in DATA.keys() & settings.keys()}
    recipe = Recipe(**{name: value for name, value in settings.items() if name not in DATA})
    transform = create_transform(recipe, config, is_training)
    for seed in range(4):
        np.testing.assert_array_equal(transform(stretch(content), seed), transform(content, seed))


def test_an_image_with_a_mask_is_the_same(stretch):
    content, mask = ppm(40, 53), torch.zeros(40, 53, dtype=torch.int16)
    for transform in (made := JointTransform('RGB', (24, 24), (0, 0, 0), 255), made.training(
            hflip=0.5, scale=(0.5, 2.0), colour=0.1, is_depth=False)):
        for ours, theirs in zip(transform.with_target(stretch(content), mask, 1),
                                transform.with_target(content, mask, 1), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_more_is_read_than_the_rows_of_the_crop(stretch, monkeypatch):
    read = []
    monkeypatch.setattr(OpenFile, 'read_into', lambda self, array, offset, into=OpenFile.read_into: (
        read.append((offset, len(array))) or into(self, array, offset)))
    open_picture(stretch(ppm(40, 50))).pixels((7, 20, 5, 10))
    header = len(b'P6\n50 40\n255\n')
    assert read == [(len(BEFORE), HEADER_BYTES), (len(BEFORE) + header + 7 * 150, 5 * 150)]


def test_systems_without_positioned_reads_read_the_same(stretch, monkeypatch):
    content = ppm(40, 50)
    monkeypatch.delattr(os, 'preadv')
    np.testing.assert_array_equal(open_picture(stretch(content)).pixels((7, 20, 5, 10)),
                                  open_picture(content).pixels()[7:12, 20:30])


@pytest.mark.parametrize('content', [
    ppm(8, 9).replace(b'9 8', b'99999 8'), ppm(8, 9).replace(b'9 8', b'9 888888888'),
    ppm(8, 9).replace(b'255', b'65535'), ppm(8, 9)[:-1], ppm(8, 9)[:13], b'P6', b'', b'no image',
    ppm(8, 9).replace(b'9 8', b'0 8'), ppm(8, 9).replace(b'9 8', b'-9 8')])
def test_headers_that_lie_are_bad_images(stretch, content):
    with pytest.raises(BadImage):
        open_picture(stretch(content)).pixels((0, 0, 1, 1))


@pytest.mark.parametrize('content', [
    ppm(8, 9).replace(b'P6', b'P6 # a comment'), ppm(8, 9) + b'more', b'P6 2 1 65535\n' + bytes(range(12)),
    b'P2 2 1 255 7 9', b'P4 8 2\n\xaa\x55'])
def test_other_kinds_of_it_are_pillows_to_read(stretch, content):
    np.testing.assert_array_equal(open_picture(stretch(content)).pixels(), open_picture(content).pixels())


def test_a_file_that_is_cut_off_is_an_error_of_the_image(stretch, tmp_path):
    content = ppm(8, 9)
    cut = stretch(content)
    os.truncate(tmp_path / 'file', len(BEFORE) + 100)
    open_picture(cut).pixels((0, 0, 2, 9))
    with pytest.raises(OSError, match=f"ends after 100 of the image's {len(content)} bytes"):
        open_picture(cut).pixels()


def test_limits_count(stretch):
    with pytest.raises(BadImage, match='9 x 8 pixels, more than the 70 allowed'):
        open_picture(stretch(ppm(8, 9)), limits=Limits(pixels=70))
