"""What only a machine with a GPU can show, part by part: each with a time limit, its rows written as they come."""

import contextlib
import importlib.util
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from timm_rs.benchmark.rows import provenance, spread
from timm_rs.benchmark.timed_commands import Shell, watch_gpu
from timm_rs.data.workers import num_cores
from timm_rs.errors import UserError
from timm_rs.files import CHECKOUT, RECIPES, append_rows, make_folder, read_rows

LONG = 16  # minutes from which the work is the paper's; below, there is less of it
UNCOUNTED_LINES = 3  # of a training's progress: there cuDNN looks for its algorithms, and workers start

TIMMS_LOOP, OURS = 'timm+channels_last+bf16', 'channels_last+bf16+fused'
TINY = ['--model', 'resnetrs', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125']
SETUPS = [  # each list in turn, for 30 to 90 s; the most telling first, since time may run out
    [TIMMS_LOOP, OURS],
    [TIMMS_LOOP, f'{OURS}+compile'],
    [TIMMS_LOOP, 'channels_last+bf16+foreach', 'bf16+fused', 'channels_last+fused'],
    [TIMMS_LOOP, f'{OURS}+reduce_overhead'],  # these two may fail, or take minutes
    [TIMMS_LOOP, f'{OURS}+max_autotune'],
]
OUR_LINE = re.compile(r'update \d+/\d+ .*?(?P<speed>\d+) img/s  waiting for data (?P<waiting>\d+) %')
TIMMS_LINE = re.compile(r'Train: .*Time: (?P<seconds>[\d.]+)s, +(?P<speed>[\d.]+)/s .*Data: (?P<data>[\d.]+) ')


@dataclass(frozen=True)
class Settings:
    """What is asked for. `output` gets all files, `scratch` what is not kept."""

    output: Path
    scratch: Path
    minutes: float
    is_dry: bool  # every part in small, on the CPU
    timm_train: Path | None  # timm's train.py

    @property
    def device(self) -> str:
        return 'cpu' if self.is_dry else 'cuda'

    def portable(self, command: str) -> str:
        """`command` without the paths of this machine."""
        if self.timm_train:
            command = command.replace(str(self.timm_train), 'pytorch-image-models/train.py')
        return command.replace(str(self.scratch), 'scratch')

    def scaled(self, dry: int, short: int, long: int) -> int:
        return dry if self.is_dry else short if self.minutes < LONG else long


# ---- the parts: each runs commands, and returns the most telling numbers as a line ----------------------------------

class Verdict(Exception):
    """Ends a part with a status that its commands do not tell: Verdict(status, found)."""


def run_tests(settings: Settings, shell: Shell) -> str:
    tests = CHECKOUT / 'tests/program/test_cuda.py'
    if importlib.util.find_spec('pytest') is None:
        raise Verdict('skipped', 'there is no pytest: pip install -e ".[test]"')
    if not tests.exists():
        raise Verdict('skipped', f'there is no {tests.relative_to(CHECKOUT)}')
    # The project's configuration needs plugins of pytest, which may not be there.
    result = shell.python(
        '-m', 'pytest', '-v', '-c', os.devnull, '--rootdir', CHECKOUT, '-p', 'no:cacheprovider', '-o',
        'markers=cuda: needs a GPU\nslow: takes seconds\ntimeout: of a plugin', '-m', 'cuda', tests,
        *(['-n', '4'] if importlib.util.find_spec('xdist') and not settings.is_dry else []),
        *(['-k', 'finite'] if settings.is_dry else []),  # those that have a form for the CPU, and are quick
        stop=signal.SIGINT)  # at which it says what failed
    counts = {word: sum(f' {word.upper()}' in line for _, line in result.lines if '::' in line and '%]' in line)
              for word in ('passed', 'failed', 'error', 'skipped')}
    if result.code in (0, 5) and not counts['passed']:
        raise Verdict('skipped', 'no GPU' if settings.is_dry else 'no test ran')
    found = ', '.join(f'{count} {word}' for word, count in counts.items() if count)
    if counts['failed'] or counts['error']:
        raise Verdict('failed', found)  # even if it was cut off
    return found


def kill_and_resume(settings: Settings, shell: Shell) -> str:
    result = shell.python('tools/stress_resume.py', '--trials', settings.scaled(1, 2, 10), '--processes', 1, '--device',
                          settings.device, '--deterministic')
    trials = [line for _, line in result.lines if line.startswith('trial ')]
    equal = sum(line.endswith(': equal') for line in trials)
    found = f'{equal} of {len(trials)} trials equal'
    if equal < len(trials):
        raise Verdict('failed', found)  # even if it was cut off
    return found if trials else ''


def measure_step(settings: Settings, shell: Shell) -> str:
    model, batch_size = ('test_resnet@32', 4) if settings.is_dry else ('resnetrs_50@160', 256)
    lists = [['timm+channels_last', 'channels_last'], ['timm', 'eager+fused']] if settings.is_dry else SETUPS
    path = settings.output / 'step.csv'
    shell.python(
        'tools/benchmark.py', 'train', '--models', model, *(word for names in lists for word in ('--setups', *names)),
        '--batch-size', batch_size, '--images', settings.scaled(0, 2048, 4096), '--rounds', settings.scaled(1, 5, 7),
        '--device', settings.device, '--csv', path, '--resume')
    ratios = {row['setup']: float(row['speed_ratio_to_first_setup_median']) for row in measured(path)
              if row['setup'] != row['first_setup']}
    best = sorted(ratios, key=lambda setup: -ratios[setup])
    return ', '.join(f'{setup} {ratios[setup]:.2f} x timm\'s loop' for setup in best[:2])


def measure_training(settings: Settings, shell: Shell) -> str:
    return measure_models(settings, shell, 'train', settings.scaled(0, 256, 1024))


def measure_inference(settings: Settings, shell: Shell) -> str:
    return measure_models(settings, shell, 'infer', settings.scaled(0, 1024, 1024), '--backends',
                          'folded' if settings.is_dry else 'folded_bf16')


def measure_models(settings: Settings, shell: Shell, work: str, images: int, *options: str) -> str:
    which = ['--models', 'test_efficientnet@32', 'test_resnet@32', '--start-batch-size', '4'] if settings.is_dry else [
        '--table3-and-7']
    path = settings.output / f'{work}.csv'
    shell.python(
        'tools/benchmark.py', work, *which, *options, '--precision', 'fp32' if settings.is_dry else 'bf16', '--images',
        images, '--rounds', settings.scaled(1, 3, 5), '--device', settings.device, '--csv', path, '--resume')
    rows = measured(path)
    pairs = [f'{point} {float(row["speed_ratio_to_base_median"]):.2f} x {row["base"]}' for row in rows
             if row['base'] != (point := f'{row["model"]}@{row["img_size"]}')]
    return f'{", ".join(pairs[:2])} ({len(rows)} rows)' if pairs else ''


def train_end_to_end(settings: Settings, shell: Shell) -> str:
    """Trainings as people start them, on JPEGs and on shards; a row each in end_to_end.csv."""
    jpegs, shards = settings.scratch / 'jpegs', settings.scratch / 'shards'
    link_photos(jpegs, settings.scaled(4, 64, 64), settings.scaled(8, 2048, 4096))
    size, batch_size = (32, 8) if settings.is_dry else (160, 256)
    options = ['--img-size', size, '--workers', num_cores(), '--batch-size', batch_size, '--epochs',
               settings.scaled(1, 2, 3), '--warmup-epochs', 0, '--log-interval', settings.scaled(1, 5, 5), '--output',
               settings.scratch / 'runs', *(TINY if settings.is_dry else [])]
    recipe = RECIPES / 'rs50.yaml'
    ours = ['train.py', '--recipe', recipe, '--device', settings.device, *options]
    folder, packed = ['--data-dir', jpegs], ['--data-dir', shards, '--dataset', 'wds/shards']
    variants: list[tuple[str, str, str, list[Any]]] = [('timm_rs', 'folder', '', [*ours, *folder])]
    if settings.timm_train:
        variants.append(('timm', 'folder', '', [
            'tools/with_timm.py', settings.timm_train, '--config', recipe, '--device', settings.device, *options,
            '--num-classes', 8, *folder]))
    variants.append(('timm_rs', 'shards', '', [*ours, *packed]))
    if not settings.is_dry:
        variants.append(('timm_rs', 'folder', 'inductor', [*ours, *folder, '--torchcompile', 'inductor']))
    found = []
    for trainer, data, compiled, command in variants:
        if shell.left() <= 0:
            break
        if data == 'shards' and shell.python('tools/pack_dataset.py', jpegs, shards, '--short-side', 176).code != 0:
            continue
        with watch_gpu() as busy:
            result = shell.python(*command)
        line = TIMMS_LINE if trainer == 'timm' else OUR_LINE
        matches = [(clock, match) for clock, text in result.lines if (match := line.search(text))][UNCOUNTED_LINES:]
        if not matches:
            continue
        speeds = spread([float(match['speed']) for _, match in matches])
        waiting = [100 * float(match['data']) / max(float(match['seconds']), 1e-9) if trainer == 'timm' else
                   float(match['waiting']) for _, match in matches]
        during = [percent for clock, percent in busy if matches[0][0] <= clock <= matches[-1][0]]
        append_rows(settings.output / 'end_to_end.csv', [dict(
            trainer=trainer, data=data, torchcompile=compiled, img_size=size, batch_size=batch_size,
            workers=num_cores(), device=settings.device, lines=len(matches),
            **{f'images_per_s_{key}': value for key, value in speeds.items()},
            waiting_percent_median=statistics.median(waiting),
            gpu_busy_percent_median=statistics.median(during) if during else '',
            run=settings.portable(result.command)) | provenance()])
        found.append(f'{" ".join(filter(None, (trainer, data, compiled)))} {speeds["median"]:.0f} images/s')
    return ', '.join(found)


class Part(NamedTuple):
    minutes: float  # of 8
    what: str
    run: Callable[[Settings, Shell], str]


PARTS = {
    'a': Part(1.6, 'tests marked cuda', run_tests),
    'b': Part(0.5, 'trainings killed and resumed, bit-identical', kill_and_resume),
    'c': Part(1.5, 'set-ups of the training step beside timm\'s loop', measure_step),
    'd': Part(2.2, 'training, Tables 3 and 7', measure_training),
    'e': Part(1, 'inference, Tables 3 and 7', measure_inference),
    'f': Part(1.2, 'train.py on JPEGs, end to end', train_end_to_end),
}


def check(settings: Settings, names: list[str]) -> bool:
    """Run the parts; whether none failed. What a part leaves of its time is for the later ones."""
    deadline = time.monotonic() + 60 * settings.minutes
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        part, started = PARTS[name], time.monotonic()
        share = part.minutes / sum(PARTS[later].minutes for later in names[index:])
        shell = Shell(started + share * (deadline - started), settings.output / 'log.txt')
        print(f'part {name}, {part.what}: at most {shell.left():.0f} s; all end in at most {deadline - started:.0f} s',
              flush=True)
        try:
            found, status = part.run(settings, shell), 'ok'
            if any(finished.code for finished in shell.done):
                status = 'failed'
            elif any(finished.code is None for finished in shell.done):
                status = 'cut off'
        except Verdict as verdict:
            status, found = verdict.args
        except Exception as error:  # the next part runs all the same
            found, status = f'{type(error).__name__}: {error}', 'failed'
        row = dict(part=name, what=part.what, status=status, seconds=round(time.monotonic() - started, 1),
                   found=found or 'nothing')
        commands = settings.portable(' && '.join(finished.command for finished in shell.done))
        append_rows(settings.output / 'checks.csv', [row | dict(run=commands) | provenance()])
        rows.append(row)
    print(f'\n{"part":5}{"status":9}{"seconds":>8}  found (all rows are in {settings.output})')
    for row in rows:
        print(f'{row["part"]:5}{row["status"]:9}{row["seconds"]:8.1f}  {row["found"]}')
    return not any(row['status'] == 'failed' or (row['status'] == 'cut off' and row['found'] == 'nothing')
                   for row in rows)


def measured(path: Path) -> list[dict[str, str]]:
    """The rows of this hardware in a CSV, if there are any."""
    if not path.exists():
        return []
    hardware = provenance()['hardware']
    return [row for row in read_rows(path) if row['hardware'] == hardware]


def link_photos(folder: Path, num_photos: int, per_class: int) -> None:
    """A folder of 8 classes, made of links to a few photos; what is in them hardly matters for the speed."""
    from timm_rs.benchmark.loaders import write_photos
    photos = sorted(write_photos(num_photos, folder.with_name('photos')).glob('train/0/*.jpg'))
    for split, count in (('train', per_class), ('validation', max(per_class // 32, 1))):
        for label in range(8):
            target = folder / split / str(label)
            target.mkdir(parents=True)
            for index in range(count):
                (target / f'{index}.jpg').symlink_to(photos[index % len(photos)])


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that goes at the end, by a signal too: SIGTERM and SIGHUP become SystemExit, which ends children."""
    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare_output(folder: Path) -> Path:
    """`folder`, made and absolute. Raises UserError where it cannot be written."""
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror}; choose another --output') from error
    return folder.resolve()
