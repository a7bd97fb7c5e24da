"""Do pseudo labels help? A teacher, its student, and networks that learn from the same few labels for as long.

Each seed draws its own labelled images, initial weights and order. Per seed:
  teacher        learns from the labelled images alone
  student        learns from them and from the pool with the teacher's labels
  labelled part  learns from the labelled images alone, in as many updates as the student
  all images     learns from the labelled images alone, and sees as many images as teacher and student together
Started again, it goes on where it was stopped. Other options go to train.py, for all of them.

example:
  python studies/semi_supervised.py --data digits-10 --seeds 5 --csv results/semi_supervised.csv
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from timm_rs.data.builtin import SOURCES, write_builtin
from timm_rs.data.pseudo_labels import array_path
from timm_rs.files import read_csv, save_figure, write_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / 'train_recipes/semi'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='digits-10', help='built-in data with a pool: digits-10, fashion-mnist-20')
    parser.add_argument('--seeds', type=int, default=5, metavar='N', help='[5]')
    parser.add_argument('--first-seed', type=int, default=0, metavar='S', help='[0]')
    parser.add_argument('--student-epochs', type=int, metavar='N', help='over the labelled images [the recipe\'s]')
    parser.add_argument('--min-confidence', default='0.3', metavar='P', help='[0.3]')
    parser.add_argument('--folder', type=Path, default=Path('output/semi_supervised'), metavar='D', help='for all runs')
    parser.add_argument('--csv', type=Path, default=None, metavar='FILE', help='rows are put there')
    arguments, arguments.options = parser.parse_known_args()
    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        rows += run_seed(arguments, seed)
        if arguments.csv:
            write_csv(arguments.csv, rows)
            draw(rows, arguments.csv.with_suffix('.png'))
    report(rows)


def run_seed(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train the networks of one seed, those that are not trained yet, and give a row for each."""
    place = arguments.folder / f'{arguments.data}-{seed}'
    place.mkdir(parents=True, exist_ok=True)
    data = write_builtin(arguments.data, place / 'data', seed)
    teacher, student = (Recipe(**read_file(RECIPES / f'quickstart_{name}.yaml')) for name in ('teacher', 'student'))
    student_epochs = arguments.student_epochs or student.epochs
    share = 1 + student.pseudo_ratio
    labels = place / 'labels'

    def train(name: str, epochs: int, recipe: str = 'teacher', *options: Any) -> dict[str, Any]:
        run = place / name
        if not (run / 'done').exists():
            call('train.py', '--recipe', RECIPES / f'quickstart_{recipe}.yaml', '--data-dir', data, '--seed', seed,
                 '--epochs', epochs, '--val-interval', epochs, '--output', place, '--experiment', name,
                 '--workers', 0, '--resume', 'auto', *arguments.options, *options)
            (run / 'done').touch()
        last = [row for row in read_csv(run / 'summary.csv') if row['eval_top1']][-1]
        return dict(data=arguments.data, seed=seed, network=name, epochs=epochs, top1=float(last['eval_top1']))

    rows = [train('teacher', teacher.epochs)]
    if not (labels / 'done').exists():  # `label` leaves a selection of its own
        call('tools/pseudo_label.py', 'label', data / 'pool', labels, '--teacher', place / 'teacher',
             '--exclude-like', data / 'validation', '--workers', 0)
        call('tools/pseudo_label.py', 'select', labels, '--min-confidence', arguments.min_confidence)
        (labels / 'done').touch()
    entries, ids = (np.load(array_path(labels, name)) for name in ('entries', 'ids'))
    load, _ = SOURCES[arguments.data.rpartition('-')[0]]
    truth = load().labels
    names = np.array([int(path.stem) for path in sorted((data / 'pool').iterdir())])
    rows.append(dict(rows[0], network='labels', top1=100 * np.mean(truth[names[entries]] == ids[:, 0])))
    rows.append(train('student', student_epochs, 'student', '--pseudo-dir', labels))
    rows.append(train('labelled part', student_epochs))
    rows.append(train('all images', teacher.epochs + share * student_epochs))
    return rows


def call(program: str, *options: Any) -> None:
    if subprocess.run([sys.executable, ROOT / program, *map(str, options)]).returncode:
        raise SystemExit(f'{program} failed')


def report(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, and what the student is ahead of each other network in pairs of one seed."""
    names = list(dict.fromkeys(row['network'] for row in rows))
    top1 = {name: [row['top1'] for row in rows if row['network'] == name] for name in names}
    for name in names:
        ahead = [one - other for one, other in zip(top1['student'], top1[name], strict=True)]
        error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else float('nan')
        print(f'{name:<14}{statistics.mean(top1[name]):6.2f} ({min(top1[name]):.2f} to {max(top1[name]):.2f})   '
              f'student {statistics.mean(ahead):+.2f} ± {error:.2f}')


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A line per seed through its networks, and the means."""
    from matplotlib.figure import Figure
    names = list(dict.fromkeys(row['network'] for row in rows))
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axis = figure.subplots()
    for seed in dict.fromkeys(row['seed'] for row in rows):
        axis.plot(names, [row['top1'] for row in rows if row['seed'] == seed], 'o-', color='#9a9a9a', linewidth=0.8)
    axis.plot(names, [statistics.mean(row['top1'] for row in rows if row['network'] == name) for name in names], 'D',
              color='#0072b2', markersize=9, label='mean')
    axis.set(ylabel='top-1 (%)', title=f'{rows[0]["data"]}: a line is one seed')
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(path, figure)


if __name__ == '__main__':
    main()
