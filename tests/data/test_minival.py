import hashlib
import tarfile
from collections import Counter

import numpy as np
import pytest
from conftest import failure, load_tool, write_images
from timm.data import create_dataset

from timm_rs.data.minival import split_minival
from timm_rs.data.samples import Samples, as_samples
from timm_rs.errors import UserError


class Listed(Samples):
    """A dataset of names and labels, without images: minival has no business with those."""

    def __init__(self, names, targets):
        self.names, self.labels, self.classes = names, targets, {}

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def targets(self):
        return self.labels


def listed(sizes, name='train/n{label:08}/n{label:08}_{number}.JPEG'):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    numbers = [number for size in sizes for number in range(size)]
    return Listed([name.format(label=a, number=b) for a, b in zip(labels, numbers, strict=True)], labels)


def names(subset):
    return {subset.name(index) for index in range(len(subset))}


def digest(subset):
    return hashlib.sha256('\n'.join(sorted(names(subset))).encode()).hexdigest()[:16]


@pytest.mark.slow
def test_imagenets_minival_has_25022_images_from_all_classes_and_never_changes():
    sizes = [1300] * 895 + [1124] * 104 + [771]  # as many classes and images as ImageNet-1k, most classes of 1,300
    minival, rest = split_minival(listed(sizes))
    assert len(minival) == 25_022 and len(rest) == 1_281_167 - 25_022
    counts = Counter(minival.targets())
    assert all(abs(counts[label] - size * 25_022 / 1_281_167) < 1 for label, size in enumerate(sizes))
    assert digest(minival) == 'e7a60ccc8d5414ca'


def test_small_minival_never_changes():
    assert digest(split_minival(listed([700, 600, 90, 10]))[0]) == '1e63435915c52888'


def test_both_parts_are_disjoint_complete_and_in_the_datasets_order():
    samples = listed([300, 200, 100])
    minival, rest = split_minival(samples)
    assert len(minival) == 12 and Counter(minival.targets()) == {0: 6, 1: 4, 2: 2}
    assert sorted([*minival.indices, *rest.indices]) == list(range(600))
    assert all((np.diff(part.indices) > 0).all() for part in (minival, rest))


def test_each_class_gives_the_images_with_the_smallest_hashes():
    samples = listed([300, 200, 100])
    minival, _ = split_minival(samples, seed=7)
    for label, count in Counter(minival.targets()).items():
        stems = [f'n{label:08}_{number}' for number in range([300, 200, 100][label])]
        first = sorted(stems, key=lambda stem: hashlib.sha256(f'7/{stem}'.encode()).hexdigest())[:count]
        assert {f'train/n{label:08}/{stem}.JPEG' for stem in first} <= names(minival)


def test_another_seed_draws_other_images():
    samples = listed([500, 500])
    assert names(split_minival(samples)[0]) == names(split_minival(samples, seed=0)[0])
    assert not names(split_minival(samples)[0]) >= names(split_minival(samples, seed=1)[0])


@pytest.mark.parametrize('name', ['n{label}/{label}_{number}.JPEG', 'n{label}/part{number}/0.JPEG'],
                         ids=['stems of their own', 'one stem for all'])
def test_listing_order_and_numbering_of_classes_do_not_matter(name):
    samples = listed([130] * 7, name)  # 18 images for 7 equal classes: four classes get one more
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = Listed([samples.names[i] for i in order], [samples.labels[i] for i in order])
    assert names(split_minival(shuffled)[0]) == names(split_minival(samples)[0])
    if 'label}_' in name:
        renumbered = Listed(samples.names, [6 - label for label in samples.labels])
        assert names(split_minival(renumbered)[0]) == names(split_minival(samples)[0])


def test_names_with_the_class_appended_are_the_same_images():
    ours = split_minival(listed([200, 100]))[0]
    theirs = split_minival(listed([200, 100], 'n{label:08}_{number}_n{label:08}.JPEG'))[0]
    assert ours.indices.tolist() == theirs.indices.tolist()


def test_images_without_names_or_with_odd_ones_are_drawn_too():
    assert len(split_minival(Listed([f'image {i}' for i in range(100)], [0, 1] * 50))[0]) == 2
    assert len(split_minival(Listed([f'\udcff{i}.jpg' for i in range(100)], [0, 1] * 50))[0]) == 2


def test_too_few_images_are_one_message():
    assert len(split_minival(listed([13, 13]))[0]) == 1
    with pytest.raises(UserError, match='25 are too few'):
        split_minival(listed([13, 12]))


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """120 images of three classes as a folder D, D.tar; and the root of a cache."""
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    write_images(tmp_path / 'D/train', {'cat': 60, 'dog': 40, 'eel': 20}, size=4)
    with tarfile.open(tmp_path / 'D.tar', 'w') as archive:
        archive.add(tmp_path / 'D/train', arcname='.')
    return tmp_path


def test_folder_tar_hugging_face_and_torchvision_give_the_same_minival(stored):
    found = []
    for name, root in (('', 'D'), ('', 'D.tar'), (f'hfds/{stored}/D', 'cache'), ('torch/image_folder', 'D')):
        samples = as_samples(create_dataset(name, root=str(stored / root), split='train'))
        found.append(sorted('/'.join(name.split('/')[-2:]) for name in names(split_minival(samples)[0])))
    assert len(found[0]) == 2 and found[0] == found[1] == found[2] == found[3]


@pytest.fixture(scope='module')
def tool():
    return load_tool('minival')


def test_tool_writes_one_list_whatever_the_images_are_stored_in(tool, stored, capsys):
    lists = []
    for arguments in (['D'], ['D.tar'], ['cache', '--dataset', f'hfds/{stored}/D']):
        output = stored / 'minival.txt'
        tool.main([str(stored / arguments[0]), *arguments[1:], '--output', str(output)])
        assert capsys.readouterr().out == f'{output}: 2 images of 2 classes; 118 images remain for training\n'
        lists.append(output.read_text())
    assert lists[0] == lists[1] == lists[2]
    for name in lists[0].splitlines():
        assert (stored / 'D/train' / name).is_file()
    tool.main([str(stored / 'D'), '--seed', '3', '--output', str(output)])
    assert output.read_text() != lists[0]


def test_tool_says_in_one_line_what_is_wrong(tool, stored, capsys):
    assert 'does not exist' in failure(tool, capsys, stored / 'nothing')
    assert 'cannot be written' in failure(tool, capsys, stored / 'D', '--output', stored / 'no/where.txt')
