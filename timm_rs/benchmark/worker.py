"""Processes that make steps, seen from outside: candidates that take turns, batches that fit."""

import multiprocessing
import signal
import time
from dataclasses import replace
from typing import Any

from timm_rs.benchmark.rows import Cost
from timm_rs.benchmark.step_process import Candidate, DoesNotFit, serve
from timm_rs.errors import UserError


class Worker:
    """A process that holds candidates, ready to make their steps. `StepProcess` gives it work."""

    def __init__(self) -> None:
        # The server imports torch once, and never computes; Windows has none.
        has_server = 'forkserver' in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context('forkserver' if has_server else 'spawn')
        context.set_forkserver_preload([serve.__module__])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, act: str, candidate: Candidate) -> Any:
        """Have it 'start' or 'stop' the candidate, or make a 'turn'. Raises DoesNotFit, UserError, RuntimeError."""
        try:
            self.connection.send((act, candidate))
            kind, content = self.connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.process.join()
            kind, content = 'bug', f'the process of {candidate} ended with status {self.process.exitcode}'
            if self.process.exitcode in (-9, -signal.SIGABRT):
                kind = 'does not fit'  # 9 is SIGKILL, which Windows has not
        if kind == 'does not fit':
            raise DoesNotFit(content)
        if kind == 'user error':
            raise UserError(content)
        if kind == 'bug':
            raise RuntimeError(content)
        return content

    def close(self) -> None:
        self.connection.close()  # which tells it to go
        self.process.join(timeout=5)
        self.process.kill()
        self.process.join()

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class StepProcess:
    """A candidate that is ready to take turns, in a process of its own or in that of `worker`.

    On a GPU the candidates of a group share a worker: there memory is counted exactly all the same, and a process takes
    ten seconds and more to load its kernels. `peak_memory` is that of `Step`; `start_s` is how long it took to be
    ready: import, building, compiling, two steps. Raises DoesNotFit, and UserError for what the person can fix.
    """

    def __init__(self, candidate: Candidate, worker: Worker | None = None):
        self.candidate, started = candidate, time.perf_counter()
        self.worker, self.is_alone = worker or Worker(), worker is None
        try:
            self.peak_memory: int = self.worker.ask('start', candidate)
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - started

    def turn(self) -> Cost:
        """Make the steps of a turn; returns the cost of one."""
        return self.worker.ask('turn', self.candidate)  # type: ignore[no-any-return]

    def close(self) -> None:
        if self.is_alone:
            self.worker.close()
        elif self.worker.process.is_alive():
            self.worker.ask('stop', self.candidate)

    def __enter__(self) -> 'StepProcess':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def fit(candidate: Candidate, images: int, worker: Worker | None = None) -> StepProcess:
    """The candidate, ready in `worker` or alone, with its batch halved until it fits, as in the paper's protocol.

    A turn of it is at least `images` images, or one batch for 0. Raises UserError when one image is too many.
    """
    while True:
        candidate = replace(candidate, steps=-(-images // candidate.batch_size) if images else 1)
        try:
            return StepProcess(candidate, worker)
        except DoesNotFit as error:
            candidate = halved(candidate, error)


def halved(candidate: Candidate, error: DoesNotFit) -> Candidate:
    """`candidate` with half the batch, since `error`. Raises UserError when there is no half."""
    if candidate.batch_size == 1:
        raise UserError(f'{candidate.label} does not fit into the memory of {candidate.device}, not even one '
                        f'image ({error}); leave it out with --models') from error
    print(f'{candidate.label} {candidate.setup}: batches of {candidate.batch_size} do not fit ({error})', flush=True)
    return replace(candidate, batch_size=candidate.batch_size // 2)


def fit_side_by_side(candidates: list[Candidate], images: int, worker: Worker) -> list[StepProcess]:
    """All candidates in `worker`, each with its batch halved until it fits beside the others while those are idle.

    For a GPU, where an idle candidate holds its weights, averages and optimizer state only. None has to start twice,
    unless those that come later leave too little to one that already fitted. Every candidate has then made a turn.
    """
    processes = [fit(candidate, images, worker) for candidate in candidates]
    for index in range(len(processes)):
        while True:
            try:
                processes[index].turn()
                break
            except DoesNotFit as error:
                processes[index].close()
                processes[index] = fit(halved(processes[index].candidate, error), images, worker)
    return processes
