"""Train models of several sizes, and compare them at equal cost.

`run` may be stopped at any moment, started again, and run by several processes at once: each run is trained once.
"""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import make_folder
from timm_rs.progress import track
from timm_rs.recipe.command_line import Parser, at_least
from timm_rs.scaling.points import Point, create_points
from timm_rs.scaling.study_file import find_study, read_study
from timm_rs.study.results import COSTS

if TYPE_CHECKING:
    from timm_rs.scaling.jobs import Engine, Job, Outcome
    from timm_rs.scaling.plan import Planned

PLAN_EXAMPLE = """example:
  python tools/scaling.py plan studies/paper.yaml --flops-per-second 4e14
"""
RUN_EXAMPLE = """examples:
  python tools/scaling.py run studies/small.yaml --at-once 2
  python tools/scaling.py run studies/paper.yaml --data-dir imagenet --engine ray
  python tools/scaling.py run studies/paper.yaml --data-dir imagenet --commands > commands.txt
"""
REPORT_EXAMPLE = """example:
  python tools/scaling.py report studies/small.yaml --cost activations_m
"""
FAMILY_EXAMPLE = """example:
  python tools/scaling.py family studies/small.yaml --budgets 0.003 0.006
"""
EXAMPLE = """examples:
  python tools/scaling.py plan studies/small.yaml
  python tools/scaling.py run studies/small.yaml --at-once 2
  python tools/scaling.py report studies/small.yaml
  python tools/scaling.py family studies/small.yaml --budgets 0.003 0.006
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='tools/scaling.py', description=__doc__, epilog=EXAMPLE)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, words, example, add in (
            ('plan', 'what the runs of a study will cost; writes their recipes', PLAN_EXAMPLE, _add_plan),
            ('run', 'start or continue them', RUN_EXAMPLE, _add_run),
            ('report', 'what the finished ones say: verdicts at equal cost, power laws, figures', REPORT_EXAMPLE,
             _add_report),
            ('family', 'the best finished model within each budget, as recipes', FAMILY_EXAMPLE, _add_family)):
        command = commands.add_parser(name, help=words, description=words, epilog=example)
        command.add_argument('study', metavar='STUDY', help='a file such as studies/small.yaml')
        command.add_argument('-o', '--output', type=Path, metavar='FOLDER',
                             help='of recipes, runs and results [output/studies/NAME]')
        command.add_argument('--data-dir', metavar='D', help='the data, in place of what the study names')
        add(command)
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        dict(plan=run_plan, run=run_study, report=run_report, family=run_family)[arguments.command](arguments)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--flops-per-second', type=float, metavar='N',
                        help='that your hardware sustains in training, for hours; where FOLDER/step_ms.csv has '
                        'measured times of updates, those count')


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--at-once', type=at_least(1), metavar='N', help='runs at a time [the number of GPUs, or 1]')
    parser.add_argument('--engine', choices=('here', 'ray'), default='here',
                        help='where they run: processes on this machine, or tasks of a Ray cluster [here]')
    parser.add_argument('--address', metavar='A', help='of the Ray cluster [RAY_ADDRESS, or this machine alone]')
    parser.add_argument('--commands', action='store_true',
                        help='print the command of each unfinished run, one per line, and start none')


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--cost', choices=COSTS, default='gmacs', help='at which series are compared [gmacs]')


def _add_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--budgets', type=float, nargs='+', required=True, metavar='N', help='in the unit of the cost')
    _add_report(parser)


def run_plan(arguments: argparse.Namespace) -> None:
    from timm_rs.scaling.collect import describe, step_times
    from timm_rs.scaling.plan import table
    rate = arguments.flops_per_second
    if rate is not None and not 0 < rate < float('inf'):
        raise UserError(f'--flops-per-second must be a positive number such as 4e14, got {rate}')
    folder, points, plan = _planned(arguments)
    rows = [planned.row() | describe(planned.point) for planned in plan]
    times = step_times(folder, [{name: str(value) for name, value in row.items()} for row in rows])
    step_ms = {point.name: float(time) for point, time in zip(points, times, strict=True) if time}
    print('\n'.join(table(plan, rate, step_ms)))
    if problems := _problems(folder, plan):
        raise UserError('; '.join(problems.values()))
    print(f'next: tools/scaling.py run {arguments.study}; the recipes are in {folder / "recipes"}')


def run_report(arguments: argparse.Namespace) -> None:
    from timm_rs.scaling.findings import report
    print('\n'.join(report(*_opened(arguments), arguments.cost)))


def run_family(arguments: argparse.Namespace) -> None:
    from timm_rs.scaling.findings import write_family
    print('\n'.join(write_family(*_opened(arguments), arguments.budgets, arguments.cost)))


def _opened(arguments: argparse.Namespace) -> tuple[Path, list[Point]]:
    """The folder of a study, and its points."""
    path = find_study(arguments.study)
    overrides = dict(data_dir=arguments.data_dir) if arguments.data_dir else {}
    points = create_points(read_study(path, overrides))
    return (arguments.output or Path('output/studies', path.stem)).absolute(), points


def _planned(arguments: argparse.Namespace) -> 'tuple[Path, list[Point], list[Planned]]':
    from timm_rs.scaling.plan import create_plan, write_plan
    folder, points = _opened(arguments)
    plan = create_plan(points)
    write_plan(folder, plan)
    return folder, points, plan


def _problems(folder: Path, plan: 'list[Planned]') -> dict[str, str]:
    """What keeps a point from being trained, by its name: it cannot be built, or another recipe was trained there."""
    from timm_rs.scaling.runs import problem_of
    found = {planned.point.name: planned.problem and f'{planned.point.name}: {planned.problem}'
             or problem_of(folder, planned.point) for planned in plan}
    return {name: problem for name, problem in found.items() if problem}


def run_study(arguments: argparse.Namespace) -> None:
    from timm_rs.scaling.collect import write_results
    from timm_rs.scaling.runs import create_jobs, strangers
    folder, points, plan = _planned(arguments)
    problems = _problems(folder, plan)
    for line in problems.values():
        print(f'left out: {line}', file=sys.stderr)
    if others := strangers(folder, points):
        print(f'{len(others)} runs in {folder / "runs"} belong to no point of the study: {", ".join(others)}',
              file=sys.stderr)
    jobs = create_jobs(folder, [planned for planned in plan if planned.point.name not in problems])
    jobs = [job for job in jobs if not job.is_done()]
    if arguments.commands:
        print(''.join(f'{shlex.join([sys.executable, *job.argv])}\n' for job in jobs), end='')
        return
    make_folder(folder / 'runs')
    print(f'{len(plan) - len(jobs) - len(problems)} of {len(plan)} runs are finished; recipes, runs and results are in '
          f'{folder}', flush=True)
    try:
        signal, outcomes = _run(jobs, folder, arguments) if jobs else (0, [])
    finally:
        rows = write_results(folder, points)
    print(f'{len(rows)} of {len(points)} runs are finished: {folder / "results.csv"}')
    if signal:
        print('stopped; the same command goes on')
        raise SystemExit(128 + signal)
    if problems or any(outcome.state == 'failed' for outcome in outcomes):
        raise SystemExit(1)


def _run(jobs: 'list[Job]', folder: Path, arguments: argparse.Namespace) -> 'tuple[int, list[Outcome]]':
    """Run the jobs by the engine that was asked for: the signal that stopped it, if any, and how each job ended."""
    from timm_rs.scaling.jobs import Pool, Signals, environments, run_jobs
    from timm_rs.scaling.ray_engine import RayPool
    engine: Engine = (RayPool(folder, arguments.at_once, arguments.address) if arguments.engine == 'ray' else
                      Pool(environments(arguments.at_once)))
    with contextlib.closing(engine), Signals(engine.stop) as signals:
        outcomes = list(track(run_jobs(jobs, engine, tqdm.write), 'runs', total=len(jobs)))
    return signals.number, outcomes
