"""Run an unmodified script of timm (validate.py, benchmark.py, onnx_export.py, …) with our models in the registry."""
import os
import runpy
import sys

from timm_rs.errors import UserError, escape_unknown_letters, exit_on_user_error

EXAMPLE = """usage: {prog} SCRIPT [ARGUMENTS OF THE SCRIPT ...]

example:
  python tools/with_timm.py validate.py --model resnetrs_50 --checkpoint model_best.pth.tar --data-dir imagenet
  python tools/with_timm.py benchmark.py --model resnetrs --model-kwargs depth=26 width=0.25
"""


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        escape_unknown_letters()
        print(f'{__doc__}\n\n{EXAMPLE.format(prog=os.path.basename(sys.argv[0]))}', end='')
        raise SystemExit(0 if argv else 2)
    script = argv[0]
    with exit_on_user_error():
        if not os.path.isfile(script):
            raise UserError(f'{script}: no such script; timm has its own beside the package, not in it')
    import timm_rs  # noqa: F401  registers the models
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(script))  # as if Python had been given the script
    runpy.run_path(script, run_name='__main__')
