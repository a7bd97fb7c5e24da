"""A run's folder belongs to one run at a time."""

import contextlib
import datetime
import errno
import os
import socket
from pathlib import Path
from typing import IO

from timm_rs.errors import UserError

LOCK = '.lock'


class FolderBusy(UserError):
    """Another run trains in the folder."""

    status = 3


class FolderLock:
    """Whether this process is the one that writes to a folder; a context manager, which gives the folder back.

    The kernel keeps the lock, so that it ends with the process, however that ends. It is of POSIX's kind, which
    belongs to the process: data workers, who inherit the open file, do not hold it.
    """

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None

    def take(self, folder: Path) -> None:
        """Make `folder` ours; says so, and goes on without, where there are no locks.

        Raises FolderBusy, which names who has it, and OSError where a file cannot be made in `folder`.
        """
        self.path = folder / LOCK
        while self.file is None:
            self.file = open(self.path, 'a+b', buffering=0)  # noqa: SIM115  (until the run ends)
            try:
                import fcntl  # which Windows does not have
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (ImportError, OSError) as error:
                if getattr(error, 'errno', None) in (errno.EACCES, errno.EAGAIN):
                    raise self._busy() from None
                reason = getattr(error, 'strerror', None) or 'this system does not'
                print(f'{folder} cannot be locked ({reason}): see to it that no second run uses it', flush=True)
            if not self._is_there():  # the run before has just removed it at its end
                self._close()
        now = datetime.datetime.now().astimezone()
        holder = f'process {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%d %H:%M:%S%z}\n'
        with contextlib.suppress(OSError):  # a full disk, say; the lock is ours without a name, too
            self.file.truncate(0)
            self.file.write(holder.encode(errors='replace'))

    def __enter__(self) -> 'FolderLock':
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):
                if self._is_there():  # somebody may have removed the folder, and another run made it anew
                    self.path.unlink()  # while it is ours still
            self._close()

    def _busy(self) -> FolderBusy:
        assert self.file is not None
        self.file.seek(0)
        holder = self.file.read(1000).decode(errors='replace').strip() or 'another process'
        self._close()
        return FolderBusy(f'{self.path.parent} is in use: {holder} trains there; wait for its end, stop it, or choose '
                          'another --experiment')

    def _is_there(self) -> bool:
        assert self.file is not None
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        assert self.file is not None
        self.file.close()
        self.file = None
