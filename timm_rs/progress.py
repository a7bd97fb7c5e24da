"""Progress for long work: a bar with an ETA on a terminal, a plain line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def on_terminal() -> bool:
    return sys.stderr.isatty()


class _Lines:
    """A file for tqdm that turns each redraw of the bar into a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def track(items: Iterable[Any], label: str, total: int | None = None, enabled: bool = True, images: int = 0
          ) -> Iterator[Any]:
    """Iterate over `items` while showing how far it is; nothing is left behind on the terminal at the end.

    Items that are batches of `images` are counted, and timed, in images.
    """
    settings: dict[str, Any] = dict(desc=label, total=total, leave=False, disable=not enabled)
    if images:
        settings |= dict(unit='img', unit_scale=images)
    if on_terminal():
        return iter(tqdm(items, dynamic_ncols=True, **settings))
    return iter(tqdm(items, ascii=True, ncols=80, delay=SECONDS_BETWEEN_LINES, mininterval=SECONDS_BETWEEN_LINES,
                     file=_Lines(), **settings))
