"""Crops and flips on arrays beside timm's."""

import random

import numpy as np
import pytest
import scipy.stats
import timm.data
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode

import timm_rs.transforms.crops
import timm_rs.transforms.decode
from timm_rs.data.timm_loader import create_transform_for_timm
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import Transform, create_transform
from timm_rs.transforms.crops import RandomResizedCrop, seeded
from timm_rs.transforms.decode import BadImage

DATA = dict(input_size=(3, 24, 24), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875, crop_mode='center',
            interpolation='bicubic')


def test_crops_are_drawn_as_timm_draws_them():
    ours = RandomResizedCrop((24, 24), (0.08, 1), (3 / 4, 4 / 3), InterpolationMode.BICUBIC)
    rng = np.random.default_rng(0)
    drawn = np.array([ours.box(375, 500, rng) for _ in range(4000)], float)
    random.seed(0)
    blank = Image.new('RGB', (500, 375))
    theirs = np.array([RandomResizedCropAndInterpolation.get_params(blank, (0.08, 1), (3 / 4, 4 / 3))
                       for _ in range(4000)], float)
    def measures(boxes):
        top, left, height, width = boxes.T
        return top, left, height, width, height * width, width / height
    for one, other in zip(measures(drawn), measures(theirs), strict=True):
        assert scipy.stats.ks_2samp(one, other).pvalue > 1e-3


@pytest.mark.parametrize(('scale', 'ratio'), [
    ((0.08, 1), (3 / 4, 4 / 3)), ((0.9, 1), (0.5, 1.7)), ((0.3, 0.3), (1, 1))])
def test_crops_are_those_that_numpy_draws_from_ranges(scale, ratio):
    """The form in which they were drawn at first: another would change every run."""
    ours = RandomResizedCrop((24, 24), scale, ratio, InterpolationMode.BICUBIC)
    for seed in range(300):
        rng, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        top, left, height, width = ours.box(120, 100 + seed, rng)
        bounds = zip(scale, np.log(ratio).tolist(), strict=True)
        for area, aspect in theirs.uniform(*bounds, (10, 2)).tolist():
            area, aspect = area * 120 * (100 + seed), np.exp(aspect)
            box = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
            if box[0] <= 120 and box[1] <= 100 + seed:
                assert (height, width) == box
                assert [top, left] == theirs.integers((121 - height, 101 + seed - width)).tolist()
                break
        assert rng.bit_generator.state == theirs.bit_generator.state


def test_an_image_too_long_for_any_crop_gives_its_middle_as_timm_does():
    ours = RandomResizedCrop((24, 24), (0.9, 1), (3 / 4, 4 / 3), InterpolationMode.BICUBIC)
    for height, width in ((400, 20), (20, 400), (1, 1)):
        expected = RandomResizedCropAndInterpolation.get_params(
            Image.new('RGB', (width, height)), (0.9, 1), (3 / 4, 4 / 3))
        assert ours.box(height, width, np.random.default_rng(0)) == tuple(expected)


@pytest.mark.parametrize('size', [(33, 50), (50, 33), (24, 24), (20, 40)])
@pytest.mark.parametrize('settings', [dict(), dict(crop_pct=1.0), dict(interpolation='bilinear')])
def test_the_evaluation_crop_is_timms(size, settings):
    config = DATA | settings
    pixels = smooth(*size)
    ours = create_transform(Recipe(), config, is_training=False)(Image.fromarray(pixels), 0)
    timms = timm.data.create_transform(
        24, crop_pct=config['crop_pct'], interpolation=config['interpolation'], use_prefetcher=True)
    np.testing.assert_allclose(ours.astype(int), timms(Image.fromarray(pixels)).permute(1, 2, 0), atol=1)


@pytest.mark.parametrize('settings', [dict(crop_mode='squash'), dict(crop_mode='border'),
                                      dict(input_size=(3, 24, 32)), dict(interpolation='lanczos')])
