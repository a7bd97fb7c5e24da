"""Classes with few and with many images."""

import numpy as np
import pytest

from timm_rs.data.balance import balanced_order, class_weights, describe_counts
from timm_rs.errors import UserError

COUNTS, NAMES = np.array([90, 9, 1]), ['cat', 'dog', 'eel']


@pytest.mark.parametrize(('counts', 'lines'), [
    ([90, 9, 1], ['100 training images of 3 classes: from 1 of eel to 90 of cat']),
    ([1000, 1000, 1000], ['3,000 training images of 3 classes: 1,000 of each']),
    ([4, 0, 0], ['4 training images of 3 classes: from 0 of dog to 4 of cat',
                 'warning: no training image is of class dog, eel: the model cannot learn it'])])
def test_counts_are_said_and_classes_without_images_warned_of(counts, lines):
    assert describe_counts(np.array(counts), NAMES, 'image') == lines


@pytest.mark.parametrize('counts', [[90, 9, 1], [5, 5, 5], [3, 0, 2], [7]])
def test_automatic_weights_are_inverse_to_counts_and_1_on_average(counts):
    counts = np.array(counts)
    weights = class_weights('auto', counts, NAMES[:len(counts)]).double().numpy()
    assert weights @ counts / counts.sum() == pytest.approx(1)
    each = (weights * counts)[counts > 0]
    assert each == pytest.approx(each[0])
    assert weights[counts == 0] == pytest.approx(each[0]) and np.isfinite(weights).all()


def test_weights_of_a_file_are_taken_as_they_are(tmp_path):
    path = tmp_path / 'weights.csv'
    path.write_text('\ufeffclass,weight,note\neel,2.5,rare\ncat,0,\ndog,1e0,\n')  # as spreadsheets begin a file
    assert class_weights(str(path), COUNTS, NAMES).tolist() == [0, 1, 2.5]


@pytest.mark.parametrize(('text', 'part'), [
    (None, 'cannot be read: No such file or directory; give auto, or a CSV with the columns class and weight'),
    ('', 'needs a first line "class,weight"'), ('class,weight\n', 'needs a first line "class,weight"'),
    ('cat,1\ndog,1\neel,1\n', 'needs a first line "class,weight"'),
    ('class,weight\ncat,1\ndog,1\n', 'has no weight for eel'),
    ('class,weight\ncat,1\ndog,1\neel,1\nemu,1\n', 'has a weight for emu, which the data does not have'),
    ('class,weight\ncat,1\ncat,1\n', 'has cat twice'),
    ('class,weight\ncat,many\n', "of cat must be a number, got 'many'"),
    ('class,weight\ncat,\n', "must be a number, got ''"),
    *((f'class,weight\ncat,{number}\n', f'must be finite and at least 0, got {number}')
      for number in ('-1', 'nan', 'inf')),
    ('class,weight\ncat,0\ndog,0\neel,0\n', 'weight 0 for every class'), ('class,weight\ncat,1,2\n', 'cannot be read'),
    (b'class,weight\nc\xffat,1\n', 'cannot be read')])
def test_a_file_that_is_none_is_one_line_that_names_it(tmp_path, text, part):
    path = tmp_path / 'weights.csv'
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        class_weights(str(path), COUNTS, NAMES)
    assert part in str(caught.value) and str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('counts', [[90, 9, 1], [40, 0, 61], [3, 3, 4], [5]])
def test_each_class_is_seen_equally_often_and_so_are_its_images(counts):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == len(labels)
    seen = np.bincount(order, minlength=len(labels))
    for own in (np.bincount(labels[order], minlength=len(counts))[np.array(counts) > 0],
                *(seen[labels == index] for index in range(len(counts)) if counts[index])):
        assert own.max() - own.min() <= 1
    assert (order == balanced_order(labels, np.random.default_rng(0))).all()
    assert len(labels) == 5 or (order != balanced_order(labels, np.random.default_rng(1))).any()
