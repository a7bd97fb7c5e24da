"""Honest comparisons of speed: candidates take turns within one run, every row says where it comes from."""

import datetime
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm_rs
from timm_rs.data.workers import num_cores
from timm_rs.progress import track

GIB = 2**30


class Cost(NamedTuple):
    """Of one item (an image, a step): seconds of all processors together, and seconds on the clock."""

    cpu: float
    wall: float


def take_turns(
        candidates: dict[str, Callable[[], int | Cost]], rounds: int, warmup: int = 1, label: str = 'benchmark'
) -> dict[str, list[Cost]]:
    """Run all candidates once per round, `warmup` rounds uncounted.

    Each returns how many items it worked on, or what one cost if it has measured that itself. The time of child
    processes counts when they have ended by the time the candidate returns.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    turns = [(number, name) for number in range(-warmup, rounds) for name in candidates]
    for number, name in track(turns, label):
        cpu, wall = cpu_seconds(), time.perf_counter()
        done = candidates[name]()
        cost = done if isinstance(done, Cost) else Cost(
            (cpu_seconds() - cpu) / done, (time.perf_counter() - wall) / done)
        if number >= 0:
            costs[name].append(cost)
    return costs


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    try:
        import resource
    except ImportError:  # Windows, which does not say it of children
        return time.process_time()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratios(base: list[Cost], other: list[Cost], which: str) -> list[float]:
    """How many times as expensive `base` was as `other`, round by round; `which` is cpu or wall."""
    return [getattr(ours, which) / getattr(theirs, which) for ours, theirs in zip(base, other, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest, to four digits."""
    return {name: four_digits(function(values)) for name, function in (
        ('median', statistics.median), ('min', min), ('max', max))}


def four_digits(value: float) -> float:
    """`value` as precisely as a measurement deserves."""
    return float(f'{value:.4g}')


def provenance() -> dict[str, str]:
    """What a row of results must say to be worth something: date, code, command, hardware, versions."""
    import PIL
    import timm
    import torch
    return dict(
        date=f'{datetime.date.today()}', commit=commit_of(Path(__file__).parent),
        command=f'{_program()} {shlex.join(sys.argv[1:])}'.rstrip(),
        hardware=f'{_processor()}, {num_cores()} cores' + ''.join(
            f', {torch.cuda.get_device_name(index)}' for index in range(torch.cuda.device_count())),
        versions=f'python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, '
                 f'pillow {PIL.__version__}, timm_rs {timm_rs.__version__}')


def _program() -> str:
    return sys.argv[0] if sys.argv[0].startswith('timm-rs ') else shlex.join(['python', sys.argv[0]])


def commit_of(folder: Path) -> str:
    """The commit, -dirty where files differ from it; rows that the same command has just added do not count."""
    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    try:
        changes = git('status', '--porcelain', '--untracked-files=no', '--', ':/', ':(top,exclude)results/*.csv')
        return git('rev-parse', '--short', 'HEAD') + ('-dirty' if changes else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def _processor() -> str:
    names = [line.partition(':')[2].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
