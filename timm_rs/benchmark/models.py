"""Speed and memory of models as in the paper's Tables 3 and 7 and its Figure 5: which, in which groups, and their rows.

The paper's own numbers are not here; what is measured here never shares a column with them.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from timm_rs.benchmark.points import LAYOUT, PAPERS_IMAGES
from timm_rs.benchmark.rows import GIB, Cost, four_digits, provenance, ratios, spread, take_turns
from timm_rs.benchmark.step_process import Candidate, DoesNotFit, check_model, check_setup, precision_of
from timm_rs.benchmark.worker import StepProcess, Worker, fit, fit_side_by_side
from timm_rs.device.torch_device import cpu_emulates_bfloat16
from timm_rs.errors import UserError
from timm_rs.files import read_csv
from timm_rs.inference.backends import is_available
from timm_rs.inference.options import BACKENDS


@dataclass(frozen=True)
class Protocol:
    """How models are measured: everything that must be the same for rows to be comparable."""

    work: str  # train, infer, or memory: the peak of a training step, without clock
    setups: tuple[str, ...]
    batch_size: int  # or where the search for one begins
    search: bool  # halve batches until they fit
    images: int  # at least so many in a turn; 0 for a single batch
    rounds: int
    device: str
    recipe: str = ''

    def candidate(self, point: str, setup: str) -> Candidate:
        """Raises UserError for a point that is not MODEL@SIZE or MODEL@FRAMESxSIZE, or an unknown model."""
        found = re.fullmatch(r'([^@]+)@(?:([1-9]\d*)x)?([1-9]\d*)', point)
        if not found:
            raise UserError(f'{point} is not MODEL@SIZE, such as resnetrs_50@160, or of clips MODEL@FRAMESxSIZE, such '
                            'as resnetrs3d_50@16x224')
        check_model(found[1])
        check_setup(setup, self.work)
        return Candidate(
            found[1], int(found[3]), 'infer' if self.work == 'infer' else 'train', setup, self.batch_size,
            -(-self.images // self.batch_size) or 1, self.device, self.recipe, int(found[2] or 0))

    def warning(self) -> str:
        """What people should know before it begins; mostly nothing."""
        if self.device == 'cpu' and not Path('/proc/self/status').exists():
            return 'this system does not say how much memory a step takes on the CPU: it is 0 in all rows'
        asked = self.device == 'cpu' and any(precision_of(setup) == 'bf16' for setup in self.setups)
        return ('this CPU has no bfloat16 arithmetic: torch emulates it, which takes ten times as long as float32, and '
                'OpenVINO computes in float32') if asked and cpu_emulates_bfloat16() else ''

    def key(self, candidate: Candidate, base: str) -> dict[str, str]:
        """The columns of a row that say what was asked for; a row that has them all need not be measured again."""
        return dict(
            work=self.work, model=candidate.model, img_size=candidate.size, setup=candidate.setup,
            precision=candidate.precision, base=base, first_setup=self.setups[0], device=self.device,
            recipe=self.recipe, threads=str(torch.get_num_threads()),
            protocol=f'batch {"halved from " if self.search else ""}{self.batch_size}, '
                     f'{f"{self.images} images" if self.images else "one batch"} per turn, {self.rounds} rounds')


def remaining(groups: list[list[str]], protocol: Protocol, path: Path | None) -> list[list[str]]:
    """The groups of which the CSV at `path` lacks rows, measured on this hardware; all, for None or no such file.

    Raises UserError when the file cannot be read, and for points that cannot be measured.
    """
    rows: list[dict[str, str]] = []
    if path is not None and path.exists():
        try:
            rows = read_csv(path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f'{path} cannot be read: {error}; give another --csv') from error
    hardware = provenance()['hardware']

    def is_done(key: dict[str, str]) -> bool:
        wanted = key | dict(hardware=hardware)
        return any(wanted == {name: row.get(name) for name in wanted} for row in rows)

    return [group for group in groups if not all(
        is_done(protocol.key(protocol.candidate(point, setup), group[0]))
        for point in group for setup in protocol.setups)]


def measure_models(groups: list[tuple[list[str], Protocol]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each group, as soon as they are measured.

    A group that cannot be measured does not prevent the next ones; when all are through, the first problem is raised:
    UserError, or RuntimeError for a bug.
    """
    problems: list[UserError | RuntimeError] = []
    for number, (group, protocol) in enumerate(groups, start=1):
        try:
            yield measure_group(group, protocol, f'group {number}/{len(groups)}')
        except (UserError, RuntimeError) as error:
            problems.append(error)
            if number < len(groups):
                print(f'{" and ".join(group)} with {" and ".join(protocol.setups)} cannot be measured: {error}',
                      flush=True)
    if problems:
        raise problems[0]


