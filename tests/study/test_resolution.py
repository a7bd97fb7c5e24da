"""What a larger image size brings; tests/study/test_power_law.py has the exponents of Table 7."""
import numpy as np
import pytest
from test_results import result

from timm_rs.study.resolution import gains, pareto, size_exponent
from timm_rs.study.results import points_of


def test_gains_are_per_doubling_of_pixels_and_per_model():
    sizes = {32: 60, 64: 64, 128: 66}
    runs = [result(cost=depth * size, top1=top1 + depth, seed=seed, img_size=size, regime=f'img_size={size}',
                   params_m=depth, axes={'depth': str(depth)})
            for depth in (1, 2) for size, top1 in sizes.items() for seed in range(3)]
    found = gains(points_of(runs))
    assert [(gain.model, gain.sizes, gain.per_doubling) for gain in found] == [
        (f'depth={depth}', sizes, pytest.approx(gain))
        for depth in (1, 2) for sizes, gain in (((32, 64), 2), ((64, 128), 1))]
    binomial = (0.62 * 0.38 + 0.66 * 0.34) ** 0.5  # of 10,000 images, in points; seeds do not differ
    assert found[3 - 1].standard_error == pytest.approx(binomial / 2, rel=0.01)


@pytest.mark.parametrize('other', [
    result(cost=2), result('width', cost=1), result(cost=2, img_size=128, axes=result().axes)])
def test_other_models_and_the_same_size_again_gain_nothing(other):
    assert gains(points_of([result(), other])) == []


def test_the_exponent_is_that_of_the_pareto_points():
    costs = np.geomspace(1, 100, 5)
    errors, sizes = 50 - np.arange(5), 64 * costs ** 0.3
    found, error = size_exponent([*costs, 50], [*errors, 60], [*sizes, 9999])
    assert (found, error) == (pytest.approx(0.3), pytest.approx(0, abs=1e-6))
    assert pareto([*costs, 50], [*errors, 60]) == [0, 1, 2, 3, 4]
    assert pareto([1, 1, 1], [5, 5, 6]) == [0, 1]  # of two alike neither is better
    assert size_exponent([1, 2], [2, 1], [32, 64]) is None and size_exponent([1] * 3, [1] * 3, [32] * 3) is None
