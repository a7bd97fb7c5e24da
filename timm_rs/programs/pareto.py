"""Draw accuracy against latency: a line per family, dominated points hollow, speed-ups at equal accuracy."""
import sys
from argparse import Namespace
from pathlib import Path

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser
from timm_rs.study.figure import draw
from timm_rs.study.pareto import PAPERS_CLOCKS, Source, measured_panels, paper_panel, speedups

EXAMPLE = """examples:
  python tools/pareto.py results/train.csv --output results/pareto.png
  python tools/pareto.py results/train.csv --precision fp32 --setup eager --paper-latency v100 --output pareto.svg
  python tools/pareto.py results/infer.csv setup=folded results/train.csv device=cuda --output pareto.png
  python tools/pareto.py --timm-benchmark results/timm_benchmarks.csv hardware='RTX 3090' --output pareto.png

Accuracies are those of the paper (results/paper.csv). Every kind of measurement has a panel of its own; timm's and the
paper's latencies have theirs, if asked for. All time axes have one scale. COLUMN=VALUE after a file: only rows of that
file with this value.
"""
FILTERS = ('work', 'setup', 'precision', 'device', 'hardware')


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('results', nargs='*', metavar='RESULTS.csv',
                        help='of tools/benchmark.py; each may be followed by COLUMN=VALUE')
    parser.add_argument('--output', required=True, type=Path, metavar='FIG', help='ends with .png or .svg')
    parser.add_argument('--timm-benchmark', nargs='+', action='extend', default=[], metavar='FILE.csv',
                        help="of timm's benchmark.py, as in results/ of timm's repository, or "
                        'results/timm_benchmarks.csv; each may be followed by COLUMN=VALUE')
    parser.add_argument('--paper-latency', choices=tuple(PAPERS_CLOCKS), help='a panel of the latencies that the paper '
                        'gives, for comparison')
    for name in FILTERS:
        parser.add_argument(f'--{name}', metavar='VALUE', help=f'only rows of RESULTS.csv with this {name}')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: Namespace) -> None:
    keep = {name: getattr(args, name) for name in FILTERS if getattr(args, name) is not None}
    files = [*sources(args.results, keep), *sources(args.timm_benchmark, {}, timm=True)]
    if not files and not args.paper_latency:
        raise UserError('nothing to draw: give a CSV of tools/benchmark.py, --timm-benchmark or --paper-latency')
    panels, unknown = measured_panels(files)
    if unknown:
        print(f'left out, because no accuracy was published for them: {", ".join(unknown)}', file=sys.stderr)
    if args.paper_latency:
        panels.append(paper_panel(args.paper_latency))
    draw(panels, args.output)
    for panel in panels:
        print(panel.title.replace('\n', ', '))
        for base, other, ratio in speedups(panel.points):
            print(f'  {other.family} {other.label} ({other.top1:g} %) is {ratio:.2f} times as fast as {base.family} '
                  f'{base.label} ({base.top1:g} %)')
    print(args.output)


def sources(words: list[str], keep: dict[str, str], timm: bool = False) -> list[Source]:
    """The files among `words`, each with the COLUMN=VALUE that follow it."""
    found: list[Source] = []
    for word in words:
        column, equals, value = word.partition('=')
        if not equals or Path(word).exists():
            found.append(Source(Path(word), dict(keep), timm))
        elif found:
            found[-1].keep[column] = value
        else:
            raise UserError(f"'{word}' stands before all files: give the file that it chooses rows of first")
    return found
