"""Processes that read data for another."""

import os
import signal
import threading
import time

# What stops a run; Windows has no SIGUSR1.
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name)]


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1  # Linux, others


def end_with(parent: int, worker: int) -> None:
    """A data loader's `worker_init_fn`: end this process soon after the one with the id `parent`, and not before.

    torch's workers wait for ever for a killed one to take what they have made. Signals to a whole group of processes
    are for `parent`, which may need more data before it stops; only its own end this process.
    """
    signal.set_wakeup_fd(-1)  # the parent's, which would take our signals for its own
    can_tell = hasattr(signal, 'sigtimedwait')  # who sent a signal; macOS does not
    if can_tell:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            if not can_tell:
                time.sleep(1)
            elif (heard := signal.sigtimedwait(SIGNALS, 1)) and heard.si_pid == parent:
                break
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
