"""Mixing and erasing by masks does what timm does by cutting."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing

from timm_rs.data.mixing import MaskedErasing, MaskedMixup, SoftMixup
from timm_rs.device.torch_device import Device


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('settings', [
    dict(mixup_alpha=0.2), dict(mixup_alpha=0.0, cutmix_alpha=1.0), dict(mixup_alpha=0.3, cutmix_alpha=1.0, prob=0.7),
    dict(mixup_alpha=0.0, cutmix_minmax=[0.2, 0.8])], ids=['mixup', 'cutmix', 'both', 'minmax'])
def test_masks_mix_what_timm_mixes(mode, settings):
    settings = dict(num_classes=5, label_smoothing=0.1, mode=mode) | settings
    timms, ours = Mixup(**settings), MaskedMixup(Device('cpu'), **settings)
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for seed in range(12):
        images, labels = torch.randn(6, 3, 9, 11, generator=generator), torch.randint(5, (6,), generator=generator)
        np.random.seed(seed)
        expected, expected_targets = timms(images.clone(), labels)
        kinds.add(torch.equal(expected, images))
        state = np.random.get_state()[1].tolist()
        np.random.seed(seed)
        mixed, targets = ours(images, labels)
        torch.testing.assert_close(mixed, expected)
        torch.testing.assert_close(targets, expected_targets)
        assert np.random.get_state()[1].tolist() == state  # the same draws, no more and no fewer
    assert False in kinds


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('kind', [SoftMixup, partial(MaskedMixup, Device('cpu'))], ids=['SoftMixup', 'MaskedMixup'])
def test_soft_targets_mix_as_smoothed_labels_do(mode, kind):
    settings = dict(num_classes=5, label_smoothing=0.1, mode=mode, mixup_alpha=0.3, cutmix_alpha=1.0, prob=0.7)
    timms, ours = Mixup(**settings), kind(**settings)
    images, labels = torch.randn(6, 3, 9, 11), torch.tensor([0, 1, 2, 3, 4, 0])
    soft = F.one_hot(labels, 5) * 0.9 + 0.02
    for seed in range(12):
        np.random.seed(seed)
        expected = timms(images.clone(), labels)
        np.random.seed(seed)
        torch.testing.assert_close(ours(images.clone(), soft), expected)


def test_mixing_can_be_switched_off():
    mix = MaskedMixup(Device('cpu'), num_classes=3, label_smoothing=0.0, mixup_alpha=1.0)
    mix.mixup_enabled = False
    images, labels = torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 2, 0])
    mixed, targets = mix(images, labels)
    assert torch.equal(mixed, images) and torch.equal(targets.argmax(1), labels) and targets.max() == 1


@pytest.mark.parametrize('mode', ['const', 'rand', 'pixel'])
def test_masks_erase_the_rectangles_that_timm_erases(mode):
    images = torch.full((8, 3, 24, 20), 7.0)
    random.seed(1)
    timms = RandomErasing(0.8, mode=mode, max_count=2, device='cpu')(images.clone())
    random.seed(1)
    ours = MaskedErasing(Device('cpu'), 0.8, mode, 2)(images)
    assert torch.equal(ours != 7, timms != 7) and 0.02 < (ours != 7).float().mean() < 0.4
    erased = [image[:, (image != 7).all(0)] for image in ours if (image != 7).any()]  # channels, pixels
    spread = torch.stack([pixels.std(1).mean() for pixels in erased])
    assert (spread > 0.5).all() if mode == 'pixel' else (spread == 0).all()
    assert all((pixels == 0).all() for pixels in erased) == (mode == 'const')
