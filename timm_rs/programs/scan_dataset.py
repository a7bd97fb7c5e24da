"""Read and decode every image of a dataset, and list those that training would skip.

Exit status: 0 when all are good, 1 when some are bad, 2 when the data or the options cannot be used.
"""
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timm_rs.data.bad_samples import BadSamples, problem_of, unlisted
from timm_rs.data.datasets import TRAIN_NAMES, VALIDATION_NAMES, open_split
from timm_rs.data.loader import num_workers
from timm_rs.data.samples import Samples, as_samples
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.progress import track
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.knobs import Recipe

EXAMPLE = """example:
  python tools/scan_dataset.py imagenet
  python tools/scan_dataset.py imagenet --split validation --workers 16 --output bad_samples.csv
  python tools/scan_dataset.py cache --dataset hfds/imagenet-1k --split train
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('data_dir', metavar='D', help='dataset root: with train/ and validation/, or class folders')
    parser.add_argument('--dataset', default='', metavar='NAME', help='as in train.py: empty for folders, or hfds/…')
    parser.add_argument('--split', metavar='S', help='only this split [train and validation, where there are such]')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, metavar='N', help='processes [all cores]')
    parser.add_argument('--output', metavar='FILE', help='also write a CSV there: name, reason')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        if args.workers < 0:
            raise UserError(f'--workers {args.workers}: give 0 or more')
        if args.output and not Path(args.output).parent.is_dir():
            raise UserError(f'--output {args.output}: there is no folder {Path(args.output).parent}')
        recipe = Recipe(data_dir=args.data_dir, dataset=args.dataset, workers=args.workers)
        bad = BadSamples(Path(args.output), sys.maxsize, resumed=False) if args.output else None
        if not scan(recipe, args.split, bad):
            raise SystemExit(1)


def scan(recipe: Recipe, split: str | None, bad: BadSamples | None) -> bool:
    """Print and collect the bad images of a split (None: of all there are), and say whether there are none."""
    num_images = num_bad = 0
    for name, samples in open_splits(recipe, split):
        num_images += len(samples)
        for image, reason in bad_ones(samples, recipe, name):
            num_bad += 1
            # Images in archives may have the same name in every split.
            label = image if image.startswith(str(recipe.data_dir)) else f'{name}: {image}'
            line = f'{label}: {reason}'.encode(errors='surrogateescape')  # names need not be UTF-8
            tqdm.write(line.decode(errors='backslashreplace'), file=sys.stdout)
            if bad is not None:
                bad.add(label, reason)
    print(f'{num_images} images, {num_bad} bad')
    return num_bad == 0


def open_splits(recipe: Recipe, split: str | None) -> list[tuple[str, Samples]]:
    """The samples of `split`; for None of training and validation, or of the data itself where it has no splits."""
    if split:
        return [(split, open_samples(recipe, split))]
    recipe = dataclasses.replace(recipe, val_split='')  # lets the data itself be the only split
    wanted = {'train': TRAIN_NAMES, 'validation': VALIDATION_NAMES}
    if recipe.dataset in ('', 'torch/image_folder', 'torch/folder'):
        root = Path(str(recipe.data_dir))
        present = [split for split, names in wanted.items()
                   if any((root / (name + suffix)).exists() for name in names for suffix in ('', '.tar'))]
        return [(split, open_samples(recipe, split)) for split in present or ['train']]
    opened: list[tuple[str, Samples]] = []
    errors: list[UserError] = []
    for split in wanted:
        try:
            opened.append((split, open_samples(recipe, split)))
        except UserError as error:
            errors.append(error)
    if not opened:
        raise errors[0]
    for missing in errors:
        print(f'not scanned: {missing}', file=sys.stderr)
    return opened


def open_samples(recipe: Recipe, split: str) -> Samples:
    return as_samples(open_split(recipe, split, is_training=False))


def bad_ones(samples: Samples, recipe: Recipe, split: str) -> Iterator[tuple[str, str]]:
    """Name and reason of every bad image, in the dataset's order; then what never became an image of it."""
    loader = DataLoader(Problems(samples), batch_size=32, num_workers=num_workers(recipe), collate_fn=list)
    problems = (problem for batch in loader for problem in batch)
    for index, problem in enumerate(track(problems, f'scanning {split}', total=len(samples))):
        if problem:
            yield samples.name(index), problem
    yield from unlisted(samples)


class Problems(Dataset[str | None]):
    """What is wrong with each image; None where nothing is."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> str | None:
        return problem_of(self.samples, index)
