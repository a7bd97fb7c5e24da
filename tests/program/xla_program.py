"""Runs train.py with torch_xla several times: python tests/program/xla_program.py RESULTS.json < RUNS.json

In a process of its own, since XLA must be there before torch's first backward pass and the number of devices
(CPU_NUM_DEVICES) is that of the process. What its runs have in common is compiled once. RUNS is {name: [[arguments,
stop after so many updates or 0], ...], ...}; RESULTS has, instead, each run's exit code, its losses, and what XLA
counted in each update and each batch of evaluation.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ['PJRT_DEVICE'] = 'CPU'
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'  # compiles in half the time

import torch
import torch_xla.debug.metrics as xla_metrics

from timm_rs.programs.train import main
from timm_rs.training import build, run, train

torch.set_num_threads(1)

TRAIN_UPDATES, VALIDATE, BUILD_MODEL, REPORT = (
    train.train_updates, train.validate, build.build_model, run.Progress.report)


def counted() -> dict[str, int]:
    def count(name: str) -> int:
        return (xla_metrics.metric_data(name) or (0,))[0]
    return dict(compiled=count('CompileTime'), read=count('TransferFromDeviceTime'),
                on_host=sum(name.startswith('aten::') for name in xla_metrics.counter_names()))


def since(before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in counted().items()}


class Recorded:
    """A run of train.py on XLA and what happened in it; SIGTERM comes after `stop_after` updates."""

    def __init__(self, argv: list[str], stop_after: int):
        self.stop_after, self.code = stop_after, 0
        self.updates, self.batches, self.losses, self.dtypes = [], [], [], set()
        train.train_updates, train.validate, build.build_model = self.train_updates, self.validate, self.build_model
        run.Progress.report = lambda progress, update, loss, *rest: self.losses.append(loss)
        before = counted()
        try:
            main(['--device', 'xla', *argv])
        except SystemExit as stop:
            self.code = stop.code
        self.added = since(before)

    def train_updates(self, training, loader, device, position, progress):
        before = counted()
        for reported in TRAIN_UPDATES(training, loader, device, position, progress):
            self.updates.append(since(before) | dict(reported=reported))
            if position.update == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield reported
            before = counted()

    def validate(self, training, loader, device, heed, answers):
        before = counted()

        def note() -> None:
            nonlocal before
            self.batches.append(since(before))
            heed()
            before = counted()
        return VALIDATE(training, loader, device, note, answers)

    def build_model(self, *arguments):
        model, data_config = BUILD_MODEL(*arguments)
        network = getattr(model, 'backbone', model)
        block = network.get_submodule(list(network.feature_info)[-2]['module'])
        block.register_forward_hook(lambda *call: self.dtypes.add(str(call[-1].dtype)) if model.training else None)
        return model, data_config

    def result(self) -> dict[str, object]:
        names = ('code', 'updates', 'batches', 'losses', 'added')
        return {name: getattr(self, name) for name in names} | dict(dtypes=sorted(self.dtypes))


if __name__ == '__main__':
    results = {name: [Recorded(argv, stop_after).result() for argv, stop_after in runs]
               for name, runs in json.load(sys.stdin).items()}
    Path(sys.argv[1]).write_text(json.dumps(results))
