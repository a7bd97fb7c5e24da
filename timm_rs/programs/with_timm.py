"""Run an unmodified script of timm (validate.py, benchmark.py, onnx_export.py, …) with our models in the registry."""
import argparse
import os
import runpy
import sys

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser

EXAMPLE = """example:
  python tools/with_timm.py validate.py --model resnetrs_50 --checkpoint model_best.pth.tar --data-dir imagenet
  python tools/with_timm.py benchmark.py --model resnetrs --model-kwargs depth=26 width=0.25
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('script', metavar='SCRIPT', help='a file of timm')
    parser.add_argument('arguments', metavar='...', nargs=argparse.REMAINDER, help='of the script')
    given = parser.parse_args(argv)
    script = given.script
    with exit_on_user_error():
        if not os.path.isfile(script):
            raise UserError(f'{script}: no such script; timm has its own beside the package, not in it')
    import timm_rs  # noqa: F401  registers the models
    sys.argv = [script, *given.arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))  # as if Python had been given the script
    runpy.run_path(script, run_name='__main__')
