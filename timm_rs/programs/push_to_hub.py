"""Publish a trained model on the Hugging Face Hub, so that timm loads it by name."""
import tempfile
from argparse import Namespace
from pathlib import Path

from timm_rs.errors import exit_on_user_error
from timm_rs.publish.repository import CARD, CONFIG, check_repo_id, local_files
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.foreign import TRUST_HELP
from timm_rs.tasks import check_of_images

EXAMPLE = """example:
  python tools/push_to_hub.py output/train/NAME --repo-id org/name --dry-run
  python tools/push_to_hub.py output/train/NAME --repo-id org/name --private
  python -c "import timm; timm.create_model('hf-hub:org/name', pretrained=True)"

The token comes from `hf auth login` or HF_TOKEN. The same push again makes no second commit.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('source', metavar='CHECKPOINT_OR_RUN', help='a checkpoint, or the folder of a run (its best)')
    parser.add_argument('--repo-id', required=True, metavar='ORG/NAME', help='made if it is not there')
    parser.add_argument('--private', action='store_true', help='only for those whom you let in')
    target = parser.add_mutually_exclusive_group()
    target.add_argument('--revision', metavar='BRANCH', help='a branch that exists (default: main)')
    target.add_argument('--create-pr', action='store_true', help='open a pull request instead')
    parser.add_argument('--weights', choices=('ema', 'raw'), help='averaged (default where there are) or as trained')
    parser.add_argument('--trust', action='store_true', help=TRUST_HELP)
    parser.add_argument('--license', default='apache-2.0', metavar='ID', help='of the weights [%(default)s]')
    parser.add_argument('--dataset', metavar='ID', help='name of the training data, best its id on the Hub, org/name')
    parser.add_argument('--overwrite-card', action='store_true', help=f'also replace a {CARD} that is on the Hub')
    parser.add_argument('--overwrite-model', action='store_true', help='also replace another model that is on the Hub')
    parser.add_argument('--dry-run', action='store_true', help='print all that would be sent, and send nothing')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: Namespace) -> None:
    from timm_rs.publish.folder import write_folder
    from timm_rs.publish.push import push
    from timm_rs.training.trained import read_run
    check_repo_id(args.repo_id)
    trained = read_run(args.source, args.weights, args.trust)
    check_of_images(trained.recipe.task, 'publishing')
    with tempfile.TemporaryDirectory(prefix='timm_rs-') as scratch:
        folder = Path(scratch, 'model')
        architecture = write_folder(trained, folder, args.repo_id, args.license, args.dataset)
        if args.dry_run:
            show(folder)
            return
        done = push(folder, args.repo_id, args.private, args.revision, args.create_pr, args.overwrite_card,
                    args.overwrite_model)
    print(f'{trained.recipe.model} as {architecture}, {trained.weights} weights: '
          + (f'sent {", ".join(done.sent)}' if done.sent else 'the Hub has all of it'))
    for note in done.notes:
        print(note)
    print(done.url)


def show(folder: Path) -> None:
    for file in local_files(folder):
        print(f'{file.digest}  {file.size:>11,} bytes  {file.path}')
    for name in (CONFIG, CARD):
        print(f'\n---- {name} ----\n{(folder / name).read_text(encoding="utf-8")}', end='')
