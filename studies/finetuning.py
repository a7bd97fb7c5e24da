"""Does it pay to start from other weights? A network for the digits 0 to 4 is fine-tuned on a few images of 5 to 9.

Each seed draws its own 10 images of each class, initial weights and order. Per seed:
  source      learns 0 to 4 from all their images, as in train_recipes/quickstart.yaml
  fine-tuned  starts from it, with the values of train_recipes/finetune.yaml
  frozen      the same with --freeze backbone
  layer-wise  the same with --layer-decay 0.7
  scratch     starts from random weights, with the same values
  longer      the same for five times the epochs
Started again, it goes on where it was stopped.

example:
  python studies/finetuning.py --seeds 5 --csv results/finetuning.csv
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
from timm_rs.files import read_csv, write_csv

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / 'train_recipes'
LABELS = 10  # images of each class to fine-tune on
DIGITS = ['--model', 'resnetrs', '--model-kwargs', 'depth=26', 'width=0.25', '--img-size', 64, '--crop-pct', 1.0,
          '--hflip', 0, '--aa', 'rand-m2-n1-tweights', '--scale', 0.6, 1.0, '--workers', 0, '--no-amp']
NETWORKS: dict[str, list[Any]] = {
    'fine-tuned': [], 'frozen': ['--freeze', 'backbone'], 'layer-wise': ['--layer-decay', 0.7], 'scratch': [],
    'longer': ['--epochs', 150]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5, metavar='N', help='[5]')
    parser.add_argument('--first-seed', type=int, default=0, metavar='S', help='[0]')
    parser.add_argument('--folder', type=Path, default=Path('output/finetuning'), metavar='D', help='for all runs')
    parser.add_argument('--csv', type=Path, default=None, metavar='FILE', help='rows are put there')
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        rows += run_seed(arguments.folder / str(seed), seed)
        if arguments.csv:
            write_csv(arguments.csv, rows)
    report(rows)


def run_seed(place: Path, seed: int) -> list[dict[str, Any]]:
    """Train the networks of one seed, those that are not trained yet, and give a row for each."""
    write_data(place / 'data', seed)

    def train(name: str, recipe: str, data: str, *options: Any) -> dict[str, Any]:
        run = place / name
        if not (run / 'done').exists():
            command = [ROOT / 'train.py', '--recipe', RECIPES / recipe, '--data-dir', place / 'data' / data, '--seed',
                       seed, '--output', place, '--experiment', name, '--resume', 'auto', *DIGITS, *options]
            if subprocess.run([sys.executable, *map(str, command)]).returncode:
                raise SystemExit(f'{name} of seed {seed} failed')
            (run / 'done').touch()
        last = [row for row in read_csv(run / 'summary.csv') if row['eval_top1']][-1]
        return dict(seed=seed, network=name, top1=float(last['eval_top1']))

    rows = [train('source', 'quickstart.yaml', 'source')]
    for name, options in NETWORKS.items():
        start = [] if name in ('scratch', 'longer') else ['--pretrained-path', place / 'source/last.pth.tar']
        rows.append(train(name, 'finetune.yaml', 'target', '--no-pretrained', *start, *options))
    return rows


def write_data(folder: Path, seed: int) -> None:
    """The digits 0 to 4 as source/, and 5 to 9 as target/ with `LABELS` images of each to train on, drawn by `seed`."""
    if folder.exists():
        return
    images = load_digits()
    rng, temporary = np.random.default_rng(seed), folder.with_suffix('.tmp')
    left = np.zeros(len(images.labels), bool)
    for label in range(5, 10):
        drawn = np.flatnonzero((images.labels == label) & ~images.is_validation)
        left[rng.permutation(drawn)[LABELS:]] = True
    for index in np.flatnonzero(~left):
        label = images.labels[index]
        place = temporary / ('source' if label < 5 else 'target') / (
            'validation' if images.is_validation[index] else 'train') / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.pixels[index]).save(place / f'{index:04}.png')
    temporary.rename(folder)


def report(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, and what each is ahead of `scratch` in pairs of one seed."""
    top1 = {name: [row['top1'] for row in rows if row['network'] == name] for name in ('source', *NETWORKS)}
    for name, values in top1.items():
        ahead = [one - other for one, other in zip(values, top1['scratch'], strict=True)]
        error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else float('nan')
        print(f'{name:<12}{statistics.mean(values):6.2f} ({min(values):.2f} to {max(values):.2f})   '
              f'ahead of scratch {statistics.mean(ahead):+.2f} ± {error:.2f}')


if __name__ == '__main__':
    main()
