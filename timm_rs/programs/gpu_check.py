"""Run all that needs a GPU, in one go and in a given time: tests, bit-identical resume, speed and memory.

Parts, in this order: a) tests marked cuda; b) trainings that are killed and resumed; c) set-ups of the training step
beside timm's loop; d) the models of the paper's Tables 3 and 7, training in bf16; e) the same, inference; f) train.py
on a folder of JPEGs. Every part has a time limit. Rows and the log are in one folder, written as they come; measured
groups are not measured again by a second run.

examples:
  python tools/gpu_check.py
  python tools/gpu_check.py --minutes 40 --timm-train pytorch-image-models/train.py
  python tools/gpu_check.py --parts c d --output results/gpu
  python tools/gpu_check.py --dry-run --output scratch
"""

import math
import os
from pathlib import Path

from timm_rs.benchmark.gpu_check import PARTS, Settings, check, prepare_output, scratch_folder
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import CHECKOUT
from timm_rs.recipe.command_line import Parser


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=8, metavar='N',
                        help='time for all parts; from 16 on, as much work as in the paper [8]')
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS), metavar='PART',
                        help=f'only these, of {" ".join(PARTS)} [all]')
    parser.add_argument('--output', type=Path, default=Path('results/gpu'), metavar='FOLDER',
                        help='for rows (checks, step, train, infer, end_to_end, .csv) and log.txt [results/gpu]')
    parser.add_argument('--timm-train', type=Path, metavar='FILE', help='timm\'s train.py, to run it on the same data')
    parser.add_argument('--dry-run', action='store_true', help='every part in small, on the CPU')
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        if not (CHECKOUT / 'tools/gpu_check.py').exists():
            raise UserError('this runs the programs and tests of a checkout of timm_rs: clone it, pip install -e it')
        if not hasattr(os, 'killpg'):
            raise UserError('parts are groups of processes that end together, which this system has not: use Linux')
        if not 0 < arguments.minutes < math.inf:
            raise UserError(f'--minutes must be above 0, got {arguments.minutes}')
        if arguments.timm_train and not arguments.timm_train.is_file():
            raise UserError(f'--timm-train {arguments.timm_train}: no such file; it is beside the package of timm, in '
                            'its repository')
        import torch
        if not arguments.dry_run and not torch.cuda.is_available():
            raise UserError('torch sees no CUDA GPU here; --dry-run runs every part in small on the CPU')
        output = prepare_output(arguments.output)
        if arguments.dry_run:
            os.environ['TIMM_RS_CUDA_TESTS'] = 'cpu'
            os.environ.setdefault('OMP_NUM_THREADS', '1')  # its networks are too small to share
        with scratch_folder() as scratch:
            settings = Settings(output, scratch, arguments.minutes, arguments.dry_run,
                                arguments.timm_train and arguments.timm_train.resolve())
            is_good = check(settings, [name for name in PARTS if name in arguments.parts])
    if not is_good:
        raise SystemExit(1)
