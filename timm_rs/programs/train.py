"""Train, or evaluate, an image classifier, or a network for segmentation or depth, from a recipe.

examples:
  python train.py --recipe train_recipes/quickstart.yaml
  python train.py --recipe train_recipes/rs50.yaml --data-dir imagenet
  python train.py --recipe train_recipes/rs50.yaml --show
  python train.py --recipe train_recipes/rs50.yaml --data-dir imagenet --eval output/train/run/model_best.pth.tar
  torchrun --nproc-per-node 8 train.py --recipe train_recipes/rs350.yaml --data-dir imagenet \\
      --experiment rs350 --resume auto
"""

import dataclasses
import os
from pathlib import Path

from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.recipe.reading import to_yaml
from timm_rs.tasks import add_task_arguments


def main(argv: list[str] | None = None) -> None:
    parser = Parser(usage='%(prog)s --recipe FILE [--data-dir FOLDER] [--OPTION VALUE ...]', description=__doc__)
    parser.add_argument('data', nargs='?', metavar='FOLDER', help='the same as --data-dir, as in timm')
    parser.add_argument('--show', action='store_true', help='print every effective value and its source, then exit')
    parser.add_argument('--eval', metavar='CHECKPOINT', help='evaluate a checkpoint, or the best of a folder of a run '
                        '(its EMA, if any), and exit')
    parser.add_argument('--eval-output', metavar='FOLDER', help='where --eval writes its JSON, and in NAME.eval/ what '
                        'the model says of each image, tables and pictures of its mistakes [beside the checkpoint]')
    parser.add_argument('--local-rank', '--local_rank', type=int, metavar='N',
                        help="ignored: torchrun's environment says it")
    add_recipe_arguments(parser)
    add_task_arguments(parser, argv)
    arguments = parser.parse_args(argv)
    if arguments.data is not None:
        if getattr(arguments, 'data_dir', arguments.data) != arguments.data:
            parser.error(f'the data are given twice: {arguments.data} and --data-dir {arguments.data_dir}')
        arguments.data_dir = arguments.data
    recipe, sources = resolve(arguments)

    from timm_rs.training.train import create_run_task, open_device, run_evaluation, run_training
    recipe, task = create_run_task(recipe, sources)
    if arguments.show:
        print(to_yaml(recipe, sources), end='')
        return

    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) and recipe.experiment and not recipe.resume:
        recipe = dataclasses.replace(recipe, resume='auto')  # torchrun has started the processes of this run again
    with open_device(recipe, sources) as device:
        if arguments.eval is not None:
            run_evaluation(Path(arguments.eval), recipe, task, device, arguments.eval_output)
        else:
            run_training(recipe, task, device)
