"""Many commands, one place that starts them: a pool of processes on this machine, or an engine for several.

There is no state but that of the jobs themselves: what is done, and how far the rest is, is asked of them.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch

from timm_rs.data.workers import num_cores
from timm_rs.scaling import child
from timm_rs.training.lock import FolderBusy

BUSY_S = 10.0  # until a job that another driver has begun is looked at again
POLL_S = 0.2
STOPS = (signal.SIGTERM, signal.SIGINT)


class Job(NamedTuple):
    """A program in Python that goes on where it was when it is started again.

    Attributes:
        argv: a file with Python, and its arguments.
        log: the file that its output is added to.
        folder: where it is started.
        is_done: whether nothing is left to do.
        place: how far it is, as something that compares.
    """

    name: str
    argv: list[str]
    log: Path
    folder: Path
    is_done: Callable[[], bool]
    place: Callable[[], Any]


class Outcome(NamedTuple):
    """How a job ended: 'done', 'failed', with `words` for people, 'stopped', or 'busy' with another driver."""

    job: Job
    state: str
    words: str = ''


class Engine(Protocol):
    """What runs jobs, each by `run_job`: all that are submitted come back from `next`, in any order.

    `stop` asks them to save and stop, and a second time to stop at once. It may be called by a handler of signals.
    """

    def submit(self, job: Job, delay_s: float) -> None: ...

    def next(self) -> Outcome: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


def run_jobs(jobs: Sequence[Job], engine: Engine, say: Callable[[str], None] = print) -> Iterator[Outcome]:
    """Yield the outcome of each job when it ends, none of them 'busy': those are tried again until they are done.

    `say` hears at once which failed, and why, and which another driver has begun.
    """
    busy: set[str] = set()
    for job in jobs:
        engine.submit(job, 0)
    left = len(jobs)
    while left:
        outcome = engine.next()
        name = outcome.job.name
        if outcome.state == 'busy':
            if name not in busy:
                say(f'{name} is being trained by another process')
            engine.submit(outcome.job, BUSY_S if name in busy else 0)  # after all others
            busy.add(name)
            continue
        left -= 1
        if outcome.state == 'failed':
            say(outcome.words)
        yield outcome


def run_job(job: Job, environment: dict[str, str], stops: Callable[[], int], delay_s: float = 0.0) -> Outcome:
    """Run a job in a process of its own, with `environment` on top of this one's, and wait for its end.

    What fails is tried again if it got further than the time before, so that a bug ends soon and a kill costs little.
    `stops` is how often somebody has asked to stop: at one, the process gets SIGTERM; at two, SIGKILL.
    """
    end = time.monotonic() + delay_s
    while time.monotonic() < end and not stops() and not job.is_done():
        time.sleep(POLL_S)
    before = job.place()
    while not stops():
        if job.is_done():
            return Outcome(job, 'done')
        code = _run_process(job, environment, stops)
        if stops():
            break
        if code == FolderBusy.status:
            return Outcome(job, 'busy')
        if job.is_done() and code == 0:
            return Outcome(job, 'done')
        place = job.place()
        if before == place:
            return Outcome(job, 'failed', _failure(job, code))
        before = place
    return Outcome(job, 'done' if job.is_done() else 'stopped')


def _run_process(job: Job, environment: dict[str, str], stops: Callable[[], int]) -> int:
    command = [sys.executable, child.__file__, str(os.getpid()), *job.argv]
    with open(job.log, 'ab') as log:
        # In a session of its own: Ctrl-C would reach it from the terminal, too, and a second signal saves nothing.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   cwd=job.folder, env=os.environ | environment, start_new_session=True)
    heard = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_S)
        if stops() > heard:
            heard = stops()
            process.terminate() if heard == 1 else process.kill()


def _failure(job: Job, code: int) -> str:
    said = job.log.read_bytes()[-4000:].decode(errors='replace').strip().splitlines()[-5:]
    how = f'was ended by {signal.Signals(-code).name}' if code < 0 else (
        f'failed with exit code {code}' if code else 'ended before it was done')
    return '\n'.join([f'{job.name} {how}; the end of {job.log}:', *(f'  {line}' for line in said)])


class Pool:
    """The engine for this machine: a job at a time in each of its slots."""

    def __init__(self, environments: list[dict[str, str]]):
        """A slot for each of `environments`."""
        self.waiting: queue.SimpleQueue[tuple[Job, float] | None] = queue.SimpleQueue()
        self.outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self.stops = 0
        self.slots = [threading.Thread(target=self._work, args=(environment,), daemon=True)
                      for environment in environments]
        for slot in self.slots:
            slot.start()

    def _work(self, environment: dict[str, str]) -> None:
        while (given := self.waiting.get()) is not None:
            job, delay_s = given
            try:
                self.outcomes.put(run_job(job, environment, lambda: self.stops, delay_s))
            except Exception as error:
                self.outcomes.put(error)

    def submit(self, job: Job, delay_s: float) -> None:
        self.waiting.put((job, delay_s))

    def next(self) -> Outcome:
        """Raises what a disk or a bug does to `run_job`."""
        outcome = self.outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None:
        """Returns once all slots are empty."""
        for _ in self.slots:
            self.waiting.put(None)
        for slot in self.slots:
            slot.join()


def environments(at_once: int | None) -> list[dict[str, str]]:
    """What each of `at_once` jobs finds in its environment; None for as many as there are GPUs, or else one."""
    gpus = _gpus()
    slots = at_once or len(gpus) or 1
    threads = dict(OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS') or str(max(1, num_cores() // slots)))
    return [threads | (dict(CUDA_VISIBLE_DEVICES=gpus[slot % len(gpus)]) if gpus else {}) for slot in range(slots)]


def _gpus() -> list[str]:
    """Those that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count, named = torch.cuda.device_count(), os.environ.get('CUDA_VISIBLE_DEVICES')
    return named.split(',')[:count] if named else list(map(str, range(count)))


class Signals:
    """SIGTERM and SIGINT to this process, passed on to `stop`: a context manager. `number` is the first, or 0."""

    def __init__(self, stop: Callable[[], object]):
        self.stop, self.number = stop, 0

    def __enter__(self) -> 'Signals':
        self.before = {number: signal.signal(number, self._hear) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.stop()
