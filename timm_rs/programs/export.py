"""Write a model as a file for another runtime (torch.export, ONNX, OpenVINO), and check that it computes the same."""
import random
import sys
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.inference.options import PRECISIONS, SUFFIXES, add_model_arguments
from timm_rs.recipe.command_line import Parser
from timm_rs.tasks import check_of_images, find_task

if TYPE_CHECKING:
    import torch

    from timm_rs.inference.source import Source

EXAMPLE = """examples:
  python tools/export.py output/train/NAME --format onnx --output digits.onnx
  python tools/export.py resnetrs_50.tf_i160_in1k --pretrained --format openvino --output rs50.xml
  python tools/export.py output/train/NAME --format openvino --precision int8 --calibration photos --output rs50.xml
  python tools/export.py resnetrs3d_50 --model-kwargs num_frames=16 --format onnx --output rs3d_50.onnx

The file holds the image size, mean, std, class names and versions too; tools/predict.py takes it as a model.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    add_model_arguments(parser)
    parser.add_argument('--format', required=True, choices=tuple(SUFFIXES))
    parser.add_argument('--output', required=True, type=Path, metavar='F', help='ends with .pt2, .onnx or .xml')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='[%(default)s]')
    parser.add_argument('--fold-bn', action=BooleanOptionalAction, default=True,
                        help='fold batch norm into the convolutions before it [yes]')
    parser.add_argument('--batch-size', type=int, metavar='N', help='only batches of N images [of any number]')
    parser.add_argument('--calibration', metavar='FOLDER',
                        help='images for int8 to take the ranges of values from, and others to compare on')
    parser.add_argument('--calibration-images', type=int, default=300, metavar='N', help='[%(default)s]')
    parser.add_argument('--check', action=BooleanOptionalAction, default=True,
                        help='compare with the model in torch before the file gets its name [yes]')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: Namespace) -> None:
    from timm_rs.inference.backends import openvino_has_bf16
    from timm_rs.inference.export import check_request, export_model
    from timm_rs.inference.source import open_model
    check_request(args.output, args.format, args.precision)
    for name in ('batch_size', 'calibration_images', 'img_size'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f'--{name.replace("_", "-")} {getattr(args, name)}: give at least 1')
    source = open_model(args.model, args.pretrained, args.num_classes, args.img_size, args.model_kwargs, args.weights,
                        args.trust)
    check_of_images(source.recipe.task, 'export')
    calibration, check_images, kind = choose_images(args, source)
    metadata, agreement = export_model(
        source, args.output, args.format, args.precision, args.fold_bn, args.batch_size, calibration,
        check_images if args.check else None,
        None if calibration is None else dict(calibration=f'{len(calibration)} {kind}'))
    print(f'{source.name} as {args.format} in {args.precision}, {metadata["folded_batch_norms"]} batch norms folded, '
          f'for {metadata["input"]["shape"]}: {args.output}')
    if agreement:
        print(f'against torch on {kind}: {agreement}')
        if (args.format, args.precision) == ('openvino', 'bf16') and not openvino_has_bf16():
            print('this processor has no bf16, so only the weights were rounded; compare again where it will run')


def choose_images(args: Namespace, source: 'Source') -> 'tuple[torch.Tensor | None, torch.Tensor, str]':
    """Images to calibrate with (for int8), others to compare with, and what they are."""
    import torch

    from timm_rs.inference.predict import find_images, load_images
    from timm_rs.models.resnet_rs_3d import clip_shape
    num_calibrating, num_checking = 0, max(args.batch_size or 2, 8 if args.precision == 'fp32' else 64)
    if args.precision == 'int8':
        num_calibrating = args.calibration_images if args.calibration else 32
    if args.calibration:
        files = find_images([args.calibration], source.name, find_task(source.recipe.task).is_of_videos)
        random.Random(0).shuffle(files)  # they lie class by class
        images, problems = load_images(source, files[:num_calibrating + num_checking])
        for name, reason in problems:
            print(f'left out: {name}: {reason}', file=sys.stderr)
        num_calibrating = min(num_calibrating, len(images) // 2)
        if len(images) - num_calibrating < (args.batch_size or 2) or (args.precision == 'int8' and not num_calibrating):
            raise UserError(f'--calibration {args.calibration} has {len(images)} images that can be used, too few to '
                            'calibrate with some and compare others')
        kind = 'images'
    else:
        images, kind = torch.randn(
            num_calibrating + num_checking, *clip_shape(source.model, source.data_config['input_size']),
            generator=torch.Generator().manual_seed(1)), 'images of noise'
        if 'num_frames' in source.data_config:
            kind = 'clips of noise'
        if args.precision == 'int8':
            print('warning: without --calibration FOLDER, int8 takes its ranges from noise: good for measuring speed, '
                  'useless for predictions', file=sys.stderr)
    return images[:num_calibrating] if num_calibrating else None, images[num_calibrating:], kind
