"""Programs in forked processes, which need not import torch again."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial

import torch
from conftest import ROOT, assert_equal

from timm_rs.programs.stress_resume import end_as_program
from timm_rs.programs.train import main
from timm_rs.training import train

TRAIN = (ROOT / 'train.py').read_text()


class ForkedPython(subprocess.Popen):
    """What `Popen(['python', '-c', PROGRAM, *ARGUMENTS])` is, given [PROGRAM, *ARGUMENTS]; but for `cwd`."""

    def _execute_child(self, words, *rest):  # what Popen begins its process with
        environment, ends = rest[5], rest[9:15]
        self.pid = os.fork()
        self._child_created = True
        if not self.pid:
            become(*words, environment=environment or {}, stdout=ends[3], stderr=ends[5])
        self._close_pipe_fds(*ends)


def become(program, *arguments, environment, stdout, stderr):
    """End this process as one that ran `program`."""
    def work():
        for end, number in ((stdout, 1), (stderr, 2)):
            if end != -1:
                os.dup2(end, number)
        sys.stdout, sys.stderr = (open(number, 'w', closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.argv = ['-c', *map(str, arguments)]
        os.environ.update(environment)
        exec(program, {'__name__': '__main__'})

    end_as_program(work)


def run_forked(*words):
    """The same until it ends: exit code, stdout and stderr."""
    with ForkedPython(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def in_forks(arguments, environments, before=lambda: None):
    """Exit codes of train.py in a process for each of `environments`, all at once, after `before` in each."""
    pids = []
    for environment in environments:
        pids.append(os.fork())
        if not pids[-1]:
            end_as_program(partial(_train, arguments, environment, before))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _train(arguments, environment, before):
    os.environ.update(environment)
    before()
    main(list(map(str, arguments)))


def in_two_processes(arguments):
    """The same of one run in two processes, with the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        group = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(probe.getsockname()[1]))
    return in_forks(arguments, [group | dict(RANK=rank, LOCAL_RANK=rank) for rank in '01'])


def die_in_the_second_epoch():
    genuine = train.train_updates

    def dying(training, loader, device, position, progress):
        for reported in genuine(training, loader, device, position, progress):
            yield reported
            if position.epoch == 1 and position.images == 8:
                os.kill(os.getpid(), signal.SIGKILL)
    train.train_updates = dying


def check_killed_and_resumed(run, arguments, whole, cut, tables=('summary.csv',)):
    """A run into the folder `cut`, killed in its second epoch and resumed, ends as that in `whole`; gives its words."""
    command = [*arguments, '--output', cut.parent, '--experiment', cut.name, '--recovery-interval', '1']
    assert in_forks(command, [{}], die_in_the_second_epoch) == [-signal.SIGKILL]
    torch.manual_seed(1)  # nothing may depend on what this process has drawn before
    resumed = run(*command, '--resume', 'auto')
    assert resumed.code == 0 and 'recovery-1-' in resumed.out, resumed.err
    states = [torch.load(folder / 'last.pth.tar', weights_only=True) for folder in (whole, cut)]
    for state in states:
        del state['args']  # has the name of the run
    assert_equal(*states)
    for name in tables:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    return resumed.out
