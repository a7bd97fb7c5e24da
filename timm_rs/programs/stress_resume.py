"""Kill a small training run at random moments, continue it, and compare it with one that was left alone.

Everything must be equal to the bit: weights, their average, optimizer, random states, summary.csv, the best checkpoint.

examples:
  python tools/stress_resume.py --trials 50
  python tools/stress_resume.py --trials 3 --device cuda --deterministic --processes 1
"""

import dataclasses
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset

from timm_rs.data.samples import TimmSamples
from timm_rs.data.shards.packing import pack
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import write_csv
from timm_rs.programs import train
from timm_rs.progress import track
from timm_rs.recipe.command_line import Parser, at_least
from timm_rs.training.checkpoint import BEST, LAST, read_checkpoint

ARGUMENTS = [
    '--model', 'resnetrs', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--img-size', '32',
    '--epochs', '3', '--batch-size', '4', '--warmup-epochs', '1', '--lr', '0.02', '--log-interval', '2',
    '--recovery-interval', '1', '--model-ema', '--model-ema-warmup', '--drop', '0.2', '--drop-path', '0.1',
    '--aa', 'rand-m9-n2', '--reprob', '0.5', '--mixup', '0.2', '--cutmix', '1.0']
KINDS = {  # what differs from run to run; each kind has a run of its own that is left alone
    'folder': ['--workers', '0'],
    'workers': ['--workers', '2', '--grad-accum-steps', '4', '--sched-on-updates'],
    'shards': ['--workers', '0', '--dataset', 'wds/data', '--amp', '--amp-dtype', 'bfloat16'],
}
HANG_S, HUNG = 300, 99  # no run takes so long; stands for the exit code of one that does


@dataclasses.dataclass
class Trial:
    number: int
    processes: int
    kind: str
    kills: int = 0
    difference: str = ''


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='tools/stress_resume.py', description=__doc__)
    parser.add_argument('--trials', type=at_least(1), default=50, metavar='N', help='runs to kill and continue [50]')
    parser.add_argument('--processes', choices=('1', '2', 'both'), default='both', help='processes of a run [both]')
    parser.add_argument('--seed', type=at_least(0), default=0, help='decides kinds, moments and victims [0]')
    parser.add_argument('--device', default='cpu', metavar='NAME', help='cpu, cuda or cuda:N [cpu]')
    parser.add_argument('--deterministic', action='store_true', help='as of train.py; GPUs need it to be equal')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write a row per trial')
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'  # CUDA neither, not even to be asked whether it is there
    if not hasattr(os, 'fork'):
        raise UserError('this test forks its runs, which this system cannot')
    with tempfile.TemporaryDirectory() as folder:
        options = ['--device', arguments.device, *(['--deterministic'] if arguments.deterministic else [])]
        trials = run_trials(
            Path(folder), arguments.trials, arguments.processes, random.Random(arguments.seed), options)
    if arguments.csv:
        write_csv(arguments.csv, map(dataclasses.asdict, trials), lineterminator='\r\n')
    equal = sum(not trial.difference for trial in trials)
    print(f'{sum(trial.kills for trial in trials)} kills')
    print(f'{equal} of {len(trials)} equal')
    if equal < len(trials):
        raise SystemExit(1)


def run_trials(folder: Path, count: int, processes: str, rng: random.Random, options: list[str]) -> list[Trial]:
    write_data(folder)
    numbers = [1, 2] if processes == 'both' else [int(processes)]
    whole: dict[tuple[int, str], tuple[Path, float]] = {}  # runs that are left alone, and their seconds
    trials = []
    for index in track(range(count), 'trials', total=count):
        trial = Trial(index, numbers[index % len(numbers)], rng.choice(list(KINDS)))
        trials.append(trial)
        if (trial.processes, trial.kind) not in whole:
            started = time.monotonic()
            alone = folder / f'runs/whole-{trial.processes}-{trial.kind}'
            if any(Run(folder, alone.name, trial, options).wait()):
                raise UserError(f'the run that is left alone failed: {tail(alone)}')
            whole[trial.processes, trial.kind] = alone, time.monotonic() - started
        alone, seconds = whole[trial.processes, trial.kind]
        part = folder / f'runs/trial-{index}'
        trial.difference = kill_and_continue(folder, trial, seconds, rng, options) or difference(alone, part)
        print(f'trial {index} ({trial.kind}, {trial.processes} processes, {trial.kills} kills): '
              f'{trial.difference or "equal"}', flush=True)
    return trials


def kill_and_continue(folder: Path, trial: Trial, seconds: float, rng: random.Random, options: list[str]) -> str:
    """Run a trial to its end with up to three kills on the way; what went wrong, if anything."""
    name, wanted = f'trial-{trial.number}', rng.randint(1, 3)
    while trial.kills < wanted:
        run = Run(folder, name, trial, options)
        victims = rng.sample(run.pids, rng.randint(1, len(run.pids)))
        moment = time.monotonic() + rng.uniform(0, seconds)
        while run.all_run() and time.monotonic() < moment:
            time.sleep(0.002)
        if run.all_run():
            if not run.has_begun():  # torch waits half an hour for who has not come; launchers end the rest at once
                victims = run.pids
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            trial.kills += 1
            if HUNG in run.wait():  # those left alive have to notice
                return 'a process did not end after another was killed'
        elif any(run.wait()):
            return f'failed: {tail(folder / "runs" / name)}'
        elif trial.kills:
            return ''
        else:  # it was through before: once more, from the beginning
            seconds *= 0.7
            shutil.rmtree(folder / 'runs' / name)
    if any(Run(folder, name, trial, options).wait()):
        return f'failed: {tail(folder / "runs" / name)}'
    return ''


class Run:
    """The processes of one start of train.py, forked so that they need not import torch again."""

    def __init__(self, folder: Path, name: str, trial: Trial, options: list[str]):
        argv = [*ARGUMENTS, *KINDS[trial.kind], *options, '--data-dir', str(folder / 'data'),
                '--output', str(folder / 'runs'), '--experiment', name, '--resume', 'auto']
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        self.log = folder / f'runs/{name}.log'
        self.said_before = self.log.stat().st_size if self.log.exists() else 0
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}  # of those that have ended
        for rank in range(trial.processes):
            group = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=trial.processes, MASTER_ADDR='127.0.0.1',
                         MASTER_PORT=port) if trial.processes > 1 else {}
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                train_and_exit(argv, self.log, {key: str(value) for key, value in group.items()})
            self.pids.append(pid)

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
            if time.monotonic() > deadline:
                for pid in set(self.pids) - self.codes.keys():
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    self.codes[pid] = HUNG
            time.sleep(0.005)
        return list(self.codes.values())


def train_and_exit(argv: list[str], log: Path, group: dict[str, str]) -> None:
    """In a forked process: train.py as if it had been started, with its output in `log`."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(group)
        with exit_on_user_error():
            train.main(argv)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def difference(whole: Path, part: Path) -> str:
    """Where two runs differ first, or nothing."""
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


def write_data(folder: Path) -> None:
    """The same few images as folders of classes and as shards, in `folder`/data."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 9), ('validation', 5)):
        for label in range(3):
            target = folder / 'data' / split / str(label)
            target.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (24, 24, 3)) + 135 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(target / f'{index}.jpg')
        pack(TimmSamples(create_dataset('', root=str(folder / 'data' / split))), folder / 'data', split,
             short_side=0, num_shards=3)
    (folder / 'runs').mkdir()


def tail(run: Path) -> str:
    """The end of what a run said."""
    return run.with_name(run.name + '.log').read_text().strip()[-500:]
