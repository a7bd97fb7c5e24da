"""Operations on arrays beside timm's own on PIL images, to the bit."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp

from timm_rs.transforms import pillow_operations as operations
from timm_rs.transforms.crops import OnPil
from timm_rs.transforms.timm_augment import OnArrays

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
FILL = (124, 116, 104)


def images():
    """Odd sizes, single pixels and lines, noise, one colour, two, slopes, and what is smooth."""
    rng = np.random.default_rng(0)
    for size in (1, 1), (1, 7), (5, 1), (2, 3), (3, 3), (33, 47):
        yield rng.integers(0, 256, (*size, 3), np.uint8)
    yield np.full((20, 31, 3), (255, 0, 77), np.uint8)
    y, x = np.mgrid[:40, :53]
    yield np.stack([3 * x, 6 * y, 255 - 2 * x - y], axis=-1).astype(np.uint8)
    yield np.where((x + y < 40)[..., None], 255, rng.integers(0, 9, (40, 53, 3))).astype(np.uint8)
    yield np.array(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((61, 45), BICUBIC))


@pytest.fixture(autouse=True)
def posterizing_to_nothing(monkeypatch):
    """timm posterizes to 0 bits, too, which is black; Pillow 13 refuses."""
    monkeypatch.setattr(ImageOps, 'posterize', lambda image, bits: image.point(
        [value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3))


MOVES = [name for name in auto_augment.NAME_TO_OP if name.startswith(('Rotate', 'Shear', 'Translate'))]


@pytest.mark.parametrize(('name', 'resample'), [(name, BICUBIC) for name in auto_augment.NAME_TO_OP] + [
    (name, BILINEAR) for name in MOVES])
def test_an_operation_is_timms_at_every_magnitude(name, resample):
    for level in (*range(11), 15):
        step = AugmentOp(name, 1.0, level, dict(
            img_mean=FILL, interpolation=resample, translate_const=20, magnitude_max=15))
        for image in images():
            for seed in (0, 2):  # one of either sign
                np.testing.assert_array_equal(
                    OnArrays([step])(image, np.random.default_rng(seed)),
                    OnPil([step])(image, np.random.default_rng(seed)), err_msg=f'{name} {level} {image.shape}')


# Whole, half and quarter pixels, and next to them, where sums are whole numbers and rounding decides; and far away.
AWKWARD = [0, 1, -3, 0.5, -0.5, 0.25, 1.8, -2.2, 1 / 3, 1e-13, -1e-15, 12 - 1e-13, -17 - 1e-14, 1 - 2**-53, 46.5, 500,
           -1e6]


@pytest.mark.parametrize('resample', [Image.Resampling.NEAREST, BILINEAR, BICUBIC], ids=str)
@pytest.mark.parametrize('amount', AWKWARD)
def test_images_slide_by_any_amount_as_in_pillow(amount, resample):
    slides = ((operations.shear_x, (1, amount, 0, 0, 1, 0)), (operations.shear_y, (1, 0, 0, amount, 1, 0)),
              (operations.translate_x, (1, 0, amount, 0, 1, 0)), (operations.translate_y, (1, 0, 0, 0, 1, amount)))
    for image in images():
        whole = Image.fromarray(image)
        for slide, matrix in slides:
            np.testing.assert_array_equal(slide(image, amount, resample, FILL), whole.transform(
                whole.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL), err_msg=str(matrix))


def test_luminance_is_pillows_for_every_colour():
    for red in range(0, 256, 32):
        colours = np.stack(np.meshgrid(*(np.arange(start, start + size, dtype=np.uint8) for start, size in (
            (red, 32), (0, 256), (0, 256))), indexing='ij'), axis=-1).reshape(256, -1, 3)
        np.testing.assert_array_equal(operations.grayscale(colours), Image.fromarray(colours).convert('L'))


def test_what_pillow_cannot_interpolate_with_is_an_error():
    with pytest.raises(ValueError, match='LANCZOS'):
        operations.shear_x(np.zeros((5, 5, 3), np.uint8), 0.1, Image.Resampling.LANCZOS, FILL)
