import re
import shlex

import pytest
import yaml
from conftest import ROOT, failure, load_tool

from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.tpu.launch import REQUIREMENTS

RECIPE = str(ROOT / 'train_recipes/rs50.yaml')
GIVEN = ['--recipe', RECIPE, '--name', 'rs50', '--zone', 'us-west4-a', '--project', 'my-project',
         '--repository', 'https://example.com/me/timm_rs', '--data-dir', 'gs://images/imagenet']
SHARED = ['--output', 'gs://runs/all']
GKE = ['--where', 'gke', '--cluster', 'c', *SHARED]


@pytest.fixture(scope='module')
def tool():
    return load_tool('tpu_launch')


def commands(tool, capsys, *argv):
    """The printed commands, as words."""
    tool.main([*GIVEN, *argv])
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith('#')]


def on_hosts(words):
    """What an ssh command runs on the hosts."""
    return words[words.index('--command') + 1]


def train_options(command):
    """The recipe that train.py makes of its command line."""
    parser = Parser()
    add_recipe_arguments(parser)
    words = shlex.split(command.partition('train.py ')[2].partition(' >> ')[0].replace('$(nproc)', '100'))
    return resolve(parser.parse_args(words))[0]


@pytest.mark.parametrize(('tpu', 'chips', 'where', 'kind', 'accelerator', 'version'), [
    ('v5e', 8, 'vm', 'tpu-vm', 'v5litepod-8', 'v2-alpha-tpuv5-lite'),
    ('v6e', 1, 'vm', 'tpu-vm', 'v6e-1', 'v2-alpha-tpuv6e'),
    ('v3', 4, 'vm', 'tpu-vm', 'v3-8', 'tpu-ubuntu2204-base'),
    ('v5e', 64, 'pod', 'queued-resources', 'v5litepod-64', 'v2-alpha-tpuv5-lite'),
    ('v5p', 64, 'pod', 'queued-resources', 'v5p-128', 'v2-alpha-tpuv5')])
def test_the_tpu_is_created_and_deleted_where_asked(tool, capsys, tpu, chips, where, kind, accelerator, version):
    create, *_, delete = commands(tool, capsys, '--tpu', tpu, '--chips', str(chips), '--where', where, *SHARED)
    assert create[:6] == ['gcloud', 'compute', 'tpus', kind, 'create', 'rs50']
    assert create[create.index('--accelerator-type') + 1] == accelerator
    assert version in create
    assert delete[3:6] == [kind, 'delete', 'rs50']
    for command in (create, delete):
        assert command[command.index('--zone') + 1] == 'us-west4-a'
        assert command[command.index('--project') + 1] == 'my-project'


def test_every_host_starts_one_process_that_continues_the_run(tool, capsys):
    everything = commands(tool, capsys, '--tpu', 'v5e', '--chips', '64', '--where', 'pod', *SHARED, '-b', '64')
    start, = [words for words in everything if 'train.py' in words[-1]]
    assert start[start.index('--worker') + 1] == 'all'
    command = on_hosts(start)
    assert 'PJRT_DEVICE=TPU nohup ~/venv/bin/python train.py' in command and 'torchrun' not in command
    recipe = train_options(command)
    assert (recipe.device, recipe.resume, recipe.experiment, recipe.batch_size) == ('xla', 'auto', 'rs50', 64)
    assert (recipe.data_dir, recipe.output, recipe.compile_cache) == ('~/data', '~/runs', '~/compiled')
    assert recipe.model == 'resnetrs_50'
    for words in everything:
        if '--command' in words:
            shlex.split(on_hosts(words))  # a shell can read it


def test_install_has_the_versions_of_the_extra(tool, capsys):
    extra = re.search(r'^tpu = \[(.*)\]$', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)
    versions = set(re.findall(r'"(.*?)"', extra[1]))
    assert set(REQUIREMENTS) == versions
    install = commands(tool, capsys, '--tpu', 'v5e', '--chips', '8', '--where', 'vm')[1]
    assert versions <= set(shlex.split(on_hosts(install)))
    tool.main([*GIVEN, '--tpu', 'v5e', '--chips', '64', *GKE, '--manifest'])
    assert versions <= set(shlex.split(script_of(capsys.readouterr().out)))


def test_data_in_a_bucket_is_copied_and_a_path_is_taken_as_it_is(tool, capsys):
    bucket = commands(tool, capsys, '--tpu', 'v5e', '--chips', '8', '--where', 'vm')
    assert any('gcloud storage rsync --recursive gs://images/imagenet ~/data' in words[-1] for words in bucket)
    disk = commands(tool, capsys, '--tpu', 'v5e', '--chips', '8', '--where', 'vm', '--data-dir', '/mnt/images')
    assert not any('rsync' in words[-1] for words in disk)
    start, = [words for words in disk if 'train.py' in words[-1]]
    assert train_options(on_hosts(start)).data_dir == '/mnt/images'


def test_global_batch_is_told(tool, capsys):
    tool.main([*GIVEN, '--tpu', 'v3', '--chips', '4', '--where', 'vm', '-b', '32'])
    assert '8 devices, global batch 32 x 8 = 256' in capsys.readouterr().out


def script_of(manifest):
    _, job = yaml.safe_load_all(manifest)
    return job['spec']['template']['spec']['containers'][0]['command'][-1]


