"""Label images without labels by a trained model, and select which of them another model learns from.

`label` may be stopped at any moment, started again, and run by several processes at once: the labels are the same.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser, at_least
from timm_rs.tasks import check_of_images, find_task

MIN_CONFIDENCE = 0.3  # Noisy Student's
LABEL_EXAMPLE = """example:
  python tools/pseudo_label.py label photos labels --teacher output/train/teacher --exclude-like imagenet/validation
"""
SELECT_EXAMPLE = """example:
  python tools/pseudo_label.py select labels --min-confidence 0.3 --per-class 130000
"""
EXAMPLE = """examples:
  python tools/pseudo_label.py label photos labels --teacher output/train/teacher
  python tools/pseudo_label.py select labels --min-confidence 0.6 --per-class 1000
  python train.py --recipe train_recipes/semi/rs152_i224_pseudo.yaml --data-dir imagenet --pseudo-dir labels
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='tools/pseudo_label.py', description=__doc__, epilog=EXAMPLE)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, words, example, add in (
            ('label', 'what a teacher says of each image of a pool', LABEL_EXAMPLE, _add_label),
            ('select', 'those labels that training is to believe', SELECT_EXAMPLE, _add_select)):
        add(commands.add_parser(name, help=words, description=words, epilog=example))
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        run_label(arguments) if arguments.command == 'label' else run_select(arguments)


def _add_label(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pool', metavar='POOL', help='images in a folder, flat or nested, tar files, or hfds/… and kin')
    parser.add_argument('folder', type=Path, metavar='OUT', help='for the labels')
    parser.add_argument('--teacher', required=True, metavar='MODEL', help="a run, a checkpoint, or a name of timm's")
    parser.add_argument('--top-k', type=at_least(1), default=16, metavar='N', help='classes kept of each image [16]')
    parser.add_argument('--exclude-like', nargs='+', default=[], metavar='VALIDATION',
                        help='find the images of these folders in the pool, also re-encoded or flipped')
    parser.add_argument('--exclude-minival', nargs='+', default=[], metavar='DATA',
                        help='and those of minival in the training split of this data')
    parser.add_argument('--data-dir', metavar='D', help="where one of timm's datasets is")
    parser.add_argument('--split', default='train', metavar='S', help='of such a dataset [train]')
    parser.add_argument('--img-size', type=at_least(1, 16384), metavar='N', help='pixels [the teacher\'s own]')
    parser.add_argument('-b', '--batch-size', type=at_least(1), default=64, metavar='N', help='images at a time [64]')
    parser.add_argument('-j', '--workers', type=at_least(0), default=4, metavar='N', help='processes that decode [4]')
    parser.add_argument('--device', default='cuda', metavar='NAME', help='cuda or cpu [cuda where there is one]')
    parser.add_argument('--amp-dtype', choices=('bfloat16', 'float16'), help='mixed precision [float32]')


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', type=Path, metavar='OUT', help='with the labels')
    parser.add_argument('--min-confidence', type=float, default=MIN_CONFIDENCE, metavar='P',
                        help=f'of the likeliest class [{MIN_CONFIDENCE}]')
    parser.add_argument('--per-class', type=at_least(1), metavar='N',
                        help='exactly so many of each class: the surest, or copies where there are too few [all]')
    parser.add_argument('--seed', type=at_least(0), default=0, metavar='N', help='of what is drawn [0]')
    parser.add_argument('--keep-leaks', action='store_true', help='also validation images that are in the pool')


def run_label(arguments: argparse.Namespace) -> None:
    import torch

    from timm_rs.data.pool import open_pool
    from timm_rs.data.pseudo_labels import SELECTION
    from timm_rs.device import create_device
    from timm_rs.inference.source import open_model
    from timm_rs.labelling.label import describe, label_pool, open_excluded
    from timm_rs.labelling.teacher import Teacher
    source = open_model(arguments.teacher, pretrained=True, img_size=arguments.img_size)
    check_of_images(source.recipe.task, 'pseudo-labelling')
    task = find_task(source.recipe.task)
    if task.is_of_tags:
        raise UserError(f'{source.name} tells any number of classes per image, and pseudo labels are of one each: take '
                        'a classifier')
    if task.is_of_videos:
        raise UserError(f'{source.name} takes clips of videos, and pools are of images: take a network for images')
    device = create_device(arguments.device, fall_back=arguments.device == 'cuda')
    teacher = Teacher(source, device, arguments.batch_size, arguments.workers,
                      getattr(torch, arguments.amp_dtype) if arguments.amp_dtype else None)
    pool, *places = map(in_full, (arguments.pool, *arguments.exclude_like))
    samples = open_pool(pool, arguments.data_dir, arguments.split)
    if samples.listed:
        print(samples.listed)
    excluded = open_excluded(places, arguments.exclude_minival)
    manifest = describe(teacher, samples, pool, arguments.data_dir, arguments.split, arguments.top_k, excluded)
    totals = label_pool(teacher, samples, arguments.folder, manifest, [images for _, images in excluded])
    print(f'{len(samples):,} images labelled by {source.name}, {totals.bad:,} bad, {totals.leaks:,} of the excluded '
          f'data; all in {arguments.folder}')
    if not (arguments.folder / SELECTION).exists():
        print(f'selected from it, unless you select otherwise (tools/pseudo_label.py select {arguments.folder} …):')
        if not select_and_show(arguments.folder):
            print('warning: no image is sure enough; select with a lower --min-confidence')


def in_full(place: str) -> str:
    """The path from the root on, so that labels find their pool from anywhere; names that are no paths as they are."""
    return os.path.abspath(place) if os.path.exists(place) else place


def run_select(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.min_confidence <= 1:
        raise UserError(f'--min-confidence must be between 0 and 1, got {arguments.min_confidence}')
    if not select_and_show(arguments.folder, arguments.min_confidence, arguments.per_class, arguments.seed,
                           arguments.keep_leaks):
        raise UserError(f'no image is sure enough: lower --min-confidence {arguments.min_confidence}')


def select_and_show(folder: Path, min_confidence: float = MIN_CONFIDENCE, per_class: int | None = None, seed: int = 0,
                    keep_leaks: bool = False) -> int:
    """Select, show what that gives of each class, and return how many entries it has."""
    from timm_rs.labelling.selection import select, warnings_of
    rows = select(folder, min_confidence, per_class, seed, keep_leaks)
    print_table(rows)
    for warning in warnings_of(rows):
        print(f'warning: {warning}')
    total = sum(row['kept'] + row['copies'] for row in rows)
    print(f'{total:,} entries of {sum(row["kept"] for row in rows):,} images; table and plot: {folder}/selection.csv, '
          '.png')
    if total:
        print(f'next: train.py … --pseudo-dir {folder}')
    return total


def print_table(rows: list[dict[str, Any]], limit: int = 50) -> None:
    """The classes, the largest first; those in the middle of more than `limit` are not shown."""
    rows = sorted(rows, key=lambda row: -row['count'])
    shown = rows if len(rows) <= limit else [*rows[:limit // 2], None, *rows[-(limit // 2):]]
    width = max(len(str(row['name'])[:40]) for row in rows)
    print(f'{"class":<{width}} {"count":>9} {"kept":>9} {"copies":>9} {"lowest":>7} {"mean":>6}')
    for row in shown:
        if row is None:
            print(f'… {len(rows) - limit} classes more in selection.csv')
            continue
        print(f'{str(row["name"])[:40]:<{width}} {row["count"]:>9,} {row["kept"]:>9,} {row["copies"]:>9,} '
              f'{row["threshold"]:>7.3f} {row["mean_confidence"]:>6.3f}')
