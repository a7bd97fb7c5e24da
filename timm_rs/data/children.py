"""A function on many items in processes of their own, which may crash or hang without taking the caller along."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from timm_rs.data.workers import end_with


def in_children(function: Callable[[int], Any], count: int, workers: int, seconds: float,
                failed: Callable[[str], Any]) -> Iterator[Any]:
    """`function` of 0 to `count` - 1, in order, by `workers` processes at once.

    For an item on which a process dies, or gives no answer in `seconds` by the clock, it is what `failed` makes of the
    reason, and another process goes on. An exception in a child is raised here.
    """
    children = [_Child(function) for _ in range(max(1, min(workers, count)))]
    done: dict[int, Any] = {}
    given = yielded = 0
    try:
        while yielded < count:
            for child in children:
                if child.item is None and given < count:
                    child.give(given)
                    given += 1
            busy = [child for child in children if child.item is not None]
            patience = min(child.since for child in busy) + seconds - time.monotonic()
            ready = wait([child.answers for child in busy], max(patience, 0))
            for number, child in enumerate(children):
                if child.item is None:
                    continue
                item, reason = child.item, ''
                if child.answers in ready:
                    try:
                        done[item] = child.take()
                    except EOFError:
                        reason = f'crashes what decodes it ({child.why_dead()})'
                elif time.monotonic() > child.since + seconds:
                    reason = f'gives no answer in {seconds:g} s'
                if reason:
                    child.kill()
                    done[item], children[number] = failed(reason), _Child(function)
            while yielded in done:
                yield done.pop(yielded)
                yielded += 1
    finally:
        for child in children:
            child.kill()


class _Child:
    def __init__(self, function: Callable[[int], Any]):
        self.answers, theirs = multiprocessing.Pipe()
        self.item: int | None = None
        self.since = 0.0
        self.process = multiprocessing.Process(
            target=_serve, args=(function, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, item: int) -> None:
        self.item, self.since = item, time.monotonic()
        self.answers.send(item)

    def take(self) -> Any:
        """Its answer. Raises EOFError when it is dead, and what the function raised."""
        answer, error = self.answers.recv()
        self.item = None
        if error is not None:
            raise error
        return answer

    def why_dead(self) -> str:
        self.process.join(1)
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if -code in set(signal.Signals) else f'exit status {code}'

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.answers.close()


def _serve(function: Callable[[int], Any], questions: Connection, parent: int) -> None:
    end_with(parent, 0)
    while True:
        item = questions.recv()
        try:
            questions.send((function(item), None))
        except Exception as error:
            questions.send((None, error))
