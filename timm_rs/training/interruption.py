"""Signals that ask a run to stop: heard at once, obeyed when everything has been saved."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from timm_rs.data.workers import SIGNALS


class Stopped(SystemExit):
    """The run has saved itself and ends because of a signal, with the status 128 + its number, as shells have it."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


class Interruption:
    """Whether it is time to save, or to stop. A second signal ends the process at once.

    Under torchrun the first may come twice, to the whole group of processes and again from torchrun, which passes on
    its own: what follows within a second counts as one there.

    A run that hangs cannot save itself: when it has not obeyed `timeout` seconds after the signal, the process says so,
    with what is `lost`, and ends. Saving may take longer.

    A context manager; it restores the previous handlers at its end.
    """

    def __init__(self, minutes: float, updates: int, timeout: float, lost: str = ''):
        """Save every so many minutes and updates; 0 for neither."""
        self.minutes, self.updates, self.timeout, self.lost = minutes, updates, timeout, lost
        self.is_saving, self.obeyed = False, threading.Event()
        self.signal, self.heard_at = 0, 0.0
        self.echo = 1.0 if 'TORCHELASTIC_RUN_ID' in os.environ else 0.0
        self.saved_at = time.monotonic()

    def __enter__(self) -> 'Interruption':
        self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        # A handler waits for the main thread, which may hang in C; the bytes come at once.
        self.ear, self.mouth = socket.socketpair()
        self.mouth.setblocking(False)
        self.wakeup_before = signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup_before)
        self.obeyed.set()
        self.mouth.shutdown(socket.SHUT_RDWR)  # closing is not enough: data workers have it open, too
        self.mouth.close()
        self.watch.join()
        self.ear.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self.heard_at = number, time.monotonic()
        elif time.monotonic() - self.heard_at >= self.echo:
            os._exit(128 + number)

    def _watch(self) -> None:
        while (byte := self.ear.recv(1)) and byte[0] not in SIGNALS:  # others may have handlers, too
            pass
        while byte and not self.obeyed.wait(self.timeout):
            if not self.is_saving:
                name = signal.Signals(byte[0]).name
                os.write(2, f'error: {name} came {self.timeout:g} s ago, and the run hangs (in a data worker, a '
                            f'decoder, another process or the device): ended without saving{self.lost}\n'.encode())
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(128 + byte[0])

    def wanted(self, update: int | None = None) -> int:
        """0 for nothing, 1 for saving (only after an `update`), more for saving and stopping: the signal's number + 1.

        All processes do what the greatest of their answers says.
        """
        if self.signal:
            return self.signal + 1
        return 0 if update is None else int(bool(self.minutes) and time.monotonic() - self.saved_at >= 60 * self.minutes
                   or bool(self.updates) and update % self.updates == 0)

    def saving(self) -> None:
        self.is_saving = True

    def saved(self) -> None:
        self.saved_at, self.is_saving = time.monotonic(), False
