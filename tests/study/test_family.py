"""The best measured point for every budget."""
import pytest
from test_results import result

from timm_rs.errors import UserError
from timm_rs.study.family import choose_family, depth_of
from timm_rs.study.paper import published
from timm_rs.study.results import points_of


def table_7():
    """The ResNet-RS rows of Table 7 as results; the depth is the number in the name."""
    return points_of([
        result(row['model'], float(row['gflops']) / 2, float(row['top1']), img_size=int(row['img_size']), images=50_000,
               params_m=float(row['params_m']), axes={'depth': row['model'].rpartition('_')[2]})
        for row in published().values() if row['family'] == 'ResNet-RS'])


def point(cost, top1, depth, img_size=64):
    return result(cost=cost, top1=top1, img_size=img_size, axes={'depth': str(depth)})


def test_table_7_gives_back_the_papers_11_points():
    points = table_7()
    family = choose_family(points, [point.one.gmacs for point in points])
    assert [member for _, member in family.members] == sorted(points, key=lambda point: point.one.gmacs)
    assert len(family.members) == 11 and family.dominated == []


def test_the_best_within_each_budget_is_taken_and_the_dominated_are_named():
    good, worse, best = points = points_of([point(2, 70, 2), point(3, 69, 2), point(9, 80, 3)])
    family = choose_family(points, [4, 10, 2.5])
    assert family.members == [(2.5, good), (4, good), (10, best)]
    assert family.dominated == [(worse, good)]


@pytest.mark.parametrize('large', [point(8, 80, 2, 64), point(8, 80, 4, 32)])  # less deep; of smaller images
def test_a_small_point_that_forbids_good_large_ones_is_passed_over(large):
    greedy, patient, large, last = points = points_of([
        point(2, 70.1, 3, 64), point(1.9, 70, 2, 32), large, point(16, 81, 4, 64)])
    assert [member for _, member in choose_family(points, [2, 8, 16]).members] == [patient, large, last]
    assert choose_family(points, [2]).members == [(2, greedy)]


def test_any_cost_can_be_the_budget():
    fast, slow = points = points_of([result(step_ms=5.0, cost=4, axes={}), result(step_ms=9.0, top1=75, axes={})])
    assert choose_family(points, [6, 10], 'step_ms').members == [(6, fast), (10, slow)]
    assert choose_family(points, [4], 'gmacs').members == [(4, slow)]


@pytest.mark.parametrize(('axes', 'depth'), [
    ({'depth': '101'}, 101), ({'depth': '', 'layers': '(3, 4, 6, 3)'}, 16), ({'layers': '3 4 6 3'}, 16),
    ({'model': 'efficientnet_rs_b4'}, 0)])
def test_depth_is_that_of_the_axis_or_the_sum_of_layers(axes, depth):
    one, = points_of([result(axes=axes)])
    assert depth_of(one) == depth


@pytest.mark.parametrize(('points', 'budgets', 'words'), [
    ([], [1], 'finished runs and budgets'), ([point(2, 70, 1)], [], 'finished runs and budgets'),
    ([point(2, 70, 1)], [3, 1.5], 'no point fits in a budget of 1.5 gmacs: the cheapest takes 2')])
def test_what_gives_no_family_is_named(points, budgets, words):
    with pytest.raises(UserError, match=words):
        choose_family(points_of(points), budgets)
