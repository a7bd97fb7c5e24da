"""The commands that train on TPUs of Google Cloud: one TPU VM, a pod slice, or GKE. None of them has been run here.

On every host the same program is started once, without torchrun. It drives all chips of the host and finds the other
hosts through the TPU runtime.
"""

import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from timm_rs.errors import UserError
from timm_rs.tpu.chips import Tpu

REQUIREMENTS = ('torch==2.9.0', 'torch_xla[tpu]==2.9.0')  # the extra "tpu" of pyproject.toml
IMAGE = 'python:3.11'
SAVE_S = 300  # time to save a checkpoint after SIGTERM
BUCKETS = '/buckets'  # where GKE mounts them


@dataclass(frozen=True)
class Launch:
    """What is trained where. `data_dir` and `output` are paths of the hosts, or gs://BUCKET/FOLDER."""

    tpu: Tpu
    num_chips: int
    recipe: str
    data_dir: str
    output: str
    name: str
    zone: str
    project: str
    repository: str
    batch_size: int | None = None  # per device
    cluster: str = ''  # of GKE

    @property
    def num_hosts(self) -> int:
        return self.num_chips // self.tpu.chips_per_host(self.num_chips)

    def check(self, where: str) -> None:
        """Raise UserError for a slice that there is not, or one that `where` does not have, and wrong buckets."""
        for path in (self.data_dir, self.output):
            if _is_bucket(path):
                _bucket(path)
        self.tpu.topology(self.num_chips)
        if self.num_chips < self.tpu.chips_per_host(self.num_chips):
            raise UserError(f'{self.tpu.name} comes with 4 chips or more: give --chips 4')
        if where == 'vm' and self.num_hosts > 1:
            raise UserError(f'{self.num_chips} chips of {self.tpu.name} are {self.num_hosts} hosts: give --where pod')
        if where == 'pod' and self.num_hosts == 1:
            raise UserError(f'{self.num_chips} chips of {self.tpu.name} are one host: give --where vm')
        if where == 'gke' and not (_is_bucket(self.data_dir) and _is_bucket(self.output)):
            raise UserError('on GKE data and output are in buckets: give --data-dir and --output as gs://BUCKET/FOLDER')

    def train(self, python: str, data_dir: str, output: str, cache: str) -> str:
        """The command that starts and continues the run, as a shell on a host takes it."""
        options = [] if self.batch_size is None else ['--batch-size', str(self.batch_size)]
        command = shlex.join([
            'train.py', '--recipe', self.recipe, '--device', 'xla', *options, '--experiment', self.name, '--resume',
            'auto'])
        # Not quoted: the shell of the host knows its home and its processors.
        return (f'PJRT_DEVICE=TPU {python} {command} --data-dir {data_dir} --output {output} --compile-cache {cache} '
                '--workers $(nproc)')


def vm_commands(launch: Launch) -> list[tuple[str, str]]:
    """(what for, command) from creating the TPU to deleting it, for a single host or a slice of several."""
    place = ['--zone', launch.zone, '--project', launch.project]
    accelerator = f'{launch.tpu.accelerator_type}-{launch.num_chips * launch.tpu.cores_per_type}'
    tpus = ['gcloud', 'compute', 'tpus']
    if launch.num_hosts == 1:
        create = [*tpus, 'tpu-vm', 'create', launch.name, *place, '--accelerator-type', accelerator,
                  '--version', launch.tpu.runtime]
        delete = [*tpus, 'tpu-vm', 'delete', launch.name, *place]
    else:
        create = [*tpus, 'queued-resources', 'create', launch.name, '--node-id', launch.name, *place,
                  '--accelerator-type', accelerator, '--runtime-version', launch.tpu.runtime]
        delete = [*tpus, 'queued-resources', 'delete', launch.name, *place, '--force']

    def everywhere(command: str) -> str:
        return shlex.join([*tpus, 'tpu-vm', 'ssh', launch.name, *place, '--worker', 'all', '--command', command])

    python = '~/venv/bin/python'
    data_dir, output = launch.data_dir, launch.output
    commands = [('create it' + (' (queued; "gcloud compute tpus queued-resources describe" says when it is there)'
                                if launch.num_hosts > 1 else ''), shlex.join(create)),
                ('install, on every host', everywhere(
                    f'git clone {shlex.quote(launch.repository)} ~/timm_rs && python3 -m venv ~/venv && '
                    f'~/venv/bin/pip install {shlex.join(REQUIREMENTS)} -e ~/timm_rs'))]
    if _is_bucket(data_dir):
        commands.append(('copy the data to every host', everywhere(
            f'mkdir -p ~/data && gcloud storage rsync --recursive {shlex.quote(data_dir)} ~/data')))
        data_dir = '~/data'
    if _is_bucket(output):
        bucket, folder = _bucket(output)
        only = f'--only-dir {shlex.quote(folder)} ' if folder else ''
        commands.append(('mount the bucket of the runs (https://cloud.google.com/storage/docs/gcsfuse-install first)',
                         everywhere(f'mkdir -p ~/runs && gcsfuse --implicit-dirs {only}{shlex.quote(bucket)} ~/runs')))
        output = '~/runs'
    log = shlex.quote(f'{launch.name}.log')
    pid = shlex.quote(f'{launch.name}.pid')
    train = launch.train(f'nohup {python}', data_dir, output, '~/compiled')
    return [
        *commands,
        ('how many devices are there?', everywhere(
            f'PJRT_DEVICE=TPU {python} -c "import torch_xla.runtime as r; print(r.global_runtime_device_count())"')),
        ('train; the same command continues a run that was stopped', everywhere(
            f'cd ~/timm_rs; {train} >> ~/{log} 2>&1 < /dev/null & echo $! > ~/{pid}')),
        ('watch', shlex.join([*tpus, 'tpu-vm', 'ssh', launch.name, *place, '--worker', '0', '--command',
                              f'tail -f ~/{log}'])),
        ('stop, with a checkpoint', everywhere(f'kill -TERM $(cat ~/{pid})')),
        ('after a preemption: delete, then all from the beginning; the run goes on', shlex.join(delete))]


