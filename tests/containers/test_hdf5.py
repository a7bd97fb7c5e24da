"""HDF5 files that reach out of themselves or were made to fill memory."""

import h5py
import numpy as np
import pytest

from timm_rs.containers.archives import SLACK
from timm_rs.containers.hdf5 import open_hdf5
from timm_rs.errors import UserError


def external_storage(file, folder):
    file.create_dataset('a/x', (4,), 'u1', external=[(str(folder / 'secret'), 0, 4)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((4,), 'u1')
    layout[:] = h5py.VirtualSource(str(folder / 'other.h5'), 'x', (4,))
    file.create_group('a').create_virtual_dataset('x', layout)


def around(file, folder):
    group = file.create_group('a/b')
    group['c'] = file['a']


def claimed(**options):
    return lambda file, folder: file.create_dataset('a/x', dtype='f4', **options)


HOSTILE = {
    'external storage': external_storage,
    'a virtual dataset': virtual,
    'an external link': lambda file, folder: file.update(a=h5py.ExternalLink(str(folder / 'other.h5'), '/x')),
    'a soft link': lambda file, folder: file.create_group('a').update(x=h5py.SoftLink('/elsewhere')),
    'a group in itself': around,
    'text': lambda file, folder: file.create_dataset('a/x', data=['text']),
    'references': lambda file, folder: file.create_dataset('a/x', data=[file.ref], dtype=h5py.ref_dtype),
    'zeros, compressed': lambda file, folder: file.create_dataset(
        'a/x', data=np.zeros(SLACK + (SLACK >> 2), 'u1'), compression='gzip'),
    'a size without content': claimed(shape=(1 << 40,), chunks=(1 << 20,)),
    'a chunk larger than all': claimed(shape=(1,), maxshape=(None,), chunks=(SLACK // 2,)),
    "another library's compression": lambda file, folder: file.create_dataset(
        'a/x', data=np.zeros(9), compression='lzf'),
}


@pytest.mark.parametrize('top', ['', 'a'])
@pytest.mark.parametrize('kind', HOSTILE)
def test_a_file_is_all_in_itself_and_no_larger_than_it_looks(kind, top, tmp_path):
    (tmp_path / 'secret').write_bytes(b'mine')
    with h5py.File(tmp_path / 'other.h5', 'w') as other:
        other['x'] = np.zeros(4, 'u1')
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        HOSTILE[kind](file, tmp_path)
    with pytest.raises(UserError, match=r'a\.h5 is refused'), open_hdf5(tmp_path / 'a.h5', top):
        pass


def test_numbers_in_groups_are_read(tmp_path):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.create_dataset('top/layer/x', data=np.arange(1000), compression='gzip', shuffle=True, fletcher32=True)
    for top, name in (('top', 'layer/x'), ('', 'top/layer/x'), ('none', 'top/layer/x')):
        with open_hdf5(tmp_path / 'a.h5', top) as datasets:
            assert {key: data[()].tolist() for key, data in datasets.items()} == {name: list(range(1000))}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / 'a.h5').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(99))
    with pytest.raises(UserError, match=r'a\.h5: cannot be read'), open_hdf5(tmp_path / 'a.h5'):
        pass
