"""Fetch a model from the Hugging Face Hub into a folder, and check every file against the Hub's digests."""
from timm_rs.errors import exit_on_user_error
from timm_rs.recipe.command_line import Parser

EXAMPLE = """example:
  python tools/pull_from_hub.py org/name --output name
  python tools/pull_from_hub.py org/name@v1 --output name-v1
  python -c "import timm; timm.create_model('local-dir:name', pretrained=True)"

A transfer that broke goes on where it stopped. HF_HUB_OFFLINE=1 takes all from the cache.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('name', metavar='ORG/NAME[@REVISION]', help='revision: a branch, a tag or a commit')
    parser.add_argument('--output', required=True, metavar='DIR', help='a new folder')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        from timm_rs.publish.pull import pull
        commit, files = pull(args.name, args.output)
        for file in files:
            kind = 'sha256' if len(file.digest) == 64 else 'git-sha1'
            print(f'{kind:8} {file.digest:64}  {file.size:>11,} bytes  {file.path}')
        print(f'{args.output}: commit {commit}, {len(files)} files, each with the content that the Hub announces')