def test_unusual_evaluation_is_timms_own(settings):
    config = DATA | settings
    ours = create_transform(Recipe(), config, is_training=False)(Image.fromarray(smooth(40, 61)), 0)
    timms = timm.data.create_transform(
        config['input_size'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'], mean=config['mean'],
        interpolation=config['interpolation'], use_prefetcher=True)
    np.testing.assert_array_equal(ours, timms(Image.fromarray(smooth(40, 61))).permute(1, 2, 0))


SETTINGS = [
    dict(), dict(interpolation='lanczos'), dict(input_size=(3, 24, 32)), dict(crop_mode='squash'),
    dict(train_crop_mode='rkrc'), dict(train_crop_mode='rkrr'), dict(no_aug=True), dict(ratio=[0.1, 0.3]),
    dict(preprocessing='tf', train_interpolation='bicubic'), dict(ratio=[3.0, 4.0])]


@pytest.mark.parametrize('is_training', [False, True])
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('size', [(1, 40000), (40000, 1), (1, 1), (2, 20001)])
def test_a_very_long_image_takes_little_memory(size, settings, is_training, monkeypatch):
    made = []

    def noting(resize, *arguments):
        made.append(resize(*arguments))
        return made[-1]
    for place in (Image.Image, timm_rs.transforms.crops):
        monkeypatch.setattr(place, 'resize', lambda *arguments, resize=place.resize: noting(resize, *arguments))
    recipe = Recipe(**{key: value for key, value in settings.items() if key not in DATA})
    config = DATA | {key: value for key, value in settings.items() if key in DATA}
    image = Image.fromarray(np.full((*size, 3), 99, np.uint8))
    assert create_transform(recipe, config, is_training)(image, 0).shape == (*config['input_size'][1:], 3)
    assert create_transform_for_timm(recipe, config, is_training)(image).shape == config['input_size']
    assert all(np.asarray(image).size < 1e6 for image in made)


def test_an_image_that_timms_transforms_cannot_use_is_said_so():
    config, image = DATA | dict(crop_mode='border'), Image.new('RGB', (1, 40000))  # 27 long it has no width
    with pytest.raises(UserError, match='1 x 40000 pixels cannot be used: .*; remove it, or take --loader fast'):
        create_transform_for_timm(Recipe(), config, is_training=False)(image)
    with pytest.raises(BadImage, match='ResizeKeepRatio cannot use it'):
        create_transform(Recipe(), config, is_training=False)(image, 0)


def test_the_middle_of_a_long_image_is_the_centre_of_the_whole(monkeypatch):
    image = Image.fromarray(smooth(6, 1801))
    short = create_transform(Recipe(), DATA, is_training=False)(image, 0)
    monkeypatch.setattr(timm_rs.transforms.decode, 'MAX_ASPECT', 1000)
    whole = create_transform(Recipe(), DATA, is_training=False)(image, 0)
    np.testing.assert_allclose(short.astype(int), whole, atol=2)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 100 * np.sin(y / 5 + x / (7 + c)) for c in range(3)], axis=-1).astype(np.uint8)


def test_timms_transforms_run_on_the_crop_with_the_images_own_random_numbers():
    transform = create_transform(Recipe(aa='rand-m9-n2'), DATA, is_training=True)
    image = Image.fromarray(smooth(40, 61))
    first = transform(image, 5)
    random.seed(99)
    assert (first == transform(image, 5)).all() and (first != transform(image, 6)).any()
    with seeded(3):
        one = random.random(), np.random.rand(), torch.rand(()).item()
    with seeded(3):
        assert one == (random.random(), np.random.rand(), torch.rand(()).item())


def test_flips_are_flips():
    image = Image.fromarray(smooth(24, 24))
    settings = dict(scale=[1.0, 1.0], ratio=[1.0, 1.0], aa=None, color_jitter=None, train_interpolation='bicubic')
    plain = create_transform(Recipe(hflip=0.0, **settings), DATA, is_training=True)(image, 0)
    np.testing.assert_array_equal(plain, np.asarray(image))
    both = create_transform(Recipe(hflip=1.0, vflip=1.0, **settings), DATA, is_training=True)(image, 0)
    np.testing.assert_array_equal(both, plain[::-1, ::-1])


def test_a_transform_says_what_it_does():
    text = repr(create_transform(Recipe(aa='rand-m15-n2-p1.0-mmax15', randaugment='tf'), DATA, is_training=True))
    assert text.startswith(Transform.__name__) and 'RandAugment(magnitude=15, num_layers=2)' in text
