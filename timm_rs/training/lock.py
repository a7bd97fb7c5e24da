"""A run's folder belongs to one run at a time."""

import contextlib
import datetime
import errno
import os
import socket
from pathlib import Path

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
        self.descriptor: int | None = None

    def take(self, folder: Path) -> None:
        """Make `folder` ours; says so, and goes on without, where there are no locks.

        Raises FolderBusy, which names who has it, and OSError where a file cannot be made in `folder`.
        """
        self.descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl  # which Windows does not have
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as error:
            if getattr(error, 'errno', None) not in (errno.EACCES, errno.EAGAIN):
                reason = getattr(error, 'strerror', None) or 'this system does not'
                print(f'{folder} cannot be locked ({reason}): see to it that no second run uses it', flush=True)
                return
            holder = os.read(self.descriptor, 1000).decode(errors='replace').strip()
            self._close()
            raise FolderBusy(f'{folder} is in use: {holder or "another process"} trains there; wait for its end, stop '
                             'it, or choose another --experiment') from None
        now = datetime.datetime.now().astimezone()
        holder = f'process {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%d %H:%M:%S%z}\n'
        with contextlib.suppress(OSError):  # a full disk, say; the lock is ours without a name, too
            os.ftruncate(self.descriptor, 0)
            os.write(self.descriptor, holder.encode(errors='replace'))

    def __enter__(self) -> 'FolderLock':
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, 0)
            self._close()  # the file stays: whoever has opened it by now must not lock one that is gone

    def _close(self) -> None:
        assert self.descriptor is not None
        os.close(self.descriptor)
        self.descriptor = None
