"""Names and numbers in arrays are the lists they stand for."""

import pickle

import numpy as np
import pytest

from timm_rs.data.compact import Names, Pairs

SOME = ['a', '', 'b/été.png', '\udcff not UTF-8', '\ud800', 'a' * 300, '日本', ' ', '\n']


def in_pickle(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize('again', [lambda value: value, in_pickle], ids=['made', 'in another process'])
@pytest.mark.parametrize('names', [SOME, [], [''], ['', '']])
def test_names_are_their_list(names, again):
    ours = again(Names.of(names))
    assert list(ours) == names and [ours[index] for index in range(len(ours))] == names
    assert ours == names and ours != [*names, 'a'] and ours[1:] == names[1:] and ours[::-2] == names[::-2]
    assert list(ours.below('D/')) == [ours.below('D/')[index] for index in range(len(names))] == [
        f'D/{name}' for name in names]
    assert [ours[-1 - index] for index in range(len(names))] == names[::-1] and bool(ours) == bool(names)
    for index in (len(names), -1 - len(names)):
        with pytest.raises(IndexError):
            ours[index]


def test_pairs_are_plain_values():
    numbers = np.arange(len(SOME)) % 2
    for words, expected in ((), numbers.tolist()), (('x', 'y'), [('x', 'y')[number] for number in numbers]):
        pairs = in_pickle(Pairs(Names.of(SOME), numbers, words))
        assert pairs == list(zip(SOME, expected, strict=True)) and [pairs[i] for i in range(len(SOME))] == list(pairs)
        assert {type(value) for _, value in pairs} == {type(expected[0])}
    assert Pairs(Names.of([]), np.array([], np.int64)) == []
