import os
import socket
import subprocess

import pytest

from timm_rs import files
from timm_rs.errors import UserError
from timm_rs.files import append_rows, atomic_folder, atomic_link, atomic_write, read_csv, write_csv


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'file.txt'
    path.write_text('old')
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write('half of the new')
        raise KeyError
    assert path.read_text() == 'old'
    assert [entry.name for entry in tmp_path.iterdir()] == ['file.txt']


def test_systems_that_cannot_sync_folders_write_all_the_same(tmp_path, monkeypatch):
    opened = os.open

    def open_(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError  # as Windows does
        return opened(path, *arguments, **options)
    monkeypatch.setattr(files.os, 'open', open_)
    with atomic_write(tmp_path / 'file.txt') as file:
        file.write('new')
    assert (tmp_path / 'file.txt').read_text() == 'new'


def test_the_new_content_appears_only_when_it_is_complete_and_synced(tmp_path, monkeypatch):
    path, synced = tmp_path / 'file.txt', []
    monkeypatch.setattr(files.os, 'fsync', synced.append)
    with atomic_write(path) as file:
        file.write('new')
        file.flush()
        assert not path.exists()
    assert path.read_text() == 'new'
    assert len(synced) == 2  # the file before the rename, the folder after it


@pytest.mark.parametrize('hard_links', [True, False])
def test_link_replaces_the_target_and_survives_a_new_source(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        def refuse(*_):
            raise OSError('no hard links here')
        monkeypatch.setattr(files.os, 'link', refuse)
    source, target = tmp_path / 'last', tmp_path / 'best'
    target.write_text('older')
    source.write_text('first')
    for _ in range(2):  # the second time both may already be one file
        atomic_link(source, target)
        assert target.read_text() == 'first'
    with atomic_write(source) as file:
        file.write('second')
    assert target.read_text() == 'first'
    assert sorted(os.listdir(tmp_path)) == ['best', 'last']


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), atomic_folder(tmp_path / 'new') as folder:
        (folder / 'half').touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / 'new') as folder:
        (folder / 'file').write_text('whole')
        assert not (tmp_path / 'new').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['new']
    assert (tmp_path / 'new' / 'file').read_text() == 'whole'


@pytest.mark.parametrize('write', [atomic_write, atomic_folder])
def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path, write):
    process = subprocess.Popen(['true'])
    process.wait()
    ended, running, elsewhere = (f'.new.{host}.{pid}.tmp' for host, pid in (
        (socket.gethostname(), process.pid), (socket.gethostname(), os.getppid()), ('other', process.pid)))
    for name in (ended, running, elsewhere):
        if write is atomic_folder:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
    with write(tmp_path / 'new'):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(['new', running, elsewhere])


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path):
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'file').write_text('mine')
    with pytest.raises(OSError), atomic_folder(tmp_path / 'old') as folder:
        (folder / 'file').write_text('new')
    assert [path.name for path in tmp_path.iterdir()] == ['old']
    assert (tmp_path / 'old' / 'file').read_text() == 'mine'


def test_rows_join_those_of_before(tmp_path):
    path = tmp_path / 'rows.csv'
    append_rows(path, [dict(a=1)])
    append_rows(path, [dict(a=2, b='x, y')])
    assert path.read_text() == 'a,b\n1,\n2,"x, y"\n'
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='rows.csv cannot be written'):
        append_rows(tmp_path / 'file/rows.csv', [dict(a=1)])


def test_a_csv_has_the_asked_for_columns_first_and_names_that_are_not_utf8(tmp_path):
    path = tmp_path / 'rows.csv'
    write_csv(path, [dict(b=1, name='\udcff, a'), dict(c=None)], ['name'])
    assert path.read_bytes() == b'name,b,c\n"\xff, a",1,\n,,\n'
    write_csv(path, [], ['name'], lineterminator='\r\n')
    assert path.read_bytes() == b'name\r\n' and read_csv(path) == []


def test_rows_beyond_the_columns_are_one_line(tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_text('a,b\n1,2\n1,2,3\n')
    for call in (lambda: append_rows(path, [dict(a=3)]), lambda: files.read_rows(path)):
        with pytest.raises(UserError, match='more fields than the first'):
            call()
    assert path.read_text() == 'a,b\n1,2\n1,2,3\n'
    path.write_text('a,b\n1\n')
    append_rows(path, [dict(a=3)])
    assert read_csv(path) == [dict(a='1', b=''), dict(a='3', b='')]
