"""What a network says of every pixel, or of a video, as pictures."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from timm_rs.inference.pictures import LINE, draw_images, draw_strip
from timm_rs.inference.predict import Class, Prediction
from timm_rs.inference.source import Source
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.segmentation import voc_colours

CONFIG = dict(input_size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Reads(torch.nn.Module):
    """A network that says of each pixel what its colour is: in 0..1, by channel."""

    def forward(self, images):
        mean, std = (torch.tensor(CONFIG[name])[:, None, None] for name in ('mean', 'std'))
        return images * std + mean


class ReadsRed(Reads):
    def forward(self, images):
        return (1 + 4 * super().forward(images)[:, :1]).log()


def source_of(task, model):
    return Source('x', model.eval(), Recipe(task=task, device='cpu'), CONFIG, ['red', 'green', 'blue'])


@pytest.fixture
def photo(tmp_path):
    """96 x 64 pixels: green above, blue below, red at the left."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :, 1], pixels[32:, :, 2] = 200, 200
    pixels[:, :24] = (240, 0, 0)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png', pixels


def test_classes_lie_on_the_pixels_they_are_said_of(photo, tmp_path):
    path, pixels = photo
    drawn, = draw_images(source_of('segmentation', Reads()), [str(path)], tmp_path / 'out')
    assert drawn.words == 'green 37.5 %, blue 37.5 %, red 25.0 %'
    found = np.asarray(Image.open(drawn.file)).astype(float)
    assert found.shape == pixels.shape
    expected = 0.6 * voc_colours(3)[pixels.argmax(2)] + 0.4 * pixels
    assert (np.abs(found - expected).max(2) <= 1).mean() > 0.95  # all but the edges


def test_depths_are_drawn_from_red_to_blue(photo, tmp_path):
    path, pixels = photo
    drawn, = draw_images(source_of('depth', ReadsRed()), [str(path)], tmp_path / 'out')
    assert drawn.words == '1.00 to 4.76 m, 1.00 m in the middle'
    found = np.asarray(Image.open(drawn.file))
    near, far = (np.array(colormaps['turbo'](place, bytes=True)[:3]) for place in (1.0, 0.0))
    assert (found[10, 80] == near).all() and (found[10, 5] == far).all()


def test_names_do_not_overwrite_each_other_and_bad_images_are_said(photo, tmp_path):
    (tmp_path / 'other').mkdir()
    other = tmp_path / 'other/photo.png'
    other.write_bytes(photo[0].read_bytes())
    (tmp_path / 'bad.png').write_bytes(b'')
    places = [str(photo[0]), str(tmp_path / 'bad.png'), str(other), str(tmp_path / 'none.png')]
    drawn = list(draw_images(source_of('segmentation', Reads()), places, tmp_path / 'out'))
    assert [one.file and one.file.name for one in drawn] == ['photo.png', None, 'photo-2.png', None]
    assert [one.problem for one in drawn] == ['', 'empty file', '', 'no such file']


def test_colours_are_those_of_vocs_masks():
    assert voc_colours(21)[[0, 1, 2, 3, 4, 15, 20]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [192, 128, 128], [0, 64, 128]]


def test_a_strip_has_frames_from_first_to_last_over_bars_as_long_as_their_probability(tmp_path):
    frames = torch.arange(0, 200, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 56, 60, 3)
    classes = [Class(1, 'left', 0.75), Class(0, 'right', 0.25)]
    found = np.asarray(Image.open(draw_strip(Prediction('a/clip.mp4', classes, '', frames), tmp_path / 'out', set())))
    assert found.shape == (112 + 2 * LINE, 8 * 120, 3)
    assert found[50, 60::120, 0].tolist() == [0, 30, 50, 80, 110, 140, 160, 190]
    filled = (found[[112 + LINE - 2, 112 + 2 * LINE - 2]] != 255).any(2).mean(1)
    assert filled == pytest.approx([0.75, 0.25], abs=0.01)
