"""Signals that ask a run to stop: heard at once, obeyed when everything has been saved."""

import os
import signal
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

    A context manager; it restores the previous handlers at its end.
    """

    def __init__(self, minutes: float, updates: int):
        """Save every so many minutes and updates; 0 for neither."""
        self.minutes, self.updates = minutes, updates
        self.signal, self.heard_at = 0, 0.0
        self.echo = 1.0 if 'TORCHELASTIC_RUN_ID' in os.environ else 0.0
        self.saved_at = time.monotonic()

    def __enter__(self) -> 'Interruption':
        self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self.heard_at = number, time.monotonic()
        elif time.monotonic() - self.heard_at >= self.echo:
            os._exit(128 + number)

    def wanted(self, update: int | None = None) -> int:
        """0 for nothing, 1 for saving (only after an `update`), more for saving and stopping: the signal's number + 1.

        All processes do what the greatest of their answers says.
        """
        if self.signal:
            return self.signal + 1
        return 0 if update is None else int(bool(self.minutes) and time.monotonic() - self.saved_at >= 60 * self.minutes
                   or bool(self.updates) and update % self.updates == 0)

    def saved(self) -> None:
        self.saved_at = time.monotonic()
