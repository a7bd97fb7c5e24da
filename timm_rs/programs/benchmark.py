"""Measure speed and memory here: candidates in turn, medians and spreads, rows with provenance.

examples:
  python tools/benchmark.py train --table3 --device cuda --resume
  python tools/benchmark.py train --table3 --device cpu --start-batch-size 4 --rounds 3
  python tools/benchmark.py train --models tf_efficientnet_b0@224 resnetrs_50@160 --batch-size 8 --images 16
  python tools/benchmark.py train --models resnetrs_50@160 --setups timm channels_last+fused channels_last+bf16+compile
  python tools/benchmark.py train --table3-and-7 --precision bf16 --images 256 --rounds 3 --resume
  python tools/benchmark.py train --models resnet3d_50@16x224 resnetrs3d_50@16x224 --batch-size 8
  python tools/benchmark.py infer --table7 --device cuda --precision bf16 --resume
  python tools/benchmark.py memory --table3 --precision bf16
  python tools/benchmark.py loader --recipe train_recipes/rs50.yaml
  python tools/benchmark.py loader --recipe train_recipes/rs152_i224.yaml --data-dir imagenet --workers 8
  python tools/benchmark.py loader --recipe train_recipes/k400_rs3d50.yaml --csv results/clips.csv
  python tools/benchmark.py startup --images 1000 100000 400000 --folder /dev/shm --csv results/startup.csv
"""

import argparse
import re
from pathlib import Path
from typing import Any

from timm_rs.benchmark.points import (
    BOTH_TABLES,
    FIGURE_5,
    PAPERS_BATCH_SIZE,
    PAPERS_IMAGES,
    PARTS,
    TABLE_3,
    TABLE_7,
)
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import append_rows, check_writable
from timm_rs.inference.options import BACKENDS
from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import add_task_arguments, find_task


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    loader = commands.add_parser('loader', help='the data loader beside timm\'s: CPU time and images per second')
    loader.add_argument('--images', type=int, help='images, or clips of videos, per turn, in several epochs if need be '
                        '[2048 images, 32 clips]')
    loader.add_argument('--rounds', type=int, default=7, help='turns of each loader that count [7]')
    loader.add_argument('--no-pack', action='store_true', help='leave out packed shards of images')
    loader.add_argument('--csv', type=Path, help='add the rows to this file, e.g. results/loader.csv')
    add_recipe_arguments(loader)
    add_task_arguments(loader, argv)
    startup = commands.add_parser('startup', help='folders of many images: time to list them, memory of the processes')
    startup.add_argument('--images', type=int, nargs='+', default=[1000, 100_000], metavar='N',
                         help='empty files in a folder; several folders are measured one after the other [1000 100000]')
    startup.add_argument('--folders', type=int, default=1000, help='that they lie in, one for each class [1000]')
    startup.add_argument('--workers', type=int, default=2, help='processes that read all of them [2]')
    startup.add_argument('--rounds', type=int, default=3, help='turns that count, after one that does not [3]')
    startup.add_argument('--folder', type=Path, help='make them there, for as long as it takes [where the system has '
                         'its temporary files]')
    startup.add_argument('--csv', type=Path, help='add the rows to this file, e.g. results/startup.csv')
    for work, words in (('train', 'training steps: time, images per second and peak memory'),
                        ('infer', 'forward passes: the same, by back-end'),
                        ('memory', 'peak memory of training steps, without the clock')):
        add_model_arguments(commands.add_parser(work, help=words, description=words), work)
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        if arguments.command == 'loader':
            recipe, _ = resolve(arguments)
            run_loader_command(recipe, arguments)
        elif arguments.command == 'startup':
            run_startup_command(arguments)
        else:
            benchmark_models(arguments)


def add_model_arguments(parser: argparse.ArgumentParser, work: str) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--models', nargs='+', metavar='NAME[@[FRAMESx]SIZE]',
                       help='timm models, in turn; ratios are to the first')
    which.add_argument('--table3', action='store_const', const=TABLE_3, dest='groups', help='the pairs of Table 3')
    which.add_argument('--table7', action='store_const', const=TABLE_7, dest='groups',
                       help='all models of Table 7, each ResNet-RS beside the EfficientNet of about its accuracy')
    which.add_argument('--table3-and-7', action='store_const', const=BOTH_TABLES, dest='groups',
                       help='both, those with pairs of equal accuracy first')
    which.add_argument('--figure5', action='store_const', const=FIGURE_5, dest='groups',
                       help='EfficientNet-RS beside EfficientNet')
    if work == 'infer':
        parser.add_argument('--backends', nargs='+', action='append', dest='setups', metavar='NAME',
                            help=f'of {", ".join(BACKENDS)} [all of --precision that are here, but compiled ones]; '
                            'given again, those are measured after these, in turns of their own')
    else:
        parser.add_argument('--setups', nargs='+', action='append', metavar='PART+PART',
                            help=f'made of {", ".join(PARTS)}; timm is the loop of its train.py [channels_last]; '
                            'given again, those are measured after these, in turns of their own')
        parser.add_argument('--recipe', default='', metavar='FILE',
                            help='take optimizer, average and regularisers of the step from this recipe [SGD for '
                            'ResNets, RMSProp for EfficientNets, with averaging]')
    parser.add_argument('--precision', choices=('fp32', 'bf16', *(['int8'] if work == 'infer' else [])),
                        default='fp32', help='of what is measured [fp32]')
    parser.add_argument('--device', metavar='D', help='cuda, cuda:N or cpu [cuda where there is one]')
    parser.add_argument('--batch-size', default='auto', metavar='N|auto',
                        help='auto: halved until it fits into memory, as in the paper [auto]')
    parser.add_argument('--start-batch-size', type=int, default=PAPERS_BATCH_SIZE, metavar='N',
                        help=f'where auto begins [{PAPERS_BATCH_SIZE}]')
    parser.add_argument('--images', type=int, metavar='N', help='at least so many per turn; 0 for one batch '
                        f'[{PAPERS_IMAGES} as in the paper, on a CPU 0]')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each that count, after one that does not [5]')
    parser.add_argument('--csv', type=Path, default=Path(f'results/{work}.csv'), help='rows are added there '
                        f'[results/{work}.csv]')
    parser.add_argument('--resume', action='store_true', help='leave out what has its rows in the CSV already')


