"""What a scaling study says."""
import pytest
from test_results import result
from test_scaling_figure import study

from timm_rs.errors import UserError
from timm_rs.study.sentences import sentences, verdict_sentence
from timm_rs.study.verdict import Comparison


def test_a_study_says_all_there_is_per_regime():
    said = sentences(study(('epochs=10', 'epochs=20'), (32, 64)))
    text = '\n'.join(said)
    for training in ('epochs=10', 'epochs=20'):
        for size in (32, 64):
            regime = f'{training} img_size={size}'
            assert f'{regime}: 6 points, 18 runs; runs differ by 0.10 points from seed to seed' in said
            assert any(f'at equal GMACs ({regime})' in line for line in said)
        assert f'image size ({training}):' in said
    assert text.count('validation minus training loss') == text.count('no break within this range') == 4
    assert text.count('points per doubling of pixels') == 12 and text.count('over the Pareto points: to the power') == 6
    assert all(f'image size against {cost}' in text for cost in ('GMACs', 'activations', 'time per update'))
    assert said[-1].startswith('Every ± is 2 sigma')
    assert text.count('(F in GFLOPs)') == 4 and 'F^-0.200' in text
    assert text.count('depth=4 width=1 img_size=64: 1.000, 1.200, +0.200') == 2


def test_depth_beats_width_in_the_words_of_the_issue():
    runs = [result(name, 8, 70 + ahead + seed / 10, seed, 'epochs=350') for name, ahead in (('depth', 3), ('width', 0))
            for seed in range(3)]
    assert 'depth beats width by 3.0 ± 1.3 points at equal GMACs (epochs=350)' in sentences(runs)
    assert any(line.startswith('width beats depth by 3.0') for line in sentences(
        [result('width' if run.series == ('depth',) else 'depth', 8, run.eval_top1, run.seed) for run in runs]))
    with pytest.raises(UserError, match='has no step_ms'):
        sentences(runs, 'step_ms')


def test_every_cost_is_named_by_its_word():
    runs = study()
    for cost, words in (('activations_m', 'activations'), ('params_m', 'parameters'), ('step_ms', 'time per update')):
        assert any(f'at equal {words}' in line for line in sentences(runs, cost))


@pytest.mark.parametrize(('changes', 'words'), [
    (dict(), 'depth beats width by 1.9 ± 0.7 points here'),
    (dict(difference=-1.9), 'width beats depth by 1.9 ± 0.7 points here'),
    (dict(difference=0.64, margin=0.58), 'depth beats width by 0.64 ± 0.58 points here'),
    (dict(decided=False, margin=2.1, more_seeds=1), 'cannot tell (+1.9 ± 2.1 points): run 1 more seed'),
    (dict(decided=False, margin=None, more_seeds=2), 'cannot tell (+1.9 points, with a single seed): run 2 more seeds'),
    (dict(decided=False, margin=9, more_seeds=None), 'it would take more than 50 more seeds'),
    (dict(decided=False, margin=9, more_seeds=None, least_margin=2.0), 'the evaluation images alone leave ± 2.0')])
def test_verdicts_are_sentences(changes, words):
    comparison = Comparison(**dict(difference=1.9, margin=0.7, least_cost=1, most_cost=2, seeds=3, decided=True,
                                   more_seeds=0, least_margin=0.1) | changes)
    assert words in verdict_sentence('depth', 'width', 'here', comparison)


def test_one_seed_cannot_tell_and_says_how_many_more():
    said = '\n'.join(sentences(study(seeds=1)))
    assert 'one seed, so the noise is unknown' in said
    assert 'cannot tell (+0.0 points, with a single seed): run 2 more seeds' in said


@pytest.mark.parametrize(('runs', 'words'), [
    ([result()], 'no power law: fewer than three different costs'),
    ([result('a', 1), result('b', 100)], 'a against b at equal GMACs: cannot tell: their costs do not overlap'),
    ([result('a', 1), result('a', 9), result('b', 3)], 'cannot tell: their points are too far apart'),
    ([result(cost=cost, top1=60 + cost) for cost in (1, 2, 4)], 'too few points to look for a break: 4 are needed'),
    ([result(cost=2 ** step, top1=60 + step) for step in range(4)], '4 different costs are too few, 5 are needed'),
    ([result(cost=2 ** step, top1=60, img_size=32 + step) for step in range(6)], 'over the Pareto points: too few'),
    (study(broken=True), 'the power law breaks at 64 GFLOPs (depth=4 width=1 img_size=64): error 30.0 %, and 20.0 %')])
def test_what_cannot_be_said_is_said(runs, words):
    assert words in '\n'.join(sentences(runs))


def test_the_floor_comes_with_what_it_is_without_the_largest():
    runs = [result(cost=cost / 2, top1=100 - (14.8 * cost ** -0.45 + 13.9), seed=seed, images=1_000_000)
            for cost in (4, 8, 16, 32, 64, 128, 256, 512) for seed in range(2)]
    line, = (line for line in sentences(runs) if 'a F^-b + c' in line)
    assert 'a 14.8 ± ' in line and 'b 0.45 ± ' in line and 'c 13.9 ± ' in line
    assert line.endswith('c without the largest 1, 2, 3: 13.9, 13.9, 13.9')


@pytest.mark.parametrize(('recipes', 'called'), [
    (('a/first.yaml', 'a/second.yaml', 'b/third.yaml'), ('first', 'second', 'third')),
    (('a/one.yaml', 'b/one.yaml', 'b/two.yaml'), ('a/one.yaml', 'b/one.yaml', 'b/two.yaml'))])
def test_recipes_are_compared_with_the_one_before_whatever_they_cost(recipes, called):
    runs = [result('recipe', cost, top1 + seed / 10, seed, axes=dict(recipe=name))
            for name, cost, top1 in zip(recipes, (1, 3, 9), (70, 73, 73), strict=True) for seed in range(3)]
    said = sentences(runs)
    first, second, third = called
    assert f'  {second} beats {first} by 3.0 ± 1.3 points as recipes' in said and f'  {second}: 73.1 %' in said
    assert any(line.startswith(f'  {third} against {second} as recipes: cannot tell (+0.0') for line in said)
