"""Scaling by a formula."""
import pytest

from timm_rs.errors import UserError
from timm_rs.study.compound import scaled

LAYERS = (30, 40, 60, 30)  # deep enough that rounding matters little


@pytest.mark.parametrize(('alpha', 'activations'), [(0, 1), (1 / 3, 0.83), (0.8, 0.60), (1, 0.5)])
@pytest.mark.parametrize('factor', [0.5, 2, 4])
def test_multiply_adds_grow_by_the_factor_and_activations_as_the_article_says(alpha, activations, factor):
    layers, width, img_size = scaled(LAYERS, 1, 1024, factor, alpha)
    depth, side = sum(layers) / sum(LAYERS), img_size / 1024
    assert depth * width ** 2 * side ** 2 == pytest.approx(factor, rel=0.05)
    assert depth * width * side ** 2 == pytest.approx(factor ** activations, rel=0.05)


def test_each_dimension_has_its_share():
    assert scaled((8, 8, 8, 8), 1, 128, 16, 0) == ((32,) * 4, 1, 256)
    assert scaled((8, 8, 8, 8), 1, 128, 16, 1) == ((8,) * 4, 4, 128)
    assert scaled((8, 8, 8, 8), 0.5, 128, 8, 1 / 3) == ((16,) * 4, round(0.5 * 2 ** 0.5, 3), 184)


@pytest.mark.parametrize('start', [((3, 4, 6, 3), 1.0, 224), ((1, 1, 1, 1), 0.406, 28), ((2, 2), 0.25, 33)])
def test_a_factor_of_one_changes_nothing(start):
    for alpha in (0, 1 / 3, 0.8, 1):
        assert scaled(*start, 1, alpha) == start


def test_no_stage_and_no_image_vanishes():
    assert scaled((1, 1, 2, 1), 1, 8, 1e-3, 0)[0] == (1, 1, 1, 1)
    assert scaled((1, 1, 2, 1), 1, 8, 1e-6, 0)[2] == 8


@pytest.mark.parametrize(('arguments', 'words'), [
    (((), 1, 224, 2, 0), 'layers'), (((1, 0), 1, 224, 2, 0), 'layers'), (((1,), 0, 224, 2, 0), 'width 0'),
    (((1,), 1, 0, 2, 0), 'img_size 0'), (((1,), 1, 224, 0, 0), 'a factor of 0'),
    (((1,), 1, 224, float('nan'), 0), 'a factor of nan'), (((1,), 1, 224, float('inf'), 0), 'a factor of inf'),
    (((1,), 1, 224, 2, 1.1), 'alpha 1.1')])
def test_what_cannot_be_scaled_is_named(arguments, words):
    with pytest.raises(UserError, match=words):
        scaled(*arguments)
