"""Images and what is known of their pixels stay together: crops, flips, scales, padding."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional

from timm_rs.transforms.decode import BadImage
from timm_rs.transforms.joint import OUTSIDE, JointTransform, fitted

FILL, VOID, SIZE = (124, 116, 104), 255, (32, 40)


@pytest.fixture
def blocks():
    """An image of flat blocks of 8 px, each of a colour of its own, and the blocks' numbers: (40, 56)."""
    numbers = np.arange(35).reshape(5, 7).repeat(8, 0).repeat(8, 1)
    colours = np.random.default_rng(0).permutation(256)[:35]
    pixels = np.stack([colours[numbers], 255 - colours[numbers], numbers * 7], 2).astype(np.uint8)
    return Image.fromarray(pixels), torch.from_numpy(numbers.astype(np.int16))


def transform(canvas=None, **training):
    made = JointTransform('RGB', SIZE, FILL, VOID, canvas)
    options = dict(hflip=0.5, scale=(0.5, 2.0), colour=0.0, is_depth=False) | training
    return made.training(**options) if training else made


@pytest.mark.parametrize('seed', range(8))
def test_training_is_torchvisions_functions_with_numbers_from_the_seed(blocks, seed):
    image, numbers = blocks
    before = torch.random.get_rng_state()
    pixels, target = transform(scale=(0.5, 2.0)).with_target(image, numbers, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    both = [functional.pil_to_tensor(image), numbers[None]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if torch.rand(1) < 0.5:
            both = [functional.horizontal_flip(one) for one in both]
        share = 0.5 + float(torch.rand(())) * 1.5
        height, width = round(share * SIZE[0]), round(share * SIZE[1])
        height, width = min(height, round(width * 40 / 56)), min(width, round(height * 56 / 40))
        both = [functional.resize(both[0], [height, width], antialias=True),
                functional.resize(both[1], [height, width], functional.InterpolationMode.NEAREST)]
        pad = [max(0, SIZE[1] - width), max(0, SIZE[0] - height)]
        both = [functional.pad(one, pad, fill=fill) for one, fill in zip(both, (list(FILL), VOID), strict=True)]
        place = [int(torch.randint(0, have - want + 1, ())) if have > want else 0
                 for have, want in zip(both[0].shape[1:], SIZE, strict=True)]
        both = [functional.crop(one, *place, *SIZE) for one in both]
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), both[0])
    assert torch.equal(target, both[1][0]) and target.dtype is torch.int16


def test_each_label_lies_on_its_pixels_and_nowhere_else(blocks):
    image, numbers = blocks
    colours = np.array(image)[4::8, 4::8].reshape(35, 3)
    for seed in range(30):
        pixels, target = transform(scale=(0.8, 2.0)).with_target(image, numbers, seed)
        flat = (pixels[:, :, None] == colours).all(3)
        inner = flat[1:-1, 1:-1] & flat[2:, 1:-1] & flat[:-2, 1:-1] & flat[1:-1, 2:] & flat[1:-1, :-2]
        assert inner.sum() > 30
        assert (target.numpy()[1:-1, 1:-1][inner.any(2)] == inner.argmax(2)[inner.any(2)]).all()
        assert {*np.unique(target)} <= {*range(35), VOID}
        assert (pixels[target == VOID] == FILL).all()


def test_a_seed_decides_everything(blocks):
    first, again, other = (transform(scale=(0.5, 2.0), colour=0.5).with_target(*blocks, seed) for seed in (3, 3, 4))
    assert (first[0] == again[0]).all() and torch.equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_depth_comes_as_much_nearer_as_it_is_enlarged(blocks):
    image, numbers = blocks
    metres = numbers.float() + 1
    _, half = transform(hflip=0.0, scale=(0.5, 0.5), is_depth=True).with_target(image, metres, 0)
    _, whole = transform(hflip=0.0, scale=(1.0, 1.0), is_depth=True).with_target(image, metres, 0)
    known = {*metres.unique().tolist()}
    assert {*whole[whole < VOID].tolist()} <= known
    assert {*half[half < VOID].tolist()} <= {2 * depth for depth in known}


@pytest.mark.parametrize('canvas', [None, 60])
def test_evaluation_shows_all_of_the_image_at_the_top_left(blocks, canvas):
    image, numbers = blocks
    pixels, target = transform(canvas).with_target(image, numbers, 0)
    assert (pixels[29:] == FILL).all() and not (pixels[:29] == FILL).all(2).any()
    inside = (29, 40) if canvas is None else (40, 56)
    assert (target[inside[0]:] == OUTSIDE).all() and (target[:, inside[1]:] == OUTSIDE).all()
    assert (target[:inside[0], :inside[1]] >= 0).all()
    assert target.shape == (SIZE if canvas is None else (60, 60)) == transform(canvas).blank().shape
    assert transform(canvas).blank().dtype == target.dtype


@pytest.mark.parametrize(('shape', 'canvas', 'words'), [
    ((56, 40), 60, r'56 x 40 pixels, and its labels 40 x 56: is one of them turned\?'),
    ((40, 55), 60, 'labels 55 x 40'), ((40, 56), 50, 'above label_size 50')])
def test_labels_of_another_size_are_bad(blocks, shape, canvas, words):
    with pytest.raises(BadImage, match=words):
        transform(canvas).with_target(blocks[0], torch.zeros(shape, dtype=torch.int16), 0)


def test_images_fit_whatever_their_shape():
    heights, widths = torch.tensor([1, 10_000, 40, 32]), torch.tensor([10_000, 1, 56, 40])
    assert torch.stack(fitted(heights, widths, SIZE)).T.tolist() == [[1, 40], [32, 1], [29, 40], [32, 40]]


@pytest.mark.parametrize('orientation', [3, 6])
@pytest.mark.parametrize('options', [{}, dict(hflip=0.0, scale=(1.0, 1.0))], ids=['evaluation', 'training'])
def test_images_are_read_as_they_are_stored_since_labels_were_drawn_on_that(blocks, orientation, options):
    image, numbers = blocks
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(turned, 'jpeg', quality=95, exif=exif)
    plain = io.BytesIO()
    image.save(plain, 'jpeg', quality=95)
    (pixels, target), (expected, labels) = (
        transform(**options).with_target(file.getvalue(), numbers, 0) for file in (turned, plain))
    assert np.array_equal(pixels, expected) and torch.equal(target, labels)
