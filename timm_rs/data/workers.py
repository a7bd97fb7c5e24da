"""Processes that read data for another."""

import os
import signal
import threading
import time


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1  # Linux, others


def end_with(parent: int, worker: int) -> None:
    """A data loader's `worker_init_fn`: end this process soon after the one with the id `parent`, and not before.

    torch's workers wait for ever for a killed one to take what they have made. Signals to a whole group of processes
    are for `parent`, which may need more data before it stops.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
