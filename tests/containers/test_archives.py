"""zip, .npz and tar archives that were made to do harm, and those that were not."""

import gzip
import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from timm_rs.containers import archives
from timm_rs.containers.archives import is_tar, load_arrays, open_zip, unpack_tar
from timm_rs.errors import UserError

ZEROS = bytes(archives.SLACK // 4)


def write_zip(path, *members, **options):
    with zipfile.ZipFile(path, 'w', **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def encrypted(path):
    write_zip(path, ('a', 'b'))
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\1\2') + 8] |= 1
    path.write_bytes(content)


def linked(path):
    member = zipfile.ZipInfo('a')
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    write_zip(path, (member, '/etc/passwd'))


@pytest.mark.parametrize(('make', 'words'), [
    (lambda path: write_zip(path, ('a/x', '1'), ('a/X', '2')), 'a/X is there twice'),
    (lambda path: write_zip(path, ('a', '1' * 99), compression=zipfile.ZIP_DEFLATED), 'a is compressed'),
    (encrypted, 'a is encrypted'), (linked, 'a is a link')])
def test_a_zip_that_no_library_writes_is_refused(make, words, tmp_path):
    make(tmp_path / 'a.zip')
    with pytest.raises(UserError, match=f'a.zip is refused: its member {words}'), open_zip(tmp_path / 'a.zip'):
        pass


def test_a_small_archive_does_not_unpack_to_gigabytes(tmp_path):
    bomb = write_zip(tmp_path / 'a.npz', *((f'{number}.npy', ZEROS) for number in range(5)),
                     compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r'a\.npz is refused: it has .* bytes and would unpack to 83,886,080'):
        load_arrays(bomb)


def test_arrays_are_read_and_pickles_are_not(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / 'a.npz', x=np.arange(3))
        assert load_arrays(tmp_path / 'a.npz')['x'].tolist() == [0, 1, 2]
    np.savez(tmp_path / 'a.npz', x=np.array([{}]))
    with pytest.raises(UserError, match='Object arrays cannot be loaded'):
        load_arrays(tmp_path / 'a.npz')
    (tmp_path / 'a.npz').write_bytes(b'PK')
    with pytest.raises(UserError, match=r'a\.npz: cannot be read'):
        load_arrays(tmp_path / 'a.npz')


def test_an_array_that_claims_to_be_larger_than_the_file_is_an_error(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='<f8', fortran_order=False, shape=(1 << 50,)))
    write_zip(tmp_path / 'a.npz', ('x.npy', header.getvalue()))
    with pytest.raises(UserError, match=r'a\.npz: cannot be read'):
        load_arrays(tmp_path / 'a.npz')


# ---- tar --------------------------------------------------------------------------------------------------------

def write_tar(path, *members, mode='w:gz'):
    """Of (name, content), or TarInfo for what is no file."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                archive.addfile(header, io.BytesIO(member[1]))
    return path


def special(kind, name='x', target='/etc/passwd'):
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def chain(outside):
    """Folders of 247 letters and links through all of them: inside, for tarfile's own filter before Python 3.11.13."""
    members, here = [], ''
    for letter in 'abcdefghijklmnop':
        members += [special(tarfile.DIRTYPE, here + letter * 247),
                    special(tarfile.SYMTYPE, here + letter, letter * 247)]
        here += letter + '/'
    members.append(special(tarfile.SYMTYPE, here + 'l' * 254, '../' * 16))
    members.append(special(tarfile.SYMTYPE, 'escape', here + 'l' * 254 + '/../' + outside.name))
    return [*members, special(tarfile.LNKTYPE, 'hard', 'escape/victim'), ('hard', b'overwritten')]


@pytest.mark.parametrize('mode', ['w:gz', 'w'])
@pytest.mark.parametrize('members', [
    chain, lambda outside: [special(tarfile.SYMTYPE, target=str(outside)), ('x/victim', b'overwritten')],
    lambda outside: [special(tarfile.LNKTYPE, target=str(outside / 'victim')), ('x', b'overwritten')],
    lambda outside: [special(tarfile.FIFOTYPE)], lambda outside: [special(tarfile.CHRTYPE)],
    lambda outside: [(f'../{outside.name}/victim', b'overwritten')],
    lambda outside: [(str(outside / 'victim'), b'overwritten')],
    lambda outside: [('a', b''), ('a', b'')], lambda outside: [('n' * 300, b'')],
    lambda outside: [('C:\\a', b'')]])
def test_only_files_of_its_own_come_out_of_a_tar(members, mode, tmp_path):
    outside, folder = tmp_path / 'outside', tmp_path / 'inside'
    outside.mkdir()
    folder.mkdir()
    (outside / 'victim').write_text('mine')
    with pytest.raises(UserError, match=r'a\.tar: cannot be read: '):
        unpack_tar(write_tar(tmp_path / 'a.tar', *members(outside), mode=mode), folder)
    assert (outside / 'victim').read_text() == 'mine' and os.listdir(outside) == ['victim']
    assert all(path.is_file() or path.is_dir() for path in folder.rglob('*')) and not any(
        path.is_symlink() for path in folder.rglob('*'))


def long_name(path):
    """A header that says that the name of the next file has gigabytes, which tarfile reads at once."""
    header = special(tarfile.GNUTYPE_LONGNAME)
    header.size = 1 << 36
    with gzip.open(path, 'wb') as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(6):
            file.write(ZEROS)


@pytest.mark.parametrize('make', [
    lambda path: write_tar(path, *((str(number), ZEROS) for number in range(6))), long_name])
def test_a_small_tar_does_not_unpack_to_gigabytes(make, tmp_path):
    make(tmp_path / 'a.tar')
    with pytest.raises(UserError, match=r'a\.tar is refused: it has .* bytes and would unpack to'):
        unpack_tar(tmp_path / 'a.tar', tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.2 * archives.SLACK


@pytest.mark.parametrize('mode', ['w:gz', 'w'])
def test_a_tar_of_files_in_folders_comes_out_whole(mode, tmp_path):
    path = write_tar(tmp_path / 'a.tar', special(tarfile.DIRTYPE, 'a'), ('a/b/x', b'1'), ('y', b'22'), mode=mode)
    (tmp_path / 'out').mkdir()
    unpack_tar(path, tmp_path / 'out')
    assert {file.relative_to(tmp_path / 'out').as_posix(): file.read_bytes() for file in (tmp_path / 'out').rglob('*')
            if file.is_file()} == {'a/b/x': b'1', 'y': b'22'}
    assert is_tar(path) and not is_tar(tmp_path / 'out/y')
