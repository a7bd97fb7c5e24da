"""Kill a small training run in the worst ways, continue it, and compare it with one that was left alone.

Everything must be equal to the bit: weights, their average, optimizer, random states, summary.csv, the best checkpoint.

ways:
  kill       SIGKILL of some or all of its processes at a random moment
  operation  SIGKILL of the process that writes, just before or just after one of its file operations
  worker     SIGKILL of a data worker, where there are any
  pause      SIGSTOP of some or all of its processes, and SIGCONT

examples:
  python tools/stress_resume.py --trials 50
  python tools/stress_resume.py --trials 200 --ways operation
  python tools/stress_resume.py --trials 3 --device cuda --deterministic --processes 1
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from timm_rs.benchmark.stress_kinds import KINDS
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import write_csv
from timm_rs.programs import train
from timm_rs.progress import track
from timm_rs.recipe.command_line import Parser, at_least

WAYS = ('kill', 'operation', 'worker', 'pause')
OPERATIONS = ('fsync', 'replace', 'rename', 'link', 'unlink', 'remove', 'rmdir')  # of the module os
HANG_S, HUNG = 300, 99  # no run takes so long; stands for the exit code of one that does


@dataclasses.dataclass
class Trial:
    """A run that is disturbed; `hits` names the ways, in order."""

    number: int
    processes: int
    kind: str
    hits: str = ''
    difference: str = ''


@dataclasses.dataclass
class Whole:
    """A run that was left alone: its folder, how long it took, and how many file operations its first process did."""

    folder: Path
    seconds: float
    operations: int


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='tools/stress_resume.py', description=__doc__)
    parser.add_argument('--trials', type=at_least(1), default=50, metavar='N', help='runs to kill and continue [50]')
    parser.add_argument('--processes', choices=('1', '2', 'both'), default='both', help='processes of a run [both]')
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS), help='of data [all]')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS), help='of disturbing [all]')
    parser.add_argument('--seed', type=at_least(0), default=0, help='decides kinds, ways, moments and victims [0]')
    parser.add_argument('--device', default='cpu', metavar='NAME', help='cpu, cuda or cuda:N [cpu]')
    parser.add_argument('--deterministic', action='store_true', help='as of train.py; GPUs need it to be equal')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write a row per trial')
    arguments = parser.parse_args(argv)
    import torch

    import timm_rs.training.train  # noqa: F401  (once, and not in each run that is forked)
    torch.set_num_threads(1)  # threads do not survive a fork
    os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'  # CUDA neither, not even to be asked whether it is there
    if not hasattr(os, 'fork'):
        raise UserError('this test forks its runs, which this system cannot')
    with tempfile.TemporaryDirectory() as folder:
        trials = run_trials(Path(folder), arguments)
    if arguments.csv:
        write_csv(arguments.csv, map(dataclasses.asdict, trials), lineterminator='\r\n')
    hits = ' '.join(trial.hits for trial in trials).split()
    print(', '.join(f'{hits.count(way)} times {way}' for way in WAYS if way in hits))
    equal = sum(not trial.difference for trial in trials)
    print(f'{equal} of {len(trials)} equal')
    if equal < len(trials):
        raise SystemExit(1)


def run_trials(folder: Path, arguments: argparse.Namespace) -> list[Trial]:
    from timm_rs.benchmark.stress_data import write_data
    write_data(folder, arguments.kinds)
    (folder / 'runs').mkdir()
    options = ['--device', arguments.device, *['--deterministic'] * arguments.deterministic]
    numbers = [1, 2] if arguments.processes == 'both' else [int(arguments.processes)]
    rng = random.Random(arguments.seed)
    whole: dict[tuple[int, str], Whole] = {}
    trials = []
    for index in track(range(arguments.trials), 'trials', total=arguments.trials):
        trial = Trial(index, numbers[index % len(numbers)], rng.choice(arguments.kinds))
        trials.append(trial)
        key = trial.processes, trial.kind
        alone = whole[key] = whole.get(key) or leave_alone(folder, trial, options)
        trial.difference = (disturb_and_continue(folder, trial, alone, arguments.ways, rng, options)
                            or difference(alone.folder, folder / f'runs/trial-{index}'))
        print(f'trial {index} ({trial.kind}, {trial.processes} processes, {trial.hits}): '
              f'{trial.difference or "equal"}', flush=True)
    return trials


def leave_alone(folder: Path, trial: Trial, options: list[str]) -> Whole:
    started = time.monotonic()
    run = Run(folder, f'whole-{trial.processes}-{trial.kind}', trial, options)
    if any(run.wait()):
        raise UserError(f'the run that is left alone failed: {tail(run.folder)}')
    return Whole(run.folder, time.monotonic() - started, run.operations.stat().st_size)


def disturb_and_continue(folder: Path, trial: Trial, whole: Whole, ways: list[str], rng: random.Random,
                         options: list[str]) -> str:
    """Run a trial to its end with up to three hits on the way; what went wrong, if anything."""
    name, wanted, seconds = f'trial-{trial.number}', rng.randint(1, 3), whole.seconds
    while len(trial.hits.split()) < wanted:
        way = rng.choice(ways)
        fatal = rng.randrange(2 * whole.operations) if way == 'operation' else None
        run = Run(folder, name, trial, options, fatal)
        moment = time.monotonic() + rng.uniform(0, seconds)
        while run.all_run() and (fatal is not None or time.monotonic() < moment):
            time.sleep(0.002)
        is_hit = run.all_run() and run.hit(way, rng)
        codes = run.wait()
        if is_hit or way == 'operation' and -signal.SIGKILL in codes:
            trial.hits = f'{trial.hits} {way}'.lstrip()
        if HUNG in codes:
            return 'a process did not end after another was killed'
        if not any(codes):
            if trial.hits:
                return ''
            seconds *= 0.7  # it was through before: once more, from the beginning
            shutil.rmtree(run.folder)
        elif not trial.hits.endswith(way):
            return f'failed: {tail(run.folder)}'
    run = Run(folder, name, trial, options)
    return f'failed: {tail(run.folder)}' if any(run.wait()) else ''


class Run:
    """The processes of one start of train.py, forked so that they need not import torch again."""

    def __init__(self, folder: Path, name: str, trial: Trial, options: list[str], fatal: int | None = None):
        """Start the processes; the first dies at its file operation `fatal`, see `count_operations`."""
        argv = [*(word.format(folder) for word in KINDS[trial.kind].arguments), *options,
                '--output', f'{folder}/runs', '--experiment', name, '--resume', 'auto']
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        self.folder, self.log, self.operations = (folder / f'runs/{name}{end}' for end in ('', '.log', '.operations'))
        self.said_before = self.log.stat().st_size if self.log.exists() else 0
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}  # of those that have ended
        for rank in range(trial.processes):
            group = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=trial.processes, MASTER_ADDR='127.0.0.1',
                         MASTER_PORT=port) if trial.processes > 1 else {}
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                if not rank:
                    count_operations(self.operations, fatal)
                train_and_exit(argv, self.log, {key: str(value) for key, value in group.items()})
            self.pids.append(pid)

    def hit(self, way: str, rng: random.Random) -> bool:
        """Disturb processes that run; whether there were any to disturb."""
        victims = rng.sample(self.pids, rng.randint(1, len(self.pids)))
        if way == 'operation':
            return False  # it was not reached
        if way == 'worker':
            workers = [worker for pid in victims for worker in children(pid)]
            if not workers:
                return False
            victims = [rng.choice(workers)]
        with contextlib.suppress(ProcessLookupError):  # a worker may have ended meanwhile
            for pid in victims:
                os.kill(pid, signal.SIGSTOP if way == 'pause' else signal.SIGKILL)
            if way == 'pause':
                time.sleep(rng.uniform(0.1, 1))
                for pid in victims:
                    os.kill(pid, signal.SIGCONT)
        return True

    def has_begun(self) -> bool:
        """Whether the processes have met and opened the folder of the run."""
        return self.log.exists() and b'everything is written to' in self.log.read_bytes()[self.said_before:]

    def all_run(self) -> bool:
        for pid in set(self.pids) - self.codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return not self.codes

    def wait(self) -> list[int]:
        """The exit codes, once all processes have ended by themselves; those that hang are killed and count as 99."""
        deadline = time.monotonic() + HANG_S
        while self.all_run() or len(self.codes) < len(self.pids):
            is_late = time.monotonic() > deadline
            # torch waits half an hour for who has not come; launchers end the rest at once.
            if is_late or any(self.codes.values()) and not self.has_begun():
                for pid in set(self.pids) - self.codes.keys():
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    self.codes[pid] = HUNG if is_late else -signal.SIGKILL
            time.sleep(0.005)
        return list(self.codes.values())


def children(pid: int) -> list[int]:
    """Processes that `pid` has started, where the system tells (Linux)."""
    try:
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def count_operations(record: Path, fatal: int | None = None) -> None:
    """From now on, each of this process's file operations (`OPERATIONS`) adds a byte to `record`, anew.

    The process gets SIGKILL just before operation number `fatal` / 2, or just after it where `fatal` is odd.
    """
    counter, own, done = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.getpid(), 0

    def counted(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if os.getpid() != own:  # a data worker
            return operation(*args, **kwargs)
        os.write(counter, b'.')
        moment, done = 2 * done, done + 1
        if moment == fatal:
            os.kill(own, signal.SIGKILL)
        try:
            return operation(*args, **kwargs)
        finally:
            if moment + 1 == fatal:
                os.kill(own, signal.SIGKILL)

    for name in OPERATIONS:
        setattr(os, name, functools.partial(counted, getattr(os, name)))


def train_and_exit(argv: list[str], log: Path, group: dict[str, str]) -> None:
    """In a forked process: train.py as if it had been started, with its output in `log`."""
    def work() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(group)
        with exit_on_user_error():
            train.main(argv)

    end_as_program(work)


def end_as_program(work: Callable[[], object]) -> NoReturn:
    """Do `work` in a forked process, and end that as Python ends a program."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def difference(whole: Path, part: Path) -> str:
    """Where two runs differ first, or nothing."""
    from timm_rs.training.checkpoint import BEST, LAST, read_checkpoint
    if (whole / 'summary.csv').read_bytes() != (part / 'summary.csv').read_bytes():
        return 'summary.csv'
    for name in (LAST, BEST):
        first, second = ({key: value for key, value in read_checkpoint(run / name).items() if key != 'args'}
                         for run in (whole, part))  # args has the name of the run
        if place := first_difference(first, second):
            return name + place
    return ''


def first_difference(first: Any, second: Any) -> str | None:
    """The path to the first of nested values that is not the same, to the bit."""
    import torch
    if isinstance(first, torch.Tensor):
        return None if isinstance(second, torch.Tensor) and torch.equal(first, second) else ' '
    if isinstance(first, dict | list) and type(first) is type(second) and len(first) == len(second):
        keys = first if isinstance(first, dict) else range(len(first))
        for key in keys:
            if isinstance(first, dict) and key not in second:
                return f' {key}'
            if place := first_difference(first[key], second[key]):
                return f' {key}{place}'
        return None
    return None if first == second else ' '


def tail(run: Path) -> str:
    """The end of what a run said."""
    return run.with_name(run.name + '.log').read_text().strip()[-500:]
