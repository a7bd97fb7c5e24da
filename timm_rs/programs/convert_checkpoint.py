"""Convert a ResNet-RS checkpoint of the authors (TensorFlow 1, or 2 for clips), or of Keras, to a folder for timm."""
import argparse

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser

EXAMPLE = """example:
  python tools/convert_checkpoint.py --model resnetrs_101 --tag tf_i160_in1k \\
      resnet-rs-101-i160.tar.gz --output rs101
  python -c "import timm; timm.create_model('local-dir:rs101', pretrained=True)"
  python tools/convert_checkpoint.py --model resnetrs3d_50 k400_run/ckpt-73682 --output rs3d_50

The checkpoints: https://github.com/tensorflow/tpu/tree/master/models/official/resnet/resnet_rs
Reading them needs the extra: pip install -e ".[convert]"
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('source', metavar='SRC',
                        help='folder or prefix of a TensorFlow checkpoint, its .tar.gz, or a Keras .h5')
    parser.add_argument('--model', required=True, metavar='M', help='such as resnetrs_101, or resnetrs3d_50')
    parser.add_argument('--tag', metavar='T',
                        help='such as tf_i160_in1k: sets image size and crop; networks for clips have none')
    parser.add_argument('--output', required=True, metavar='DIR', help='a new folder')
    parser.add_argument('--weights', choices=('ema', 'raw'),
                        help='of a TensorFlow checkpoint: averaged (default) or as trained last')
    parser.add_argument('--check', action='store_true',
                        help='also print statistics, and look at the logits of noise')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: argparse.Namespace) -> None:
    from timm_rs.models.resnet_rs_3d import FIXED_NAMES
    from timm_rs.publish.convert import (
        average_distance,
        create_point,
        load_official_weights,
        logit_range,
        open_checkpoint,
        save_for_timm,
    )
    from timm_rs.publish.convert_3d import create_network
    from timm_rs.publish.folder import check_output
    check_output(args.output)
    is_for_clips = args.model in FIXED_NAMES
    if is_for_clips and args.tag:
        raise UserError(f'{args.model} has no tags: leave out --tag {args.tag}')
    name = f'{args.model}.{args.tag}' if args.tag else args.model
    model = None if is_for_clips else create_point(name)
    with open_checkpoint(args.source) as checkpoint:
        if model is None:
            model = create_network(name, checkpoint.path, checkpoint.shapes)
        load_official_weights(model, checkpoint, args.weights)
        weights = 'the only' if checkpoint.is_keras else args.weights or 'ema'
        if args.check:
            state = model.state_dict()
            print(f'{len(checkpoint.shapes)} variables in the file, each in its place; '
                  f'{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M parameters in {len(state)} tensors')
            if checkpoint.has_averages:
                print(f'averaged and raw weights differ by at most {average_distance(model, checkpoint):.3g}')
            print('logits of noise are finite, from {:.3f} to {:.3f}'.format(*logit_range(model)))
    save_for_timm(model, args.output, name, weights=weights)
    needs = 'import timm_rs; ' if is_for_clips else ''
    print(f"{args.output}: {name}, {weights} weights; "
          f"load them with {needs}timm.create_model('local-dir:{args.output}', pretrained=True)")
