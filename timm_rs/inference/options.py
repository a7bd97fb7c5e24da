"""What a command line may say of a model in use. Imports no network, so that help is there at once."""

from argparse import ArgumentParser

from timm_rs.recipe.command_line import KeyValues, at_least
from timm_rs.recipe.foreign import TRUST_HELP

SUFFIXES = {'torch_export': '.pt2', 'onnx': '.onnx', 'openvino': '.xml'}
PRECISIONS = ('fp32', 'bf16', 'int8')
BACKENDS = (  # ways to compute logits, of timm_rs.inference.backends
    'eager',  # as it is
    'channels_last',
    'folded',  # batch norm in the convolutions, channels last; so are all that follow
    'folded_bf16',
    'compiled',
    'compiled_bf16',
    'onnxruntime',
    'onnxruntime_int8',
    'openvino',
    'openvino_bf16',
    'openvino_int8',
)
MODEL_HELP = ("a run's folder (its best) or checkpoint, a folder with a config.json, or a name of timm's, with "
              'tag, hf-hub: or local-dir:')


def add_model_arguments(parser: ArgumentParser, pretrained: bool = False, exports: bool = False) -> None:
    """The arguments of `open_model` on a command line; `pretrained` models need no such flag then."""
    parser.add_argument(
        'model', metavar='MODEL', help=MODEL_HELP + ('; or a file of tools/export.py' if exports else ''))
    if pretrained:
        parser.set_defaults(pretrained=True)
    else:
        parser.add_argument('--pretrained', action='store_true', help="timm's names: with the published weights")
    parser.add_argument('--num-classes', type=at_least(1), metavar='N', help="timm's names: classes [of the model]")
    parser.add_argument('--model-kwargs', nargs='+', action=KeyValues, metavar='KEY=VALUE',
                        help="timm's names: more arguments, e.g. depth=26 width=0.25")
    parser.add_argument('--img-size', type=at_least(1, 16384), metavar='N',
                        help='pixels of a side [as the model was evaluated]')
    parser.add_argument('--weights', choices=('ema', 'raw'), help='runs: averaged (where there are) or as trained')
    parser.add_argument('--trust', action='store_true', help=f'runs: {TRUST_HELP}')
