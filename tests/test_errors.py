import errno
import os

import pytest
from torch.utils.data import DataLoader, Dataset

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import atomic_write


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError('the thing is broken; mend it')


def stopped(capsys, code):
    """Exit status and stderr of a program that raises `code()`."""
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        code()
    return stop.value.code, capsys.readouterr().err


def test_an_error_of_a_data_worker_arrives_as_the_same_line(capsys):
    loader = DataLoader(Broken(), num_workers=1)
    assert stopped(capsys, lambda: list(loader)) == (2, 'error: the thing is broken; mend it\n')


def test_many_lines_become_one(capsys):
    def fail():
        raise UserError('first\n\tsecond ' + 'key ' * 1000)
    code, error = stopped(capsys, fail)
    assert code == 2 and error.startswith('error: first second key') and error.count('\n') == 1 and len(error) < 1010


def test_interrupt_is_130_and_silent(capsys):
    def interrupt():
        raise KeyboardInterrupt
    assert stopped(capsys, interrupt) == (130, '')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EIO])
def test_what_a_disk_refuses_is_a_line_that_names_the_file(capsys, tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, 'fsync', refuse)

    def write():
        with atomic_write(tmp_path / 'rows.csv') as file:
            file.write('a')
    code, error = stopped(capsys, write)
    assert code == 2 and error.count('\n') == 1 and f'{tmp_path / "rows.csv"} cannot be used: ' in error
    assert os.strerror(number) in error and not list(tmp_path.iterdir())


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        1 / 0  # noqa: B018