@pytest.mark.parametrize(('tpu', 'chips', 'hosts', 'accelerator', 'topology', 'machine'), [
    ('v5e', 8, 1, 'tpu-v5-lite-podslice', '2x4', 'ct5lp-hightpu-8t'),
    ('v5e', 64, 16, 'tpu-v5-lite-podslice', '8x8', 'ct5lp-hightpu-4t'),
    ('v4', 64, 16, 'tpu-v4-podslice', '4x4x4', 'ct4p-hightpu-4t'),
    ('v3', 4, 1, 'tpu-v3-device', '2x2', 'ct3-hightpu-4t'),
    ('v6e', 16, 4, 'tpu-v6e-slice', '4x4', 'ct6e-standard-4t')])
def test_manifest_has_a_pod_per_host_with_all_its_chips(
        tool, capsys, tpu, chips, hosts, accelerator, topology, machine):
    argv = ['--tpu', tpu, '--chips', str(chips), *GKE]
    nodes = commands(tool, capsys, *argv)[0]
    assert nodes[nodes.index('--machine-type') + 1] == machine
    assert nodes[nodes.index('--num-nodes') + 1] == str(hosts)
    assert ('--tpu-topology' in nodes) == (hosts > 1)
    tool.main([*GIVEN, *argv, '--manifest'])
    text = capsys.readouterr().out
    service, job = yaml.safe_load_all(text)
    assert '&id' not in text  # plain for people
    spec, pod = job['spec'], job['spec']['template']['spec']
    assert (spec['completions'], spec['parallelism'], spec['completionMode']) == (hosts, hosts, 'Indexed')
    assert service['spec']['clusterIP'] == 'None' and service['metadata']['name'] == pod['subdomain']
    assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
    assert pod['nodeSelector'] == {'cloud.google.com/gke-tpu-accelerator': accelerator,
                                   'cloud.google.com/gke-tpu-topology': topology}
    container, = pod['containers']
    assert container['resources']['limits'] == container['resources']['requests'] == {'google.com/tpu': chips // hosts}
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert mounts == {'shared-memory': '/dev/shm', 'images': '/buckets/images', 'runs': '/buckets/runs'}
    assert {volume['name'] for volume in pod['volumes']} == set(mounts)
    assert pod['terminationGracePeriodSeconds'] >= 60


def test_pods_get_signals_and_see_the_buckets(tool, capsys):
    tool.main([*GIVEN, '--tpu', 'v5e', '--chips', '64', *GKE, '--manifest'])
    script = script_of(capsys.readouterr().out)
    assert 'export PJRT_DEVICE=TPU && exec python train.py' in script
    recipe = train_options(script)
    assert (recipe.data_dir, recipe.output) == ('/buckets/images/imagenet', '/buckets/runs/all')


def test_printed_command_gives_the_manifest(tool, capsys):
    argv = ['--tpu', 'v5e', '--chips', '64', *GKE]
    apply, = [words for words in commands(tool, capsys, *argv) if 'apply' in words]
    pipe = apply.index('|')
    assert apply[:2] == ['python', 'tools/tpu_launch.py'] and apply[pipe + 1:] == ['kubectl', 'apply', '-f', '-']
    tool.main(apply[2:pipe])
    printed = capsys.readouterr().out
    tool.main([*GIVEN, *argv, '--manifest'])
    assert printed == capsys.readouterr().out


@pytest.mark.parametrize(('options', 'message'), [
    (['--tpu', 'v7', '--chips', 8, '--where', 'vm'], 'unknown TPU v7'),
    (['--tpu', 'v5e', '--chips', 5, '--where', 'vm'], 'no slice of 5 chips'),
    (['--tpu', 'v4', '--chips', 1, '--where', 'vm'], 'v4 comes with 4 chips or more'),
    (['--tpu', 'v5e', '--chips', 64, '--where', 'vm'], '64 chips of v5e are 16 hosts: give --where pod'),
    (['--tpu', 'v5e', '--chips', 8, '--where', 'pod', *SHARED], '8 chips of v5e are one host: give --where vm'),
    (['--tpu', 'v5e', '--chips', 64, '--where', 'pod'], '--output is missing'),
    (['--tpu', 'v5e', '--chips', 64, '--where', 'gke', *SHARED], '--cluster is missing'),
    (['--tpu', 'v5e', '--chips', 64, *GKE, '--data-dir', '/mnt/images'], 'on GKE data and output are in buckets'),
    (['--tpu', 'v5e', '--chips', 64, *GKE, '--data-dir', 'gs://'], 'gs:// names no bucket'),
    (['--tpu', 'v5e', '--chips', 8, '--where', 'vm', '--manifest'], '--manifest goes with --where gke'),
    (['--tpu', 'v5e', '--chips', 8, '--where', 'vm', '--name', 'My Run'], '--name My Run: Google Cloud takes'),
    (['--tpu', 'v5e', '--chips', 8, '--where', 'vm', '-b', 0], '--batch-size must be at least 1'),
    (['--tpu', 'v5e', '--chips', 8, '--where', 'vm', '--recipe', 'none.yaml'], 'recipe none.yaml does not exist')])
def test_wrong_requests_are_refused_in_a_line(tool, capsys, options, message):
    assert message in failure(tool, capsys, *GIVEN, *options)
