"""Read and decode every image or video of a dataset, and list those that training would skip.

Exit status: 0 when all are good, 1 when some are bad, 2 when the data or the options cannot be used.
"""
import os
import sys
from pathlib import Path

from tqdm import tqdm

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser, add_knob
from timm_rs.recipe.knobs import FIELDS, Recipe
from timm_rs.recipe.reading import DEFAULTS, check_value

LIMITS = 'max_image_pixels', 'max_image_scans', 'max_image_seconds'  # as in train.py
EXAMPLE = """example:
  python tools/scan_dataset.py imagenet
  python tools/scan_dataset.py imagenet --split validation --workers 16 --output bad_samples.csv
  python tools/scan_dataset.py VOCdevkit --dataset voc --split train_aug
  python tools/scan_dataset.py VOCdevkit --dataset voc_boxes --split 2007_test
  python tools/scan_dataset.py my_photos --dataset tags
  python tools/scan_dataset.py kinetics --videos
  python tools/scan_dataset.py cache --dataset hfds/imagenet-1k --split train
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('data_dir', metavar='D', help='dataset root: with train/ and validation/, or class folders')
    parser.add_argument('--dataset', default='', metavar='NAME',
                        help='as in train.py: empty for folders, or hfds/…, or voc, voc_boxes, …, tags '
                             '(docs/transfer.md, docs/multilabel.md)')
    parser.add_argument('--videos', action='store_true', help='the data are videos, as for --task video of train.py')
    parser.add_argument('--split', metavar='S', help='only this split [train and validation, where there are such]')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, metavar='N', help='processes [all cores]')
    parser.add_argument('--output', metavar='FILE', help='also write a CSV there: name, reason')
    for name in LIMITS:
        add_knob(parser, name, FIELDS[name], getattr(DEFAULTS, name), Recipe)
    args = parser.parse_args(argv)
    with exit_on_user_error():
        if args.workers < 0:
            raise UserError(f'--workers {args.workers}: give 0 or more')
        if args.output and not Path(args.output).parent.is_dir():
            raise UserError(f'--output {args.output}: there is no folder {Path(args.output).parent}')
        limits = {name: check_value(name, value, 'command line')
                  for name, value in vars(args).items() if name in LIMITS}
        recipe = Recipe(data_dir=args.data_dir, dataset=args.dataset, workers=args.workers, **limits)
        if not run_scan(recipe, args.split, args.output, args.videos):
            raise SystemExit(1)


def run_scan(recipe: Recipe, split: str | None, output: str | None, are_videos: bool = False) -> bool:
    """Print and collect the bad samples of a split (None: of all there are), and say whether there are none."""
    from timm_rs.data.bad_samples import BadSamples
    from timm_rs.data.listing import summary
    from timm_rs.data.loader import num_workers
    from timm_rs.data.scanning import find_bad_images, open_splits
    from timm_rs.transforms.create import create_limits
    splits, missing = open_splits(recipe, split, are_videos)
    for error in missing:
        print(f'not scanned: {error}', file=sys.stderr)
    left_out = [row for samples in splits.values() for row in samples.left_out]
    bad = BadSamples(Path(output), sys.maxsize, resumed=False, left_out=left_out) if output else None
    num_bad = 0
    for name, reason in find_bad_images(
            splits, recipe.data_dir, num_workers(recipe.workers), create_limits(recipe), are_videos):
        num_bad += 1
        line = f'{name}: {reason}'.encode(errors='surrogateescape')  # names need not be UTF-8
        tqdm.write(line.decode(errors='backslashreplace'), file=sys.stdout)
        if bad is not None:
            bad.add(name, reason)
    print(f'{sum(map(len, splits.values()))} {"videos" if are_videos else "images"}, {num_bad} bad')
    for name, samples in splits.items():
        if samples.listed:
            print(samples.listed)
        if samples.left_out:
            print(f'left out of {name}: {summary(samples.left_out)}')
    return num_bad == 0
