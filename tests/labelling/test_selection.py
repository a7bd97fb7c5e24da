import csv
import json

import numpy as np
import pytest

from timm_rs.data.pseudo_labels import MANIFEST, array_path
from timm_rs.errors import UserError
from timm_rs.labelling.selection import choose, select, warnings_of
from timm_rs.labelling.units import Unit, Units


def chosen(confidences, min_confidence, per_class, seed=0):
    choice = choose(np.array(confidences, np.float16), min_confidence, per_class, np.random.default_rng(seed))
    return choice, choice.entries.tolist()


def test_exactly_the_surest_are_chosen_and_equal_ones_are_drawn():
    assert chosen([0.5, 0.875, 0.25, 0.75], 0.3, 2)[1] == [1, 3]
    assert chosen([0.5, 0.875, 0.25, 0.75], 0.3, None)[1] == [0, 1, 3]
    draws = {tuple(chosen([0.5, 0.875, 0.5, 0.5], 0.3, 2, seed)[1]) for seed in range(30)}
    assert draws == {(0, 1), (1, 2), (1, 3)}
    assert chosen([0.5, 0.875, 0.5, 0.5], 0.3, 2, 7)[1] == chosen([0.5, 0.875, 0.5, 0.5], 0.3, 2, 7)[1]


def test_too_few_are_copied_alike_with_the_rest_drawn():
    choice, entries = chosen([0.5, 0.75, 0.125, 1.0], 0.3, 8)
    assert (choice.sure, choice.kept, choice.threshold) == (3, 3, 0.5)
    assert len(entries) == 8 and sorted(map(entries.count, (0, 1, 3))) == [2, 3, 3] and 2 not in entries
    assert choice.mean_confidence == pytest.approx(np.mean([{0: 0.5, 1: 0.75, 3: 1.0}[entry] for entry in entries]))
    remainders = {tuple(map(chosen([0.5, 0.75, 0.125, 1.0], 0.3, 8, seed)[1].count, (0, 1, 3))) for seed in range(30)}
    assert remainders == {(2, 3, 3), (3, 2, 3), (3, 3, 2)}


def test_a_class_without_sure_images_stays_empty():
    choice, entries = chosen([0.1, 0.2], 0.3, 5)
    assert entries == [] and (choice.sure, choice.kept) == (0, 0) and np.isnan(choice.threshold)


@pytest.fixture
def labels(tmp_path):
    """Eight images in three classes, of which image 2 is bad and image 5 a leak; nobody is of class eel."""
    (tmp_path / MANIFEST).write_text(json.dumps(dict(
        pool='pool', data_dir=None, split='train', num_images=8, pool_sha256='0', num_classes=3,
        classes=['cat', 'dog', 'eel'], top_k=2)))
    units = Units(tmp_path, dict(num_images=8, top_k=2))
    units.folder.mkdir()
    ids = np.array([[0, 1], [1, 0], [0, 0], [0, 2], [1, 2], [1, 0], [0, 1], [1, 0]], np.uint16)
    shares = np.array([[.75, .25], [.5, .25], [0, 0], [.25, .125], [.875, .125], [1, 0], [.5, .25], [.625, .25]])
    units.write(0, Unit(ids, shares.astype(np.float16), np.array([2], np.int32), np.array(['no']),
                        np.array([5], np.int32), np.array(['val/x.png']), np.array(['same bytes']),
                        np.zeros(1, np.float32)))
    return tmp_path


def entries_of(folder):
    return np.load(array_path(folder, 'entries')).tolist()


def test_the_table_and_the_arrays_are_as_counted_by_hand(labels):
    rows = select(labels, min_confidence=0.3, per_class=3)
    assert [list(row.values()) for row in rows[:2]] == [
        [0, 'cat', 2, 2, 0.5, 1, rows[0]['mean_confidence']], [1, 'dog', 3, 3, 0.5, 0, pytest.approx(2 / 3)]]
    entries = entries_of(labels)
    assert sorted(set(entries)) == [0, 1, 4, 6, 7] and len(entries) == 6 and entries == sorted(entries)
    assert np.load(array_path(labels, 'ids'))[-1].tolist() == [1, 0]
    assert np.load(array_path(labels, 'probabilities'))[-1].tolist() == [0.625, 0.25]
    with open(labels / 'selection.csv', newline='') as file:
        assert [row['name'] for row in csv.DictReader(file)] == ['cat', 'dog', 'eel']
    assert (labels / 'selection.png').stat().st_size > 1000
    assert warnings_of(rows) == [
        '1 of 3 classes have no image: eel', '2 of 3 classes have fewer than 10 images: cat, dog']


def test_leaks_are_left_out_unless_told_otherwise(labels):
    select(labels, min_confidence=0)
    assert entries_of(labels) == [0, 1, 3, 4, 6, 7]
    select(labels, min_confidence=0, keep_leaks=True)
    assert entries_of(labels) == [0, 1, 3, 4, 5, 6, 7]


def test_a_damaged_unit_is_named(labels):
    path = labels / 'units/000000.npz'
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r'units/000000.npz is missing or damaged: run the same'):
        select(labels)
