"""What a reader of many images holds, and that timm's code reads it."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from conftest import write_images
from timm.data import ImageDataset
from torch.utils.data import DataLoader

from timm_rs.data.listed_images import open_images
from timm_rs.data.samples import Relabelled, Subset, TimmSamples


@pytest.fixture(params=['folder', 'tar'])
def root(request, tmp_path):
    write_images(tmp_path / 'D', {'cat': 3, 'dog': 2})
    (tmp_path / 'D/dog/notes.txt').touch()
    if request.param == 'folder':
        return tmp_path / 'D'
    with tarfile.open(tmp_path / 'D.tar', 'w') as tar:
        tar.add(tmp_path / 'D', '.')
    return tmp_path / 'D.tar'


def test_timms_dataset_reads_it(root, tmp_path):
    reader = open_images(str(root))
    dataset = ImageDataset(str(root), reader=reader)
    prefix = f'{root}/' if root.is_dir() else ''
    names = [f'{prefix}{name}.png' for name in ('cat/0', 'cat/1', 'cat/2', 'dog/0', 'dog/1')]
    assert reader.samples == list(zip(names, [0, 0, 0, 1, 1], strict=True))
    assert dataset.filenames(basename=True) == ['0.png', '1.png', '2.png', '0.png', '1.png']
    assert dataset.filenames() == [name.removeprefix(prefix) for name in names]
    assert dataset.filenames(absolute=True) == names
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert [(image.size, target) for image, target in loader] == [((20, 20), target) for target in (0, 0, 0, 1, 1)]
    for index, (name, target) in enumerate(reader.samples):
        file, found = reader[index]
        with file:
            assert file.read() == (tmp_path / 'D' / name.removeprefix(prefix)).read_bytes()
        assert found == target and type(found) is int


class Counting(pickle._Pickler):  # the one in Python, whose memo has a row for each object
    """How many objects a value is made of."""


@pytest.mark.parametrize('is_folder', [True, False])
def test_a_worker_gets_arrays_however_many_images_there_are(tmp_path, is_folder):
    counts, sizes = [], []
    for number in (10, 400):
        root = tmp_path / str(number)
        for index in range(number):
            folder = root / f'class {index % 2}'
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f'{index}.jpg').touch()
            (folder / f'{index}.txt').touch()
        if not is_folder:
            with tarfile.open(root.with_suffix('.tar'), 'w') as tar:
                tar.add(root, '.')
            root = root.with_suffix('.tar')
        samples = TimmSamples(ImageDataset(str(root), reader=open_images(str(root))))
        assert len(samples.left_out) == number
        pickler = Counting(io.BytesIO())
        pickler.dump(samples)
        counts.append(len(pickler.memo))
        sizes.append(len(pickle.dumps(samples)))
        again = pickle.loads(pickle.dumps(samples))
        assert [(again.name(i), *again.read(i)) for i in range(number)] == [
            (samples.name(i), *samples.read(i)) for i in range(number)] and again.targets() == samples.targets()
        assert isinstance(again.reader.targets, np.ndarray)
        for data in (samples, Relabelled(samples, samples.classes), Subset(samples, [1, 0])):
            assert list(data.all_names()) == [data.name(index) for index in range(len(data))]
    assert counts[0] == counts[1] < 300
    assert (sizes[1] - sizes[0]) / 390 < 150  # bytes for an image and a text