def gke_commands(launch: Launch, manifest_command: str) -> list[tuple[str, str]]:
    """(what for, command); `manifest_command` prints what `gke_manifest` gives."""
    place = ['--location', launch.zone, '--project', launch.project]
    shape = ['--tpu-topology', launch.tpu.topology(launch.num_chips)] if launch.num_hosts > 1 else []
    return [
        ('nodes with TPUs, in a cluster that has the add-on GcsFuseCsiDriver', shlex.join([
            'gcloud', 'container', 'node-pools', 'create', launch.name, '--cluster', launch.cluster, *place,
            '--machine-type', _gke_names(launch)[1], *shape, '--num-nodes', str(launch.num_hosts)])),
        ('kubectl for that cluster', shlex.join(
            ['gcloud', 'container', 'clusters', 'get-credentials', launch.cluster, *place])),
        ('train', f'{manifest_command} | kubectl apply -f -'),
        ('watch', f'kubectl logs --follow job/{launch.name}'),
        ('stop, with a checkpoint; then "train" again continues the run', f'kubectl delete job {launch.name}'),
        ('give the nodes back', shlex.join([
            'gcloud', 'container', 'node-pools', 'delete', launch.name, '--cluster', launch.cluster, *place]))]


def gke_manifest(launch: Launch) -> str:
    """A service by which hosts find each other and a job with a pod per host, as YAML."""
    data_dir, output = (f'{BUCKETS}/{"/".join(filter(None, _bucket(path)))}' for path in (
        launch.data_dir, launch.output))
    buckets = sorted({_bucket(path)[0] for path in (launch.data_dir, launch.output)})
    train = launch.train('python', shlex.quote(data_dir), shlex.quote(output), '/tmp/compiled')
    script = (f'git clone {shlex.quote(launch.repository)} /timm_rs && cd /timm_rs && '
              f'pip install {shlex.join(REQUIREMENTS)} -e . && '
              f'export PJRT_DEVICE=TPU && exec {train.partition("PJRT_DEVICE=TPU ")[2]}')  # exec: signals reach it
    chips = {'google.com/tpu': launch.tpu.chips_per_host(launch.num_chips)}
    container: dict[str, Any] = dict(
        name='train', image=IMAGE, command=['bash', '-c', script], resources=dict(requests=chips, limits=dict(chips)),
        volumeMounts=[dict(name='shared-memory', mountPath='/dev/shm'),  # through which data workers hand on batches
                      *(dict(name=name, mountPath=f'{BUCKETS}/{name}') for name in buckets)])
    volumes = [dict(name='shared-memory', emptyDir=dict(medium='Memory')),
               *(dict(name=name, csi=dict(driver='gcsfuse.csi.storage.gke.io', volumeAttributes=dict(
                   bucketName=name, mountOptions='implicit-dirs'))) for name in buckets)]
    pod = dict(
        subdomain=launch.name, restartPolicy='Never', terminationGracePeriodSeconds=SAVE_S,
        nodeSelector={'cloud.google.com/gke-tpu-accelerator': _gke_names(launch)[0],
                      'cloud.google.com/gke-tpu-topology': launch.tpu.topology(launch.num_chips)},
        containers=[container], volumes=volumes)
    service = dict(apiVersion='v1', kind='Service', metadata=dict(name=launch.name),
                   spec=dict(clusterIP='None', selector={'job-name': launch.name}))
    job = dict(apiVersion='batch/v1', kind='Job', metadata=dict(name=launch.name), spec=dict(
        completionMode='Indexed', completions=launch.num_hosts, parallelism=launch.num_hosts,
        backoffLimit=100,  # pods that were preempted start again and resume
        template=dict(metadata=dict(annotations={'gke-gcsfuse/volumes': 'true'}), spec=pod)))
    return yaml.safe_dump_all([service, job], sort_keys=False, width=10_000)


def _gke_names(launch: Launch) -> tuple[str, str]:
    """GKE's names of the accelerator and the machine."""
    accelerator, machine = launch.tpu.gke_accelerator, launch.tpu.gke_machine
    if launch.tpu.name == 'v3' and launch.num_hosts == 1:
        accelerator, machine = 'tpu-v3-device', 'ct3-hightpu'
    return accelerator, f'{machine}-{launch.tpu.chips_per_host(launch.num_chips)}t'


def _is_bucket(path: str) -> bool:
    return path.startswith('gs://')


def _bucket(path: str) -> tuple[str, str]:
    """The bucket and the folder in it."""
    bucket, _, folder = path.removeprefix('gs://').strip('/').partition('/')
    if not bucket:
        raise UserError(f'{path} names no bucket: give gs://BUCKET/FOLDER')
    return bucket, folder
