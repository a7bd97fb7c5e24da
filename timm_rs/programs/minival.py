"""Write the file names of minival, the 2 % of the training images that hyper-parameters are chosen on."""
import os

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import atomic_write
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.knobs import Recipe

EXAMPLE = """example:
  python tools/minival.py imagenet --output minival.txt
  python tools/minival.py cache --dataset hfds/imagenet-1k

Training and validating on it needs no list: train.py --train-split train-minival --val-split minival
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('data_dir', metavar='D', help='dataset root with train/, or a folder or tar of class folders')
    parser.add_argument('--dataset', default='', metavar='NAME', help='as in train.py: empty for folders, or hfds/…')
    parser.add_argument('--output', default='minival.txt', metavar='FILE',
                        help='one name per line, sorted, below the folder that all training images share '
                             '[minival.txt]')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='another minival; train.py uses 0 [0]')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args.data_dir, args.dataset, args.output, args.seed)


def run(data_dir: str, dataset: str, output: str, seed: int) -> None:
    from timm_rs.data.datasets import create_datasets
    from timm_rs.data.minival import SOURCE_SPLIT, split_minival
    from timm_rs.data.samples import as_samples
    recipe = Recipe(data_dir=data_dir, dataset=dataset, train_split=SOURCE_SPLIT, val_split='')
    training, _, _ = create_datasets(recipe)
    samples = as_samples(training)
    minival, rest = split_minival(samples, seed)
    names = [os.path.normpath(samples.name(index)) for index in range(len(samples))]
    shared = os.path.commonpath(map(os.path.dirname, names))
    listed = sorted(os.path.relpath(names[index], shared or '.') for index in minival.indices)
    try:
        with atomic_write(output, encoding='utf-8', errors='surrogateescape') as file:
            file.writelines(f'{name}\n' for name in listed)
    except OSError as error:
        raise UserError(f'--output {output} cannot be written: {error.strerror or error}') from None
    held = len(set(minival.targets()))
    print(f'{output}: {len(minival)} images of {held} classes; {len(rest)} images remain for training')
