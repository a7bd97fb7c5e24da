"""Boxes go where their pixels go: flips, scales, crops, padding."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from timm_rs.transforms.boxes import AREA, BLANK, CROWD, DIFFICULT, NO_BOX, Boxes, BoxTransform, clipped, rows_of
from timm_rs.transforms.decode import BadImage

FILL, SIZE, MOST = (124, 116, 104), (32, 40), 6


@pytest.fixture
def squares():
    """A black image of 48 x 40 with three squares in colours of their own, and their boxes, the second difficult."""
    pixels, rows = np.zeros((40, 48, 3), np.uint8), []
    for number, (left, top, side) in enumerate(((2, 3, 10), (20, 18, 14), (36, 0, 12))):
        pixels[top:top + side, left:left + side, number] = 255
        rows.append([left, top, left + side, top + side, number, DIFFICULT * (number == 1)])
    return Image.fromarray(pixels), Boxes(rows_of(rows), (48, 40))


def transform(max_boxes=MOST, **training):
    made = BoxTransform('RGB', SIZE, FILL, max_boxes)
    options = dict(hflip=0.5, scale=(0.5, 2.0), colour=0.0, is_depth=False) | training
    return made.training(**options) if training else made


def kept(target):
    return target[target[:, 4] >= 0]


@pytest.mark.parametrize('seed', range(8))
def test_training_is_torchvisions_functions_with_numbers_from_the_seed(squares, seed):
    image, (rows, _) = squares
    before = torch.random.get_rng_state()
    pixels, target = transform(scale=(0.5, 2.0)).with_target(*squares, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    both = [functional.pil_to_tensor(image), tv_tensors.BoundingBoxes(rows[:, :4], format='XYXY', canvas_size=(40, 48))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if torch.rand(1) < 0.5:
            both = [functional.horizontal_flip(one) for one in both]
        share = 0.5 + float(torch.rand(())) * 1.5
        height, width = round(share * SIZE[0]), round(share * SIZE[1])
        height, width = min(height, round(width * 40 / 48)), min(width, round(height * 48 / 40))
        both = [functional.resize(one, [height, width]) for one in both]
        pad = [max(0, SIZE[1] - width), max(0, SIZE[0] - height)]
        both = [functional.pad(one, pad, fill=list(FILL)) for one in both]
        place = [int(torch.randint(0, have - want + 1, ())) if have > want else 0
                 for have, want in zip(both[0].shape[1:], SIZE, strict=True)]
        both = [functional.crop(one, *place, *SIZE) for one in both]
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), both[0])
    corners, extents = both[1].as_subclass(torch.Tensor), both[1][:, 2:] - both[1][:, :2]
    whole = (extents >= 1).all(1)
    assert target.shape == (MOST, 6) and target.dtype is torch.float32
    assert torch.equal(kept(target), torch.cat([corners[whole], rows[whole, 4:]], 1))


def test_each_box_lies_around_its_pixels_and_keeps_its_label(squares):
    counts = set()
    for seed in range(60):
        pixels, target = transform(scale=(0.8, 2.0)).with_target(*squares, seed)
        rows, others = kept(target).numpy(), (pixels != FILL).any(2)
        counts.add(len(rows))
        assert (target[len(rows):] == NO_BOX).all() and (rows[:, 5] == (rows[:, 4] == 1)).all()
        for number in range(3):
            shown = (pixels[..., number] > 128) & (np.delete(pixels, number, 2).max(2) < 64) & others
            found = rows[rows[:, 4] == number]
            assert len(found) <= 1 and (len(found) == 1 or shown.sum() < max(SIZE))  # no more than an edge is left
            if shown.any() and len(found):
                down, across = np.nonzero(shown)
                around = [across.min(), down.min(), across.max() + 1, down.max() + 1]
                assert np.abs(found[0, :4] - around).max() <= 1.5
    assert counts >= {1, 2, 3}


def test_evaluation_shows_all_of_the_image_and_drops_no_box(squares):
    image, boxes = squares
    small = Boxes(torch.cat([boxes.rows, rows_of([[0, 0, 0.5, 0.5, 1, CROWD]])]), boxes.size)
    pixels, target = transform().with_target(image, small, 0)
    assert (pixels[33:] == FILL).all() and (pixels == transform()(image, 0)).all()
    factors = torch.tensor([38 / 48, 32 / 40] * 2)
    assert torch.equal(kept(target), torch.cat([small.rows[:, :4] * factors, small.rows[:, 4:]], 1))
    assert target[-1].tolist() == [0, 0, 38, 32, AREA, AREA]


def test_boxes_are_clipped_and_empty_ones_go_with_their_labels():
    rows = rows_of([[-1, -1, 5, 5, 0, 0], [3, 3, 3, 9, 1, 0], [9, 2, 7, 4, 2, 0], [40, 4, 60, 60, 3, 0],
                    [-9, 2, 0, 4, 4, 0], [50, 2, 55, 4, 5, 0]])
    assert clipped(rows, 48, 40).tolist() == [[0, 0, 5, 5, 0, 0], [40, 4, 48, 40, 3, 0]]


@pytest.mark.parametrize('training', [{}, dict(hflip=0.5)])
def test_images_without_boxes_are_samples_as_others_are(squares, training):
    made = transform(**training)
    pixels, target = made.with_target(squares[0], Boxes(rows_of([])), 3)
    assert pixels.shape == (*SIZE, 3) and target.shape == (MOST + (not training), 6)
    assert (target[:MOST] == NO_BOX).all()
    assert made.blank().shape == target.shape and (made.blank() == BLANK).all()


def test_exif_turns_neither_image_nor_boxes(squares, tmp_path):
    image, boxes = squares
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / 'turned.png', exif=exif)
    pixels, target = transform().with_target((tmp_path / 'turned.png').read_bytes(), boxes, 0)
    plain = transform().with_target(image, boxes, 0)
    assert (pixels == plain[0]).all() and torch.equal(target, plain[1])


@pytest.mark.parametrize(('change', 'max_boxes', 'words'), [
    (dict(size=(40, 48)), 6, r'48 x 40 pixels, and its boxes are for 40 x 48: is one of them turned\?'),
    (dict(size=(47, 40)), 6, 'its boxes are for 47 x 40$'), ({}, 2, '3 boxes, more than max_boxes, 2: raise that')])
@pytest.mark.parametrize('training', [{}, dict(hflip=0.5)])
def test_boxes_of_another_size_and_too_many_are_bad(squares, change, max_boxes, words, training):
    with pytest.raises(BadImage, match=words):
        transform(max_boxes, **training).with_target(squares[0], squares[1]._replace(**change), 0)
