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

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from seeds import ROOT, ahead, by_network, call, draw_seeds, run_seeds, spread, study_parser, trained

from timm_rs.data.builtin import SOURCES, write_builtin
from timm_rs.data.pseudo_labels import array_path
from timm_rs.files import save_figure
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file

RECIPES = ROOT / 'train_recipes/semi'


def main() -> None:
    parser = study_parser(__doc__, 5, 'output/semi_supervised')
    parser.add_argument('--data', default='digits-10', help='built-in data with a pool: digits-10, fashion-mnist-20')
    parser.add_argument('--student-epochs', type=int, metavar='N', help='over the labelled images [the recipe\'s]')
    parser.add_argument('--min-confidence', default='0.3', metavar='P', help='[0.3]')
    report(run_seeds(parser, run_seed, draw))


def run_seed(arguments: Namespace, seed: int) -> list[dict[str, Any]]:
    """Train the networks of one seed, those that are not trained yet, and give a row for each."""
    place = arguments.folder / f'{arguments.data}-{seed}'
    place.mkdir(parents=True, exist_ok=True)
    data = write_builtin(arguments.data, place / 'data', seed)
    teacher, student = (Recipe(**read_file(RECIPES / f'quickstart_{name}.yaml')) for name in ('teacher', 'student'))
    student_epochs = arguments.student_epochs or student.epochs
    share = 1 + student.pseudo_ratio
    labels = place / 'labels'

    def train(name: str, epochs: int, recipe: str = 'teacher', *options: Any) -> dict[str, Any]:
        top1 = trained(place / name, '--recipe', RECIPES / f'quickstart_{recipe}.yaml', '--data-dir', data,
                       '--seed', seed, '--epochs', epochs, '--val-interval', epochs, '--workers', 0,
                       *arguments.options, *options)
        return dict(data=arguments.data, seed=seed, network=name, epochs=epochs, top1=top1)

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


def report(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, and what the student is ahead of each other network in pairs of one seed."""
    top1 = by_network(rows)
    for name, values in top1.items():
        print(f'{name:<14}{spread(values)}   student {ahead(top1["student"], values)}')


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axis = figure.subplots()
    draw_seeds(axis, by_network(rows), rows[0]['data'])
    axis.set_ylabel('top-1 (%)')
    save_figure(path, figure)


if __name__ == '__main__':
    main()
