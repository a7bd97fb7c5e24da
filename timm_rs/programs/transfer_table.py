"""Set side by side what backbones are worth elsewhere: tasks as rows, initialisations as columns."""
from argparse import Namespace
from pathlib import Path

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import write_csv
from timm_rs.recipe.command_line import Parser
from timm_rs.study.picture import check_format
from timm_rs.study.transfer import Outcome, create_table, draw, markdown, notes, rows_of

EXAMPLE = """examples:
  python tools/transfer_table.py output/train/voc-* output/train/cifar-*
  python tools/transfer_table.py scratch=output/train/a/last.pth.tar digits=output/train/b/last.pth.tar
  python tools/transfer_table.py output/train/voc-* --csv transfer.csv --figure transfer.png

Each run needs its evaluation: python train.py --recipe RUN/args.yaml --eval RUN. The folder of a run stands for its
best checkpoint, which was chosen on the images it is measured on; RUN/last.pth.tar was not. Runs that differ in nothing
but their seed become a mean and a standard deviation.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder or checkpoint of a finished run; NAME=RUN says '
                        'what its initialisation is called [as the run or file that its weights came from]')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='also write a row per cell there')
    parser.add_argument('--figure', type=Path, metavar='FIG', help='draw it, too; ends with .png or .svg')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: Namespace) -> None:
    if args.figure:
        check_format(args.figure)
    table = create_table(map(outcome_of, args.runs))
    if args.csv:
        try:
            write_csv(args.csv, rows_of(table))
        except OSError as error:
            raise UserError(f'--csv {args.csv} cannot be written: {error.strerror}') from error
    if args.figure:
        draw(table, args.figure)
    print('\n'.join([*markdown(table), *('\n' + note for note in notes(table))]))


def outcome_of(word: str) -> Outcome:
    """Of RUN, or of NAME=RUN."""
    from timm_rs.training.outcome import read_outcome
    name, equals, path = word.partition('=')
    return read_outcome(Path(word)) if not equals or Path(word).exists() else read_outcome(Path(path), name)