def measure_group(group: list[str], protocol: Protocol, label: str = 'benchmark') -> list[dict[str, Any]]:
    """Rows of the points in `group` with every setup: in turn, each in a process of its own, on a GPU all in one."""
    candidates = [protocol.candidate(point, setup) for point, setup in itertools.product(group, protocol.setups)]
    on_cuda = protocol.device.startswith('cuda')
    peaks = []
    if protocol.work == 'memory' or (protocol.search and not on_cuda):
        # On the CPU an idle process keeps what its step took, so each looks for its batch alone.
        for index, candidate in enumerate(candidates):
            with fit(candidate, protocol.images) if protocol.search else StepProcess(candidate) as process:
                candidates[index] = process.candidate
                peaks.append(process.peak_memory)
    if protocol.work == 'memory':
        return model_rows(group, protocol, candidates, peaks, None)
    try:
        with ExitStack() as stack:
            worker = stack.enter_context(Worker()) if on_cuda else None
            if worker and protocol.search:
                processes = fit_side_by_side(candidates, protocol.images, worker)
            else:
                processes = [StepProcess(candidate, worker) if worker else stack.enter_context(StepProcess(candidate))
                             for candidate in candidates]
            costs = take_turns(
                {f'{process.candidate.label} {process.candidate.setup}': process.turn for process in processes},
                protocol.rounds, warmup=0 if on_cuda and protocol.search else 1, label=label)
    except DoesNotFit as error:
        raise UserError(f'{" and ".join(group)} do not fit into memory side by side ({error}): give a smaller '
                        '--batch-size, or --start-batch-size') from error
    return model_rows(
        group, protocol, [process.candidate for process in processes], [process.peak_memory for process in processes],
        list(costs.values()), [process.start_s for process in processes])


def model_rows(
        group: list[str], protocol: Protocol, candidates: list[Candidate], peaks: list[int],
        costs: list[list[Cost]] | None, starts: list[float] | None = None) -> list[dict[str, Any]]:
    """A row per candidate, with provenance.

    Ratios above 1 say that it is faster, or needs less memory, per image: than the first point of the group with the
    same setup (`_to_base`), and than the same point with the first setup (`_to_first_setup`). Sizes in GiB.
    """
    source = provenance()
    found = []
    for index, candidate in enumerate(candidates):
        setup = index % len(protocol.setups)
        others = {'to_base': setup, 'to_first_setup': index - setup}
        row: dict[str, Any] = protocol.key(candidate, group[0])
        row |= dict(batch_size=candidate.batch_size, peak_memory_gib=four_digits(peaks[index] / GIB))
        if starts is not None:
            row['start_s'] = four_digits(starts[index])
        if costs is not None:
            steps = costs[index]
            per_image = _per_image(steps, candidate)
            row |= dict(steps=candidate.steps, rounds=len(steps))
            row |= _named('step_ms', [1e3 * cost.wall for cost in steps])
            row |= _named('image_ms', [1e3 * cost.wall for cost in per_image])
            row |= _named('images_per_s', [1 / cost.wall for cost in per_image])
            row |= _named('latency_1024_s', [PAPERS_IMAGES * cost.wall for cost in per_image])
            clocks = {'speed': 'wall'}
            if candidate.device == 'cpu':  # processor time hardly depends on what else the machine does
                clocks['cpu'] = 'cpu'
                row |= _named('step_cpu_ms', [1e3 * cost.cpu for cost in steps])
            for (name, clock), (to, other) in itertools.product(clocks.items(), others.items()):
                row |= _named(f'{name}_ratio_{to}',
                              ratios(_per_image(costs[other], candidates[other]), per_image, clock))
        for to, other in others.items():
            theirs = peaks[other] / candidates[other].batch_size
            row[f'memory_ratio_{to}'] = four_digits(theirs / (peaks[index] / candidate.batch_size))
        found.append(row | dict(memory_is='allocated by torch' if candidate.device.startswith('cuda') else
                                'growth of resident memory') | source)
        package = candidate.setup.partition('_')[0]
        if candidate.work == 'infer' and package in ('onnxruntime', 'openvino'):
            found[-1]['versions'] += f', {package} {version(package)}'
    return found


def _per_image(costs: list[Cost], candidate: Candidate) -> list[Cost]:
    return [Cost(cost.cpu / candidate.batch_size, cost.wall / candidate.batch_size) for cost in costs]


def _named(name: str, values: list[float]) -> dict[str, float]:
    return {f'{name}_{key}': value for key, value in spread(values).items()}


def training_setups(setups: list[str] | None, precision: str) -> tuple[str, ...]:
    """What to measure: `setups`, or the recipes' memory layout for None; each in `precision` (fp32 or bf16)."""
    return tuple(dict.fromkeys(
        f'{setup}+bf16' if precision == 'bf16' != precision_of(setup) else setup for setup in setups or [LAYOUT]))


def inference_setups(setups: list[str] | None, precision: str, device: str) -> tuple[str, ...]:
    """What to measure: `setups`, or for None the back-ends that this place has of `precision`, after eager.

    What torch.compile makes is left to those who ask: the largest networks take it minutes.
    """
    return tuple(dict.fromkeys(setups or ['eager', *(
        name for name in BACKENDS if precision_of(name) == precision and is_available(name, torch.device(device))
        and not name.startswith('compiled'))]))


def model_table(found: list[dict[str, Any]]) -> str:
    """Rows of a group as lines for people."""
    lines = []
    for row in found:
        line = f'{row["model"] + "@" + row["img_size"]:28} {row["setup"]:26} batch {row["batch_size"]:>4}'
        if 'step_ms_median' in row:
            line += (f' {row["step_ms_median"]:>9.4g} ms/step {row["image_ms_median"]:>8.4g} ms/image '
                     f'{row["latency_1024_s_median"]:>7.4g} s/1024 images')
        line += f' {row["peak_memory_gib"]:>6.3g} GiB'
        if 'step_ms_median' in row:
            line += ''.join(
                f'  {row[name + "_median"]:.2f} ({row[name + "_min"]:.2f}-{row[name + "_max"]:.2f}) x speed of {other}'
                for name, other, own in (
                    ('speed_ratio_to_base', row['base'], f'{row["model"]}@{row["img_size"]}'),
                    ('speed_ratio_to_first_setup', found[0]['setup'], row['setup'])) if other != own)
        lines.append(line)
    return '\n'.join(lines)
