import shutil
import tarfile

import numpy as np
import pytest
from conftest import write_images, write_pseudo

from timm_rs.data.pool import open_pool, pool_names
from timm_rs.data.pseudo_labels import MANIFEST, SELECTION, array_path, open_mixture, write_selection
from timm_rs.data.samples import TimmSamples
from timm_rs.data.shards.packing import pack
from timm_rs.errors import UserError


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    """Twelve images at the top of a folder and below it."""
    root = tmp_path_factory.mktemp('pool')
    write_images(root, {'.': 4, 'a': 3, 'b/c': 5}, seed=7)
    return root


class Labelled(TimmSamples):
    def __init__(self):
        self.classes = {'cat': 0, 'dog': 1, 'eel': 2}

    def __len__(self):
        return 4

    def name(self, index):
        return f'labelled/{index}.png'


def opened(folder, classes=('cat', 'dog', 'eel'), pool='', num_classes=3):
    return open_mixture(Labelled(), {name: index for index, name in enumerate(classes)}, num_classes, folder, pool, 3)


def test_a_pool_is_all_images_however_they_are_stored(pool, tmp_path):
    names = [*(f'{n}.png' for n in range(4)), *(f'a/{n}.png' for n in range(3)), *(f'b/c/{n}.png' for n in range(5))]
    samples = open_pool(str(pool))
    assert pool_names(samples, str(pool)) == names
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        tar.add(pool, '.')
    assert pool_names(open_pool(str(tmp_path / 'x.tar')), str(tmp_path / 'x.tar')) == names
    shards = tmp_path / 'shards'  # without labels
    shards.mkdir()
    for number in (0, 1):
        with tarfile.open(shards / f'{number}.tar', 'w') as tar:
            for name in names[number::2]:
                tar.add(pool / name, name)
    of_shards = open_pool(str(shards))
    assert [of_shards.name(index) for index in range(12)] == [f'{n}.tar/{name}' for n in (0, 1) for name in names[n::2]]
    assert of_shards.read(1)[0] == (pool / names[2]).read_bytes()
    write_images(tmp_path / 'D/train', {'cat': 3, 'dog': 2})
    pack(open_pool(str(tmp_path / 'D/train')), tmp_path / 'packed', 'train', short_side=0, num_shards=1)
    assert len(open_pool(str(tmp_path / 'packed'))) == 5


def test_the_mixture_has_the_selected_images_with_their_labels(pool, tmp_path):
    mixture = opened(write_pseudo(tmp_path / 'P', pool))
    assert (len(mixture), mixture.epoch_length, mixture.top_k) == (4 + 13, 16, 2)
    source, label = mixture.read(4 + 12)
    assert source == (pool / 'b/c/4.png').read_bytes() and mixture.name(16) == str(pool / 'b/c/4.png')
    assert label.ids.tolist() == [11 % 3, 12 % 3] and label.probabilities.tolist() == [0.75, 0.125]


def test_a_teacher_with_another_order_of_classes_is_mapped_by_name(pool, tmp_path):
    folder = write_pseudo(tmp_path / 'P', pool, classes=('eel', 'cat', 'dog'))
    assert opened(folder).read(4)[1].ids.tolist() == [2, 0]


def test_a_pool_may_have_moved_but_not_changed(pool, tmp_path):
    folder = write_pseudo(tmp_path / 'P', pool)
    shutil.copytree(pool, tmp_path / 'moved')
    assert opened(folder, pool=str(tmp_path / 'moved')).fingerprint == opened(folder).fingerprint
    (tmp_path / 'moved/0.png').write_bytes(b'other')
    with pytest.raises(UserError, match='is not the pool that .* --pseudo-pool'):
        opened(folder, pool=str(tmp_path / 'moved'))
    with pytest.raises(UserError, match='no_such does not exist'):
        opened(folder, pool=str(tmp_path / 'no_such'))


def damage_array(folder):
    array_path(folder, 'ids').write_bytes(array_path(folder, 'ids').read_bytes()[:-1])


def select_nothing(folder):
    write_selection(folder, dict(entries=np.zeros(0, np.int64), ids=np.zeros((0, 2), np.uint16),
                                 probabilities=np.zeros((0, 2), np.float16)), {})


def select_beyond(folder):
    write_selection(folder, dict(entries=np.array([99]), ids=np.zeros((1, 2), np.uint16),
                                 probabilities=np.zeros((1, 2), np.float16)), {})


@pytest.mark.parametrize(('harm', 'message'), [
    (lambda folder: (folder / MANIFEST).unlink(), r'label a pool first, tools/pseudo_label.py label'),
    (lambda folder: (folder / MANIFEST).write_text('[' * 99_999), 'cannot be read'),
    (lambda folder: (folder / MANIFEST).write_text('{"num_images": "12"}'), 'is not a manifest'),
    (lambda folder: (folder / SELECTION).unlink(), r'nothing is selected in .* tools/pseudo_label.py select'),
    (damage_array, 'select again'),
    (select_nothing, 'no image is selected in .* --min-confidence'),
    (select_beyond, 'arrays do not fit'),
])
def test_labels_that_are_missing_or_damaged_are_refused(pool, tmp_path, harm, message):
    folder = write_pseudo(tmp_path / 'P', pool)
    harm(folder)
    with pytest.raises(UserError, match=message):
        opened(folder)


def test_a_teacher_of_other_classes_is_refused(pool, tmp_path):
    folder = write_pseudo(tmp_path / 'P', pool, classes=('cat', 'dog', 'yak'))
    with pytest.raises(UserError, match='classes that the data lacks: yak; the data has cat, dog, eel'):
        opened(folder)
    with pytest.raises(UserError, match='has 3 classes, the data has 4'):
        opened(folder, num_classes=4)
