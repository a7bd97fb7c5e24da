"""Error against cost as a power law."""
import numpy as np
import pytest

from timm_rs.files import read_rows
from timm_rs.study.paper import PAPER
from timm_rs.study.power_law import find_break, fit_curve, fit_line
from timm_rs.study.resolution import size_exponent

LAW = (14.8, 0.45, 13.9)  # near the paper's ResNet-RS


def table_7(family, *columns):
    rows = [row for row in read_rows(PAPER) if row['source'] == 'Table 7' and row['family'] == family]
    return [[float(row[column]) for row in rows] for column in ('top1', *columns)]


def drawn(noise, points=10, decades=2.0, law=LAW, seed=0):
    costs = np.geomspace(4, 4 * 10 ** decades, points)
    a, b, c = law
    return costs.tolist(), (a * costs ** -b + c + np.random.default_rng(seed).normal(0, noise, points)).tolist()


@pytest.mark.parametrize(('family', 'line', 'curve', 'errors', 'rms', 'without'), [
    ('EfficientNet', (21.3, 0.085, 0.031), (7.4, 0.51, 14.6), (0.2, 0.04, 0.2), 0.10, [14.9, 14.7, 14.2]),
    ('ResNet-RS', (23.7, 0.092, 0.019), (14.8, 0.45, 13.9), (0.6, 0.05, 0.4), 0.12, [13.7, 12.7, 11.9])])
def test_table_7_has_the_fits_that_were_found_elsewhere(family, line, curve, errors, rms, without):
    top1, flops = table_7(family, 'gflops')
    wrong = [100 - value for value in top1]
    found = fit_line(flops, wrong)
    assert (found.factor, found.exponent, found.residual) == (
        pytest.approx(line[0], abs=0.05), pytest.approx(line[1], abs=0.0005), pytest.approx(line[2], abs=0.0005))
    found, reason = fit_curve(flops, wrong)
    assert reason == ''
    assert (round(found.a, 1), round(found.b, 2), round(found.c, 1)) == pytest.approx(curve, abs=0.011)
    assert found.standard_errors == pytest.approx(errors, abs=0.051)
    assert found.rms == pytest.approx(rms, abs=0.005)
    assert found.c_without == pytest.approx(without, abs=0.06)


@pytest.mark.parametrize(('family', 'exponents'), [
    ('EfficientNet', (0.229, 0.251, 0.250)), ('ResNet-RS', (0.224, 0.206, 0.216))])
def test_table_7_has_the_exponents_of_image_size_that_were_found_elsewhere(family, exponents):
    top1, sizes, *costs = table_7(family, 'img_size', 'gflops', 'v100_fp32_s', 'tpuv3_bf16_s')
    found = [size_exponent(cost, [100 - value for value in top1], sizes)[0] for cost in costs]
    assert found == pytest.approx(exponents, abs=0.0005)


def test_a_known_law_comes_back_within_two_standard_errors():
    hits = []
    for seed in range(60):
        costs, errors = drawn(0.15, seed=seed)
        curve, _ = fit_curve(costs, errors, [0.15] * 10)
        found = zip((curve.a, curve.b, curve.c), LAW, curve.standard_errors, strict=True)
        hits.append([abs(value - true) <= 2 * error for value, true, error in found])
    assert np.mean(hits, axis=0).min() >= 0.88
    costs, errors = drawn(1e-4)
    assert fit_curve(costs, errors, [0.15] * 10)[0].c == pytest.approx(13.9, abs=0.01)


def test_points_with_little_noise_weigh_more():
    costs, errors = drawn(0)
    errors[-1] += 3
    trusting, doubting = (fit_curve(costs, errors, [0.1] * 9 + [last])[0] for last in (0.1, 100))
    assert doubting.c == pytest.approx(13.9, abs=0.01) and abs(trusting.c - 13.9) > 0.5
    assert fit_line(costs, errors, [0.1] * 9 + [100]).factor == pytest.approx(fit_line(costs[:9], errors[:9], [0.1] * 9)
                                                                              .factor, rel=1e-4)


@pytest.mark.parametrize(('points', 'decades', 'law', 'words'), [
    (4, 2, LAW, '4 different costs are too few, 5 are needed'),
    (8, 0.3, LAW, 'c is not determined by these points'),  # b may be 0
    (6, 2, (100, 0.7, 0), 'c is not determined by these points')])  # b is not, but half of the least error is little
def test_a_floor_that_the_points_leave_open_is_refused(points, decades, law, words):
    costs, errors = drawn(0.3, points, decades, law)
    curve, reason = fit_curve(costs, errors, [0.3 if law == LAW else 1] * points)
    assert curve is None and words in reason


def test_standard_errors_are_in_units_of_the_errors_that_were_told():
    costs, errors = drawn(0)
    small, large = (fit_curve(costs, errors, [sigma] * 10)[0].standard_errors for sigma in (0.1, 0.2))
    assert large == pytest.approx([2 * error for error in small], rel=1e-3)


def test_errors_without_any_trend_are_refused_without_a_warning():
    costs, _ = drawn(0)
    for errors in ([20.0] * 10, list(np.linspace(20, 25, 10)), [30.0] + [20.0] * 9):
        assert fit_curve(costs, errors, [0.3] * 10)[0] is None
    assert fit_line([2.0] * 4, [20, 21, 22, 23]) is None and fit_curve([2.0] * 6, [20.0] * 6)[0] is None
    assert find_break([2.0] * 6, [20.0] * 6, [0.1] * 6) is None


@pytest.mark.parametrize('at', [4, 6])
def test_the_break_is_found_where_it_is(at):
    costs = np.geomspace(1, 100, 9)
    errors = 40 * costs ** -0.2 * np.where(np.arange(9) < at, 1, 1.1)
    found = find_break(costs[::-1].tolist(), errors[::-1].tolist(), [0.2] * 9)
    assert (found.index, found.cost) == (8 - at, costs[at])
    assert found.predicted == pytest.approx(found.error / 1.1)
    better = 40 * costs ** -0.2 * np.where(np.arange(9) < at, 1, 0.9)
    assert find_break(costs.tolist(), better.tolist(), [0.2] * 9) is None  # a point that is better breaks nothing


def test_a_power_law_that_holds_seldom_breaks():
    breaks = 0
    for seed in range(200):
        costs, errors = drawn(0.3, 9, law=(30, 0.2, 0), seed=seed)
        breaks += find_break(costs, errors, [0.3] * 9) is not None
    assert breaks <= 200 * 0.05


def test_scatter_beyond_the_noise_that_was_told_breaks_seldom():
    breaks = sum(find_break(*drawn(0.6, 9, law=(30, 0.2, 0), seed=seed), [0.15] * 9) is not None for seed in range(100))
    assert breaks <= 30
