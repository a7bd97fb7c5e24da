"""timm's augmentation on arrays beside itself on PIL images: same seeds, same bits."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp, RandAugment
from torchvision.transforms import ColorJitter

import timm_rs.transforms.create
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import create_transform
from timm_rs.transforms.crops import OnPil
from timm_rs.transforms.timm_augment import OnArrays, can_do

DATA = dict(input_size=(3, 40, 48), mean=(0.485, 0.456, 0.406), std=(0.25,) * 3, crop_pct=0.875, crop_mode='center',
            interpolation='bicubic')
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)).resize((90, 70))
AA = ('rand-m9-n2-mstd0.5', 'rand-m9-n3-mstd0.5-inc1', 'rand-m15-n2-p1.0-mmax15', 'rand-m10-n2-p1.0',
      'rand-m7-mstd101-tweights', 'rand-m8-inc1-t3a', 'rand-m8-n1-t3aw', 'original', 'original-mstd0.5', 'originalr',
      'v0', 'v0r-mstd1', '3a', 'augmix-m5-w4-d2', 'augmix-m3', 'augmix-m4-b1')
SETTINGS = [dict(aa=aa) for aa in AA] + [
    dict(aa='rand-m9-n2-p1.0', train_interpolation='bicubic'), dict(aa='v0', train_interpolation='nearest'),
    dict(color_jitter=0.4), dict(color_jitter=0.4, color_jitter_prob=0.8, grayscale_prob=0.3),
    dict(color_jitter=0.8, gaussian_blur_prob=0.5, grayscale_prob=0.2), dict(aa='3a', color_jitter=0.3, hflip=0.0)]


@pytest.fixture(autouse=True)
def posterizing_to_nothing(monkeypatch):
    monkeypatch.setattr(ImageOps, 'posterize', lambda image, bits: image.point(
        [value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3))


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_augmentation_on_arrays_is_that_on_pil_images(settings, monkeypatch):
    recipe = Recipe(**settings)
    ours = create_transform(recipe, DATA, is_training=True)
    monkeypatch.setattr(timm_rs.transforms.create, 'can_do', lambda step: False)
    timms = create_transform(recipe, DATA, is_training=True)
    assert isinstance(ours.steps[-1], OnArrays) and isinstance(timms.steps[-1], OnPil)
    for seed in range(60):
        np.testing.assert_array_equal(ours(IMAGE, seed), timms(IMAGE, seed), err_msg=str(seed))


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_nobody_elses_random_numbers_are_touched(settings, monkeypatch):
    for module, names in ((random, ('getstate', 'setstate', 'seed')), (np.random, ('get_state', 'set_state', 'seed')),
                          (torch, ('get_rng_state', 'set_rng_state', 'manual_seed'))):
        for name in names:
            monkeypatch.setattr(module, name, None)
    transform = create_transform(Recipe(**settings), DATA, is_training=True)
    states = random.Random.getstate(random._inst), torch.default_generator.get_state()
    numpys = np.random.mtrand._rand.get_state(legacy=False)['state']
    for seed in range(5):
        transform(IMAGE, seed)
    assert states[0] == random.Random.getstate(random._inst)
    assert torch.equal(states[1], torch.default_generator.get_state())
    after = np.random.mtrand._rand.get_state(legacy=False)['state']
    assert numpys['pos'] == after['pos'] and (numpys['key'] == after['key']).all()


def test_a_transform_that_was_used_goes_to_another_process():
    transform = create_transform(Recipe(aa='rand-m9-n2', color_jitter=0.4), DATA, is_training=True)
    expected = [transform(IMAGE, seed) for seed in range(4)]
    copy = pickle.loads(pickle.dumps(transform))
    np.testing.assert_array_equal([copy(IMAGE, seed) for seed in range(4)], expected)


def test_what_arrays_do_not_have_is_left_to_pil():
    colour = create_transform(Recipe(aa='rand-m9-n2'), DATA, is_training=True)
    gray = create_transform(Recipe(aa='rand-m9-n2', in_chans=1), DATA | dict(
        input_size=(1, 40, 48), mean=(0.5,), std=(0.5,)), is_training=True)
    assert isinstance(colour.steps[-1], OnArrays) and isinstance(gray.steps[-1], OnPil)
    assert not can_do(ColorJitter(hue=0.1)) and can_do(ColorJitter(0.1))
    step = AugmentOp('Invert')
    step.name = 'AnotherOne'
    assert can_do(RandAugment([AugmentOp('Invert')])) and not can_do(RandAugment([AugmentOp('Invert'), step]))
    assert not can_do(lambda image: image)
