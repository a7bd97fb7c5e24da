#!/usr/bin/env python
"""Draw accuracy against latency: a line per family, dominated points grey, speed-ups at equal accuracy."""
import sys
from argparse import Namespace
from pathlib import Path

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.pareto import PAPERS_CLOCKS, Panel, measured_panels, paper_panel, speedups
from timm_rs.pareto_figure import draw
from timm_rs.recipe import Parser

EXAMPLE = """examples:
  python tools/pareto.py results/train.csv --output results/pareto.png
  python tools/pareto.py results/train.csv --precision fp32 --setup eager --paper-latency v100 --output pareto.svg

Accuracies are those of the paper (results/paper.csv). Every kind of measurement has a panel of its own; the paper's
latencies have one too, if asked for.
"""
FILTERS = ('work', 'setup', 'precision', 'device', 'hardware')


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='pareto.py', description=__doc__, epilog=EXAMPLE)
    parser.add_argument('results', nargs='*', type=Path, metavar='RESULTS.csv', help='of tools/benchmark.py')
    parser.add_argument('--output', required=True, type=Path, metavar='FIG', help='ends with .png or .svg')
    parser.add_argument('--paper-latency', choices=tuple(PAPERS_CLOCKS), help='a panel of the latencies that the paper '
                        'gives, for comparison')
    for name in FILTERS:
        parser.add_argument(f'--{name}', metavar='VALUE', help=f'only rows with this in their column {name}')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: Namespace) -> None:
    if not args.results and not args.paper_latency:
        raise UserError('nothing to draw: give a CSV of tools/benchmark.py, or --paper-latency')
    panels: list[Panel] = []
    if args.results:
        keep = {name: getattr(args, name) for name in FILTERS if getattr(args, name) is not None}
        panels, unknown = measured_panels(args.results, keep)
        if unknown:
            print(f'left out, for want of a published accuracy: {", ".join(unknown)}', file=sys.stderr)
    if args.paper_latency:
        panels.append(paper_panel(args.paper_latency))
    draw(panels, args.output)
    for panel in panels:
        print(panel.title.replace('\n', ', '))
        for base, other, ratio in speedups(panel.points):
            print(f'  {other.family} {other.label} ({other.top1:g} %) is {ratio:.2f} times as fast as {base.family} '
                  f'{base.label} ({base.top1:g} %)')
    print(args.output)


if __name__ == '__main__':
    main()
