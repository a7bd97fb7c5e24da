"""train.py in forked processes, which need not import torch again."""

import os
import signal
import socket
import traceback

from timm_rs.programs import train


def in_forks(arguments, environments, before=lambda: None):
    """Exit codes of train.py in a process for each of `environments`, all at once, after `before` in each."""
    pids = []
    for environment in environments:
        pids.append(os.fork())
        if not pids[-1]:
            try:
                os.environ.update(environment)
                before()
                train.main(list(map(str, arguments)))
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


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
