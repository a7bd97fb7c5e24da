"""What studies of several seeds have in common: their options, runs that go on where they stopped, pairs, a picture."""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timm_rs.files import read_csv, write_csv

ROOT = Path(__file__).resolve().parents[1]


def study_parser(description: str | None, seeds: int, folder: str) -> argparse.ArgumentParser:
    """The parser of a study that runs `seeds` seeds into `folder` unless it is told otherwise."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=seeds, metavar='N', help=f'[{seeds}]')
    parser.add_argument('--first-seed', type=int, default=0, metavar='S', help='[0]')
    parser.add_argument('--folder', type=Path, default=Path(folder), metavar='D', help='for all runs')
    parser.add_argument('--csv', type=Path, default=None, metavar='FILE', help='rows are put there, with a picture')
    return parser


def run_seeds(parser: argparse.ArgumentParser, run_seed: Callable[[argparse.Namespace, int], list[dict[str, Any]]],
              draw: Callable[[list[dict[str, Any]], Path], None]) -> list[dict[str, Any]]:
    """The rows of all seeds, written and drawn after each. Options that `parser` does not know are for train.py."""
    arguments, arguments.options = parser.parse_known_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        rows += run_seed(arguments, seed)
        if arguments.csv:
            write_csv(arguments.csv, rows)
            draw(rows, arguments.csv.with_suffix('.png'))
    return rows


def call(program: str, *options: Any) -> None:
    """Run a program of this checkout to its end."""
    if subprocess.run([sys.executable, ROOT / program, *map(str, options)]).returncode:
        raise SystemExit(f'{program} failed')


def trained(run: Path, *options: Any) -> float:
    """The top-1 (%) that a run comes to in its folder, which is trained only as far as it is not yet."""
    if not (run / 'done').exists():
        call('train.py', '--output', run.parent, '--experiment', run.name, '--resume', 'auto', *options)
        (run / 'done').touch()
    return float([row for row in read_csv(run / 'summary.csv') if row['eval_top1']][-1]['eval_top1'])


def by_network(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The top-1 of every seed, in their order, by the name of the network."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row['network'], []).append(row['top1'])
    return found


def spread(values: Sequence[float]) -> str:
    """'96.44 (95.56 to 97.78)'."""
    return f'{statistics.mean(values):6.2f} ({min(values):.2f} to {max(values):.2f})'


def ahead(values: Sequence[float], others: Sequence[float]) -> str:
    """'+0.39 ± 0.71': the mean of the differences in pairs of one seed, and its standard error."""
    pairs = [one - other for one, other in zip(values, others, strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float('nan')
    return f'{statistics.mean(pairs):+.2f} ± {error:.2f}'


def draw_seeds(axis: Any, top1: dict[str, list[float]], title: str) -> None:
    """A line for each seed through its networks, and their means."""
    for values in zip(*top1.values(), strict=True):
        axis.plot([*top1], values, 'o-', color='#9a9a9a', linewidth=0.8)
    axis.plot([*top1], [*map(statistics.mean, top1.values())], 'D', color='#0072b2', markersize=9, label='mean')
    axis.set(title=f'{title}: a line is one seed')
    axis.grid(alpha=0.3)
    axis.legend()
