"""RandAugment against TensorFlow (tests/expected/make_randaugment.py) and against its own law."""

import hashlib
import time

import cv2
import numpy as np
import pytest
from conftest import EXPECTED

from timm_rs.transforms.official_randaugment import OPERATIONS, RandAugment, contrast, grayscale, solarize

GOLDENS = np.load(EXPECTED / 'randaugment.npz')
CENTRES = dict(small=(5, 30), large=(100, 20))  # as in the script
CASES = [key for key in GOLDENS.files if '/' in key]


@pytest.fixture
def image():
    return GOLDENS['small'].copy()


@pytest.mark.parametrize('case', CASES)
def test_operation_equals_tensorflows_in_every_pixel(case):
    name, operation, magnitude, *sign = case.split('/')
    before = GOLDENS[name]
    after = RandAugment(float(magnitude)).apply(
        operation, before.copy(), sign=-1 if sign == ['-'] else 1, centre=CENTRES[name])
    expected = GOLDENS[case]
    if name == 'small':
        np.testing.assert_array_equal(after, expected)
    else:
        assert hashlib.sha256(after.tobytes()).digest() == expected.tobytes()


def test_goldens_cover_every_operation_and_magnitude_of_the_papers_models():
    cases = {tuple(case.split('/')[1:3]) for case in CASES}
    assert {(operation, magnitude) for operation in OPERATIONS for magnitude in ('10', '15', '20')} <= cases
    assert len(OPERATIONS) == 16


@pytest.mark.parametrize(('operation', 'expected'), [  # the release's level_to_arg, at magnitudes 10, 15 and 20
    ('AutoContrast', (None, None, None)),
    ('Equalize', (None, None, None)),
    ('Invert', (None, None, None)),
    ('Rotate', (30, 45, 60)),
    ('Posterize', (4, 6, 8)),
    ('Solarize', (0, 128, 0)),
    ('SolarizeAdd', (110, 165, 220)),
    ('Color', (1.9, 2.8, 3.7)),
    ('Contrast', (1.9, 2.8, 3.7)),
    ('Brightness', (1.9, 2.8, 3.7)),
    ('Sharpness', (1.9, 2.8, 3.7)),
    ('ShearX', (0.3, 0.45, 0.6)),
    ('ShearY', (0.3, 0.45, 0.6)),
    ('TranslateX', (100, 150, 200)),
    ('TranslateY', (100, 150, 200)),
    ('Cutout', (40, 60, 80)),
])
def test_arguments_are_the_releases(operation, expected):
    for magnitude, argument in zip((10, 15, 20), expected, strict=True):
        assert RandAugment(magnitude).arguments[operation] == pytest.approx(argument)


def test_quirks_can_be_switched_off(image):
    plain = RandAugment(15, solarize_modulo=False, constant_contrast=False, unclamped_solarize_add=False)
    assert (plain.arguments['Solarize'], plain.arguments['SolarizeAdd']) == (256, 128)
    np.testing.assert_array_equal(plain.apply('Solarize', image), image)
    assert plain.apply('SolarizeAdd', np.zeros_like(image)).max() == 128
    assert RandAugment(15).apply('SolarizeAdd', np.zeros_like(image)).max() == 165
    even = np.full_like(image, 90)  # its mean luminance is itself, so true contrast changes nothing
    np.testing.assert_array_equal(plain.apply('Contrast', even), even)
    assert (RandAugment(15).apply('Contrast', even) == 243).all()  # 5 + 2.8 * (90 - 5): 32 * 40 / 256 = 5


def test_pixels_of_translation_and_cutout_can_be_changed(image):
    arguments = RandAugment(15, translate_px=10, cutout_px=8).arguments
    assert (arguments['TranslateX'], arguments['TranslateY'], arguments['Cutout']) == (15, 15, 12)


@pytest.mark.parametrize(('size', 'gray'), [(160, 100), (192, 144), (224, 196), (256, 255), (320, 255)])
def test_contrast_starts_from_a_gray_that_only_depends_on_the_size(size, gray):
    image = np.full((size, size, 3), gray, np.uint8)
    np.testing.assert_array_equal(contrast(image, 3.7), image)  # only that gray stays where it is
    assert (contrast(image - 2, 3.7) != image - 2).all()


def test_solarize_at_magnitudes_10_and_20_inverts_the_whole_image(image):
    for magnitude in (10, 20):
        np.testing.assert_array_equal(RandAugment(magnitude).apply('Solarize', image), 255 - image)
    np.testing.assert_array_equal(solarize(image, 256), image)


