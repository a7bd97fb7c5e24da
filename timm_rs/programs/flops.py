"""Print parameters, multiply-adds, FLOPs (2 x multiply-adds, as the paper) and activations of models."""
import argparse
import contextlib
import csv
import difflib
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import atomic_write
from timm_rs.recipe.command_line import Parser

if TYPE_CHECKING:
    from timm_rs.models.complexity import Complexity

COLUMNS = ('model', 'img_size', 'params_m', 'gmacs', 'gflops', 'macts')
EXAMPLE = """example:
  python tools/flops.py                                        the paper's 11 + 8 points (Table 7, Figure 5)
  python tools/flops.py resnetrs_50 resnet50 --img-size 224 --markdown
  python tools/flops.py resnetrs --depth 26 --width 0.5 --csv flops.csv
  python tools/flops.py resnet3d_50 resnetrs3d_50 --num-frames 16     networks for clips
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('models', nargs='*', metavar='MODEL',
                        help="timm model, with or without tag (default: the paper's points)")
    parser.add_argument('--img-size', type=int, metavar='N', help='pixels of a side (default: of the model)')
    parser.add_argument('--num-frames', type=int, metavar='N', help='frames, for networks that take clips [32]')
    parser.add_argument('--width', type=float, metavar='W', help='channel multiplier; only with resnetrs, resnetrs3d')
    parser.add_argument('--depth', type=int, metavar='D', help='depth; only with resnetrs, resnetrs3d')
    parser.add_argument('--csv', metavar='FILE', help='also write the table there')
    parser.add_argument('--markdown', action='store_true', help='print a GitHub table')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: argparse.Namespace) -> None:
    from timm_rs.models import PAPER_POINTS
    size = {name: value for name in ('depth', 'width') if (value := getattr(args, name)) is not None}
    names = args.models or list(PAPER_POINTS)
    if args.img_size is not None and args.img_size < 1:
        raise UserError(f'--img-size {args.img_size}: give a positive number of pixels')
    if size and names not in (['resnetrs'], ['resnetrs3d']):
        options = ' '.join(f'--{name} {value}' for name, value in size.items())
        raise UserError(f'{options}: only for resnetrs or resnetrs3d, as in: tools/flops.py resnetrs {options}')
    check_names(names)
    with open_csv(args.csv) as file:
        rows = []
        for name in tqdm(names, desc='counting', leave=False, disable=None):  # a bar only on a terminal
            cost, img_size = count(name, args.img_size, size, args.num_frames)
            label = ' '.join([name, *(f'{key}={value}' for key, value in size.items())])
            rows.append((label, img_size, cost.params / 1e6, cost.macs / 1e9, 2 * cost.macs / 1e9,
                         cost.activations / 1e6))
            if cost.uncounted:
                ops = ', '.join(f'{op} x{calls}' for op, calls in sorted(cost.uncounted.items()))
                tqdm.write(f'{label}: not counted: {ops}', file=sys.stderr)
        table = [[cell if isinstance(cell, str) else f'{cell:.3f}' for cell in row] for row in rows]
        if file:
            csv.writer(file, lineterminator='\n').writerows([COLUMNS, *table])
    print_table(table, args.markdown)


def check_names(names: list[str]) -> None:
    import timm
    known = set(timm.list_models()) | set(timm.list_models(include_tags=True))
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=3)
            hint = f'the nearest are {", ".join(nearest)}' if nearest else 'timm.list_models() has the names'
            raise UserError(f"unknown model '{name}': {hint}")


def open_csv(path: str | None) -> contextlib.AbstractContextManager[Any]:
    """Opened before the counting, so that a wrong path costs nothing."""
    return contextlib.nullcontext() if path is None else csv_or_user_error(path)


@contextlib.contextmanager
def csv_or_user_error(path: str) -> Iterator[IO[Any]]:
    if os.path.isdir(path):
        raise UserError(f'--csv {path}: is a folder; give a file in it')
    try:
        with atomic_write(path, newline='') as file:
            yield file
    except OSError as error:
        raise UserError(f'--csv {path}: {error.strerror}') from None


def count(name: str, img_size: int | None, size: dict[str, Any], num_frames: int | None) -> 'tuple[Complexity, str]':
    """The cost of model `name`, and the size of the images or clips that it was counted at."""
    import timm
    import torch

    from timm_rs.models.complexity import measure_complexity
    takes_clips = timm.models.is_model_in_modules(name.partition('.')[0], ['resnet_rs_3d'])
    cfg = timm.models.get_pretrained_cfg(name)
    fixed = {'img_size': img_size} if img_size and cfg and cfg.fixed_input_size else {}
    try:
        with torch.device('meta') if takes_clips else contextlib.nullcontext():  # computing would take minutes
            model = timm.create_model(name, **fixed, **size)
        height, width = model.pretrained_cfg['input_size'][1:] if img_size is None else (img_size, img_size)
        cost = measure_complexity(model, (height, width), num_frames=num_frames)
        frames = f'{num_frames or model.num_frames}x' if takes_clips else ''
        return cost, frames + (str(height) if height == width and not frames else f'{height}x{width}')
    except (ArithmeticError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise UserError(f'{name}{f" at {img_size} pixels" if img_size else ""}: {reason[0]}') from None


def print_table(table: list[list[str]], markdown: bool) -> None:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *table, strict=True)]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    for cells in [COLUMNS, *([rule] if markdown else []), *table]:
        first, *numbers = (f'{cell:<{width}}' if column == 0 else f'{cell:>{width}}'
                           for column, (cell, width) in enumerate(zip(cells, widths, strict=True)))
        print(f'| {" | ".join([first, *numbers])} |' if markdown else '  '.join([first, *numbers]))
