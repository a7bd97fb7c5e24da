"""Does it pay to start from other weights? A network for the digits 0 to 4 is fine-tuned on a few images of 5 to 9.

Each seed draws its own images of each class, initial weights and order. Per seed:
  source      learns 0 to 4 from all their images, as in train_recipes/quickstart.yaml
and for each number of images
  fine-tuned  starts from it, with the values of train_recipes/finetune.yaml
  frozen      the same with --freeze backbone
  layer-wise  the same with --layer-decay 0.7
  scratch     starts from random weights, with the same values
  longer      the same for five times the epochs
Started again, it goes on where it was stopped. Other options go to train.py, for all but source.

example:
  python studies/finetuning.py --seeds 3 --csv results/finetuning.csv
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from seeds import ROOT, ahead, by_network, draw_seeds, run_seeds, spread, study_parser, trained

from timm_rs.data.builtin import load_digits
from timm_rs.files import save_figure
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file

RECIPES = ROOT / 'train_recipes'
EPOCHS = Recipe(**read_file(RECIPES / 'finetune.yaml')).epochs
DIGITS = ['--model', 'resnetrs', '--model-kwargs', 'depth=26', 'width=0.25', '--img-size', 64, '--crop-pct', 1.0,
          '--hflip', 0, '--aa', 'rand-m2-n1-tweights', '--scale', 0.6, 1.0, '--workers', 0, '--no-amp']
NETWORKS: dict[str, list[Any]] = {
    'fine-tuned': [], 'frozen': ['--freeze', 'backbone'], 'layer-wise': ['--layer-decay', 0.7], 'scratch': [],
    'longer': ['--epochs', 5 * EPOCHS]}


def main() -> None:
    parser = study_parser(__doc__, 3, 'output/finetuning')
    parser.add_argument('--images', type=int, nargs='+', default=[10, 40], metavar='N',
                        help='of each class to fine-tune on [10 40]')
    report(run_seeds(parser, run_seed, draw))


def run_seed(arguments: Namespace, seed: int) -> list[dict[str, Any]]:
    """Train the networks of one seed, those that are not trained yet, and give a row for each."""
    place = arguments.folder / str(seed)

    def train(name: str, images: int, recipe: str, data: Path, *options: Any) -> dict[str, Any]:
        top1 = trained(place / (f'{name} {images}' if images else name), '--recipe', RECIPES / recipe,
                       '--data-dir', data, '--seed', seed, *DIGITS, *options)
        return dict(seed=seed, network=name, images=5 * images, top1=top1)

    rows = [train('source', 0, 'quickstart.yaml', write_data(place / 'source-data', range(5), None, seed))]
    for images in arguments.images:
        data = write_data(place / f'data-{images}', range(5, 10), images, seed)
        for name, own in NETWORKS.items():
            start = [] if name in ('scratch', 'longer') else ['--pretrained-path', place / 'source/last.pth.tar']
            rows.append(train(name, images, 'finetune.yaml', data, '--no-pretrained', *start, *own, *arguments.options))
    return rows


def write_data(folder: Path, classes: range, per_class: int | None, seed: int) -> Path:
    """Write the digits of these classes, with `per_class` images of each to train on, drawn by `seed`; None: all."""
    if folder.exists():
        return folder
    images = load_digits()
    rng, temporary = np.random.default_rng(seed), folder.with_suffix('.tmp')
    for label in classes:
        for split, is_in in (('validation', images.is_validation), ('train', ~images.is_validation)):
            drawn = rng.permutation(np.flatnonzero((images.labels == label) & is_in))
            (temporary / split / str(label)).mkdir(parents=True, exist_ok=True)
            for index in drawn[:per_class] if split == 'train' else drawn:
                Image.fromarray(images.pixels[index]).save(temporary / split / str(label) / f'{index:04}.png')
    return temporary.rename(folder)


def report(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, and what each is ahead of `scratch` in pairs of one seed."""
    for images, top1 in by_images(rows).items():
        print(f'{images} images' if images else 'source')
        for name, values in top1.items():
            pairs = f'   ahead of scratch {ahead(values, top1["scratch"])}' if images else ''
            print(f'  {name:<12}{spread(values)}{pairs}')


def by_images(rows: list[dict[str, Any]]) -> dict[int, dict[str, list[float]]]:
    return {images: by_network([row for row in rows if row['images'] == images])
            for images in dict.fromkeys(row['images'] for row in rows)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each number of images."""
    from matplotlib.figure import Figure
    panels = {images: top1 for images, top1 in by_images(rows).items() if images}
    figure = Figure(figsize=(5.5 * len(panels), 4), layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (images, top1) in zip(axes, panels.items(), strict=True):
        draw_seeds(axis, top1, f'{images} images of 5 classes')
    axes[0].set_ylabel('top-1 (%)')
    save_figure(path, figure)


if __name__ == '__main__':
    main()