def test_operations_are_drawn_uniformly_with_replacement_and_always_applied(image, monkeypatch):
    applied = []

    def note(self, name, image, sign, centre):
        applied.append((name, sign, centre))
        return image

    monkeypatch.setattr(RandAugment, 'apply', note)
    randaugment, draws = RandAugment(10), 4000
    for seed in range(draws):
        randaugment(image, seed)
    assert len(applied) == 2 * draws
    names = [name for name, _, _ in applied]
    pairs = np.zeros((16, 16))
    for first, second in zip(names[::2], names[1::2], strict=True):
        pairs[OPERATIONS.index(first), OPERATIONS.index(second)] += 1
    # Chi-square of 256 equally likely pairs: mean 255, standard deviation 22.6; 1 in 10^5 exceeds 360.
    assert ((pairs - draws / 256) ** 2 / (draws / 256)).sum() < 360
    # Five standard deviations of a fair coin over 8000 throws.
    assert abs(sum(sign == 1 for _, sign, _ in applied) - draws) < 5 * (draws / 2) ** 0.5
    assert {sign for _, sign, _ in applied} == {1, -1}
    rows, columns = (np.bincount([centre[axis] for _, _, centre in applied]) for axis in (0, 1))
    assert (len(rows), len(columns)) == image.shape[:2] and min(rows) > 0.7 * 250 and min(columns) > 0.6 * 200


@pytest.mark.parametrize('num_layers', [0, 1, 3])
def test_number_of_layers_is_the_number_of_operations(image, num_layers, monkeypatch):
    applied = []
    monkeypatch.setattr(RandAugment, 'apply', lambda self, name, image, **_: applied.append(name) or image)
    RandAugment(10, num_layers)(image, 0)
    assert len(applied) == num_layers


def test_same_seed_gives_the_same_image_and_the_input_is_left_alone(image):
    randaugment, before = RandAugment(15), image.copy()
    results = [randaugment(image, seed) for seed in range(60)]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result, randaugment(image, np.random.default_rng(seed)))
        assert result.dtype == np.uint8 and result.shape == image.shape
    assert len({result.tobytes() for result in results}) > 30
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('shape', [(1, 1, 3), (2, 300, 3), (3, 3, 3), (7, 1, 3)])
@pytest.mark.parametrize('operation', OPERATIONS)
def test_operations_work_at_any_size(shape, operation):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    result = RandAugment(15).apply(operation, image)
    assert result.shape == shape and result.dtype == np.uint8


@pytest.mark.parametrize(('picture', 'error', 'words'), [
    (np.zeros((8, 8, 3), np.float32), TypeError, 'uint8 array, got float32'),
    ([[0]], TypeError, 'uint8 array, got list'),
    (np.zeros((8, 8), np.uint8), ValueError, r'shape \(height, width, 3\), got \(8, 8\)'),
    (np.zeros((3, 8, 8), np.uint8), ValueError, r'got \(3, 8, 8\)'),
    (np.zeros((0, 8, 3), np.uint8), ValueError, r'got \(0, 8, 3\)'),
])
def test_what_is_no_rgb_image_is_refused(picture, error, words):
    with pytest.raises(error, match=words):
        RandAugment(10)(picture, 0)


def test_negative_strength_and_unknown_operations_are_refused(image):
    with pytest.raises(ValueError, match='must not be negative, got -1'):
        RandAugment(-1)
    with pytest.raises(ValueError, match='must not be negative, got 10 and -2'):
        RandAugment(10, -2)
    with pytest.raises(ValueError, match='unknown operation Zoom; there are AutoContrast'):
        RandAugment(10).apply('Zoom', image)


def test_luminance_is_tensorflows_where_the_weights_round_either_way():
    # tf.image.rgb_to_grayscale of these colours; the last four are one lower or higher if summed in another order.
    colours = np.uint8([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 1, 1],
                         [5, 49, 41], [10, 98, 82], [16, 218, 140], [20, 196, 164]]])
    np.testing.assert_array_equal(grayscale(colours), [[255, 0, 76, 149, 29, 1, 34, 69, 148, 139]])


@pytest.mark.slow
def test_two_operations_cost_a_quarter_of_a_millisecond():
    """0.21 ms here for 160 px (mean over draws, one core, best of 5); the bound leaves room for a busy machine."""
    image = cv2.resize(GOLDENS['large'], (160, 160))
    randaugment = RandAugment(15)
    best = []
    for seed in range(400):
        times = []
        for _ in range(5):
            start = time.process_time()
            randaugment(image, seed)
            times.append(time.process_time() - start)
        best.append(min(times))
    assert np.mean(best) < 4 * 0.25e-3
