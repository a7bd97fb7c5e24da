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

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timm_rs.data.builtin import load_digits
from timm_rs.files import read_csv, save_figure, write_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / 'train_recipes'
EPOCHS = Recipe(**read_file(RECIPES / 'finetune.yaml')).epochs
DIGITS = ['--model', 'resnetrs', '--model-kwargs', 'depth=26', 'width=0.25', '--img-size', 64, '--crop-pct', 1.0,
          '--hflip', 0, '--aa', 'rand-m2-n1-tweights', '--scale', 0.6, 1.0, '--workers', 0, '--no-amp']
NETWORKS: dict[str, list[Any]] = {
    'fine-tuned': [], 'frozen': ['--freeze', 'backbone'], 'layer-wise': ['--layer-decay', 0.7], 'scratch': [],
    'longer': ['--epochs', 5 * EPOCHS]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, nargs='+', default=[10, 40], metavar='N',
                        help='of each class to fine-tune on [10 40]')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='[3]')
    parser.add_argument('--first-seed', type=int, default=0, metavar='S', help='[0]')
    parser.add_argument('--folder', type=Path, default=Path('output/finetuning'), metavar='D', help='for all runs')
    parser.add_argument('--csv', type=Path, default=None, metavar='FILE', help='rows are put there')
    arguments, arguments.options = parser.parse_known_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        rows += run_seed(arguments, seed)
        if arguments.csv:
            write_csv(arguments.csv, rows)
            draw(rows, arguments.csv.with_suffix('.png'))
    report(rows)


def run_seed(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train the networks of one seed, those that are not trained yet, and give a row for each."""
    place = arguments.folder / str(seed)

    def train(name: str, images: int, recipe: str, data: Path, *options: Any) -> dict[str, Any]:
        experiment = f'{name} {images}' if images else name
        run = place / experiment
        if not (run / 'done').exists():
            command = [ROOT / 'train.py', '--recipe', RECIPES / recipe, '--data-dir', data, '--seed', seed, '--output',
                       place, '--experiment', experiment, '--resume', 'auto', *DIGITS, *options]
            if subprocess.run([sys.executable, *map(str, command)]).returncode:
                raise SystemExit(f'{experiment} of seed {seed} failed')
            (run / 'done').touch()
        last = [row for row in read_csv(run / 'summary.csv') if row['eval_top1']][-1]
        return dict(seed=seed, network=name, images=5 * images, top1=float(last['eval_top1']))

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
    for images in dict.fromkeys(row['images'] for row in rows):
        top1 = by_network(rows, images)
        print(f'{images} images' if images else 'source')
        for name, values in top1.items():
            line = f'  {name:<12}{statistics.mean(values):6.2f} ({min(values):.2f} to {max(values):.2f})'
            if images:
                ahead = [one - other for one, other in zip(values, top1['scratch'], strict=True)]
                error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else float('nan')
                line += f'   ahead of scratch {statistics.mean(ahead):+.2f} ± {error:.2f}'
            print(line)


def by_network(rows: list[dict[str, Any]], images: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row['images'] == images:
            found.setdefault(row['network'], []).append(row['top1'])
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each number of images: a line per seed through its networks, and the means."""
    from matplotlib.figure import Figure
    counts = [images for images in dict.fromkeys(row['images'] for row in rows) if images]
    figure = Figure(figsize=(5.5 * len(counts), 4), layout='constrained')
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, images in zip(axes, counts, strict=True):
        top1 = by_network(rows, images)
        for values in zip(*top1.values(), strict=True):
            axis.plot([*top1], values, 'o-', color='#9a9a9a', linewidth=0.8)
        axis.plot([*top1], [statistics.mean(values) for values in top1.values()], 'D', color='#0072b2', markersize=9,
                  label='mean')
        axis.set(title=f'{images} images of 5 classes: a line is one seed')
        axis.grid(alpha=0.3)
        axis.legend(loc='lower left')
    axes[0].set_ylabel('top-1 (%)')
    save_figure(path, figure)


if __name__ == '__main__':
    main()
