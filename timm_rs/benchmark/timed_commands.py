"""Commands with a time limit: each in a group of processes of its own, which ends with it."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from timm_rs.files import CHECKOUT

GRACE_S = 5.0  # between the signal to stop and SIGKILL


@dataclass
class Finished:
    """A command that has ended. `code` is None where its time was up."""

    command: str
    code: int | None
    lines: list[tuple[float, str]]  # its output, with the clock


@dataclass
class Shell:
    """Runs a part's commands until `deadline` (time.monotonic), with all output in `log`, after the seconds it took."""

    deadline: float
    log: Path
    done: list[Finished] = field(default_factory=list)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def python(self, *arguments: object, stop: int = signal.SIGTERM) -> Finished:
        """Run Python with these arguments in a group of processes of its own, which gets `stop` when time is up."""
        argv = [sys.executable, *(str(argument.relative_to(CHECKOUT) if isinstance(argument, Path) and
                                      argument.is_relative_to(CHECKOUT) else argument) for argument in arguments)]
        finished = Finished(shlex.join(['python', *argv[1:]]), None, [])
        self.done.append(finished)
        paths = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get('PYTHONPATH')]))
        with open(self.log, 'a') as log:
            log.write(f'\n$ {finished.command}\n')
            log.flush()
            process = subprocess.Popen(
                argv, cwd=CHECKOUT, env=os.environ | dict(PYTHONPATH=paths, PYTHONUNBUFFERED='1'),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors='replace', start_new_session=True)

            def read() -> None:
                for line in process.stdout or ():
                    finished.lines.append((time.monotonic(), line.rstrip()))
                    log.write(f'{finished.lines[-1][0] - started:7.1f}  {line}')
                    log.flush()
            started = time.monotonic()
            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            try:
                finished.code = process.wait(max(self.left(), 0))
            except subprocess.TimeoutExpired:
                log.write('(its time was up)\n')
            finally:
                end_group(process, stop)
                reader.join(GRACE_S)
        return finished


def end_group(process: 'subprocess.Popen[str]', stop: int) -> None:
    """End `process` and all that it started: with the signal `stop`, and what is left some seconds later by force."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)  # those whom it left behind
    process.wait()


@contextlib.contextmanager
def watch_gpu() -> Iterator[list[tuple[float, float]]]:
    """Samples of the GPU's utilisation in percent, every second, with the clock; none without nvidia-smi."""
    samples: list[tuple[float, float]] = []
    is_over = threading.Event()

    def sample() -> None:
        command = ['nvidia-smi', '--query-gpu=utilization.gpu', '--format=csv,noheader,nounits']
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            while not is_over.wait(1):
                output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
                samples.append((time.monotonic(), max(map(float, output.split()))))
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join(10)
