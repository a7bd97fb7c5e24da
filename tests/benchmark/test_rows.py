import re
import subprocess

from timm_rs.benchmark.rows import Cost, commit_of, ratios, spread, take_turns


def test_candidates_take_turns_and_warm_up():
    calls = []
    costs = take_turns({'a': lambda: calls.append('a') or 2, 'b': lambda: calls.append('b') or 1}, rounds=3)
    assert calls == ['a', 'b'] * 4
    assert {name: len(own) for name, own in costs.items()} == {'a': 3, 'b': 3}


def test_ratios_are_taken_within_rounds():
    slow, fast = [Cost(4, 8), Cost(9, 9)], [Cost(2, 2), Cost(3, 1)]
    assert ratios(slow, fast, 'cpu') == [2, 3] and ratios(slow, fast, 'wall') == [4, 9]
    assert spread([3.0, 1.0, 2.00004]) == dict(median=2.0, min=1.0, max=3.0)


def test_rows_that_are_added_do_not_make_the_code_dirty(tmp_path):
    def git(*arguments):
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments], cwd=tmp_path, check=True)
    assert commit_of(tmp_path) == 'unknown'
    (tmp_path / 'results').mkdir()
    for name in ('train.py', 'results/rows.csv'):
        (tmp_path / name).write_text('1\n')
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'a')
    (tmp_path / 'results/rows.csv').write_text('1\n2\n')
    assert re.fullmatch('[0-9a-f]+', commit_of(tmp_path))
    (tmp_path / 'train.py').write_text('2\n')
    assert commit_of(tmp_path).endswith('-dirty')
