import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess

import pytest
from forks import ForkedPython

from timm_rs.training.lock import FolderBusy, FolderLock

HOLD = '''
import os, sys, time
from pathlib import Path
from timm_rs.training.lock import FolderLock
lock = FolderLock()
lock.take(Path(sys.argv[1]))
child = os.fork()  # as a data worker, with everything that is open
if child:
    print(child, flush=True)
time.sleep(100)
'''


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of `tmp_path`, and the id of its child, which lives on."""
    with ForkedPython([HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_the_second_hears_who_was_first(holder, tmp_path):
    before = (tmp_path / '.lock').read_text()
    with FolderLock() as lock, pytest.raises(FolderBusy) as error:
        lock.take(tmp_path)
    assert error.value.status == 3
    for part in (str(tmp_path), f'process {holder.pid} on {socket.gethostname()} since 20'):
        assert part in str(error.value)
    assert (tmp_path / '.lock').read_text() == before


def test_a_kill_frees_the_folder_although_children_live_on(holder, tmp_path):
    holder.kill()
    holder.wait()
    with FolderLock() as lock:
        lock.take(tmp_path)
        assert f'process {os.getpid()} ' in (tmp_path / '.lock').read_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('failure', [OSError(errno.ENOLCK, 'No locks available'), ImportError()])
def test_where_there_are_no_locks_it_is_said_once(tmp_path, monkeypatch, capsys, failure):
    def lockf(*_):
        raise failure
    monkeypatch.setattr(fcntl, 'lockf', lockf)
    with FolderLock() as lock:
        lock.take(tmp_path)
    out = capsys.readouterr().out
    assert f'{tmp_path} cannot be locked' in out and out.count('\n') == 1


def test_a_file_that_its_run_has_just_removed_is_not_the_lock(tmp_path, monkeypatch):
    genuine, runs = fcntl.lockf, [FolderLock(), FolderLock()]

    def lockf(*arguments):
        if runs[0].file is not None and runs[1].file is not None:
            runs[0].__exit__()  # between opening and locking
        genuine(*arguments)
    monkeypatch.setattr(fcntl, 'lockf', lockf)
    for run in runs:
        run.take(tmp_path)
    assert f'process {os.getpid()} ' in (tmp_path / '.lock').read_text()
    runs[1].__exit__()
    assert not list(tmp_path.iterdir())