def benchmark_models(arguments: Any) -> None:
    import torch

    from timm_rs.benchmark.models import (
        Protocol,
        inference_setups,
        measure_models,
        model_table,
        remaining,
        training_setups,
    )
    device, images = arguments.device, arguments.images
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if images is None:
        images = PAPERS_IMAGES if device.startswith('cuda') else 0
    if not re.fullmatch(r'cpu|cuda(:\d+)?', device):
        raise UserError(f'unknown device {device}: use cpu, cuda or cuda:N')
    search = arguments.batch_size == 'auto'
    batch_size = str(arguments.start_batch_size if search else arguments.batch_size)
    if not batch_size.isdigit() or min(int(batch_size), arguments.rounds) < 1 or images < 0:
        raise UserError('--batch-size (or auto), --start-batch-size and --rounds must be at least 1, --images 0')
    groups = arguments.groups or [list(dict.fromkeys(
        point if '@' in point else f'{point}@{default_size(point)}' for point in arguments.models))]
    unmeasured, warnings, asked = [], [], 0
    for names in arguments.setups or [None]:
        setups = (inference_setups(names, arguments.precision, device) if arguments.command == 'infer'
                  else training_setups(names, arguments.precision))
        protocol = Protocol(arguments.command, setups, int(batch_size), search, images, arguments.rounds,
                            device, getattr(arguments, 'recipe', ''))
        left = remaining(groups, protocol, arguments.csv if arguments.resume else None)
        unmeasured += [(group, protocol) for group in left]
        warnings.append(protocol.warning())
        asked += len(groups)
    if len(unmeasured) < asked:
        print(f'{asked - len(unmeasured)} of {asked} groups are in {arguments.csv} already')
    check_writable(arguments.csv)
    if any(warnings):
        print(max(warnings))
    for rows in measure_models(unmeasured):
        append_rows(arguments.csv, rows)
        print(model_table(rows), flush=True)


def default_size(model: str) -> int:
    """Pixels at which timm's configuration of `model` is trained."""
    import timm

    from timm_rs.benchmark.step_process import check_model
    check_model(model)
    return int(timm.get_pretrained_cfg(model).input_size[-1])


def run_loader_command(recipe: Recipe, arguments: Any) -> None:
    task = find_task(recipe.task)
    noun, usual = ('clips', 32) if task.is_of_videos else ('images', 2048)
    images = usual if arguments.images is None else arguments.images
    if min(images, arguments.rounds) < 1:
        raise UserError('--images and --rounds must be at least 1')
    if task.is_of_videos:
        from timm_rs.benchmark.clip_loaders import clip_table, run_clip_loaders
        rows = run_clip_loaders(recipe, images, arguments.rounds)
        table = clip_table(rows)
    else:
        from timm_rs.benchmark.loaders import loader_table, run_loaders
        rows, decoding = run_loaders(recipe, images, arguments.rounds, packed=not arguments.no_pack)
        table = loader_table(rows, decoding)
    print(f'{recipe.model} at {rows[0]["img_size"]} px, {rows[0]["workers"]} workers, {images} {noun} per turn, '
          f'{arguments.rounds} rounds; CPU of all processes')
    print(table)
    if arguments.csv:
        append_rows(arguments.csv, rows)


def run_startup_command(arguments: Any) -> None:
    from timm_rs.benchmark.startup import run_startup, startup_table
    if min(*arguments.images, arguments.folders, arguments.workers, arguments.rounds) < 1:
        raise UserError('--images, --folders, --workers and --rounds must be at least 1')
    if arguments.folder and not arguments.folder.is_dir():
        raise UserError(f'{arguments.folder} is no folder: give --folder one to make the images in')
    if arguments.csv:
        check_writable(arguments.csv)
    rows = run_startup(arguments.images, arguments.folders, arguments.workers, arguments.rounds, arguments.folder)
    print(startup_table(rows))
    if arguments.csv:
        append_rows(arguments.csv, rows)
