"""Print the commands that train on Cloud TPUs: create, install, launch, watch, stop, resume. Nothing is executed.

examples:
  python tools/tpu_launch.py --tpu v5e --chips 8 --where vm --recipe train_recipes/rs50.yaml --name rs50 \\
      --data-dir gs://b/imagenet --output gs://b/runs --zone Z --project P --repository https://github.com/me/timm_rs
  python tools/tpu_launch.py --tpu v5e --chips 64 --where gke --cluster C …
"""

import re
import shlex
import sys

from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser
from timm_rs.recipe.reading import read_file
from timm_rs.tpu.chips import TPUS, find_tpu
from timm_rs.tpu.launch import Launch, gke_commands, gke_manifest, vm_commands


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('--tpu', required=True, metavar='T', help=', '.join(TPUS))
    parser.add_argument('--chips', type=int, required=True, metavar='N', help='of the slice, e.g. 8 or 64')
    parser.add_argument('--where', required=True, choices=('vm', 'pod', 'gke'), help='one host, several, or Kubernetes')
    parser.add_argument('--recipe', required=True, metavar='FILE')
    parser.add_argument('--data-dir', required=True, metavar='D', help='path on the hosts, or gs://BUCKET/FOLDER')
    parser.add_argument('--output', metavar='D', help='folder of all runs, the same for all hosts: a path, or '
                        'gs://BUCKET/FOLDER [~/runs, of a single host]')
    parser.add_argument('--name', required=True, help='of the run, and of what is created')
    parser.add_argument('--zone', required=True, metavar='Z')
    parser.add_argument('--project', required=True, metavar='P')
    parser.add_argument('--repository', required=True, metavar='URL', help='where hosts clone this project from')
    parser.add_argument('--batch-size', '-b', type=int, metavar='N', help='images per device [the recipe\'s]')
    parser.add_argument('--cluster', metavar='C', help='of GKE')
    parser.add_argument('--manifest', action='store_true', help='print only the manifest for GKE')
    arguments = parser.parse_args(argv)
    argv = sys.argv[1:] if argv is None else argv
    with exit_on_user_error():
        launch = create_launch(arguments)
        if arguments.manifest:
            print(gke_manifest(launch), end='')
            return
        per_device = launch.batch_size or read_file(launch.recipe).get('batch_size', 128)
        num_devices = launch.num_chips * launch.tpu.devices_per_chip
        print(f'# {launch.num_chips} chips of {launch.tpu.name} on {launch.num_hosts} host(s), {num_devices} devices, '
              f'global batch {per_device} x {num_devices} = {per_device * num_devices}')
        program = parser.prog if parser.prog.startswith('timm-rs ') else 'python tools/tpu_launch.py'
        commands = vm_commands(launch) if arguments.where != 'gke' else gke_commands(
            launch, f'{program} {shlex.join([*argv, "--manifest"])}')
        for purpose, command in commands:
            print(f'\n# {purpose}\n{command}')


def create_launch(arguments: object) -> Launch:
    given = dict(vars(arguments))
    where, name = given['where'], given['name']
    if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', name):
        raise UserError(f'--name {name}: Google Cloud takes up to 40 small letters, digits and hyphens, a letter first')
    if given['batch_size'] is not None and given['batch_size'] < 1:
        raise UserError(f'--batch-size must be at least 1, got {given["batch_size"]}')
    if where == 'gke' and not given['cluster']:
        raise UserError('--cluster is missing: the name of a GKE cluster')
    if given['manifest'] and where != 'gke':
        raise UserError('--manifest goes with --where gke')
    read_file(given['recipe'])  # or a UserError
    if not given['output'] and where != 'vm':
        raise UserError('--output is missing: several hosts need a folder that all see, such as gs://BUCKET/runs')
    launch = Launch(
        find_tpu(given['tpu']), given['chips'], given['recipe'], given['data_dir'], given['output'] or '~/runs', name,
        given['zone'], given['project'], given['repository'], given['batch_size'], given['cluster'] or '')
    launch.check(where)
    return launch
