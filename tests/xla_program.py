"""Runs of train.py with torch_xla, in a process of their own: python tests/xla_program.py IMAGES OUTPUT SCENARIO ...

XLA must be there before torch's first backward pass, and the number of devices is that of the process
(CPU_NUM_DEVICES). What the runs of a process have in common is compiled once. Writes OUTPUT/SCENARIO.json: per run its
exit code, its losses, and what XLA counted after each update and each batch of evaluation.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ['PJRT_DEVICE'] = 'CPU'
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'  # compiles in half the time

import torch
import torch_xla.debug.metrics as xla_metrics  # noqa: TID251

import train

torch.set_num_threads(1)

TINY = ['--model', 'resnetrs', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--img-size', '32', '--device',
        'xla', '--workers', '0', '--epochs', '2', '--warmup-epochs', '0', '--checkpoint-interval-minutes', '0']
HARD = ['--drop', '0.2', '--drop-path', '0.1', '--mixup', '0.2', '--cutmix', '1.0', '--mixup-prob', '0.8', '--reprob',
        '0.5', '--aa', 'rand-m9-n2', '--model-ema', '--model-ema-warmup', '--clip-grad', '1.0', '--amp', '--amp-dtype',
        'bfloat16', '--lr', '1.0', '--warmup-epochs', '1', '--warmup-lr', '0', '--sched-on-updates',
        '--cooldown-epochs', '1', '--log-interval', '3', '--recovery-interval', '4']
CURVE = ['--recipe', 'train_recipes/quickstart.yaml', '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125',
         'act_layer=silu', '--img-size', '32', '--epochs', '3', '--lr', '0.02', '--drop', '0', '--workers', '0',
         '--val-split', '', '--log-interval', '1']  # dropout has random numbers of its own on each device


def counted() -> dict[str, int]:
    def count(name: str) -> int:
        return (xla_metrics.metric_data(name) or (0,))[0]
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith('aten::')]
    return dict(compiled=count('CompileTime'), read=count('TransferFromDeviceTime'), fallbacks=len(fallbacks))


class Recorded:
    """A run of train.py and what happened in it; `stop_after` has it stopped by SIGTERM after so many updates."""

    def __init__(self, *argv: str, stop_after: int = 0):
        self.stop_after = stop_after
        self.updates: list[dict[str, int]] = []  # what each update added to the counts, and whether it reported
        self.batches: list[dict[str, int]] = []  # the same of evaluation
        self.losses: list[float] = []
        self.dtypes: set[str] = set()
        train.train_updates, train.validate, train.Progress.report = self.train_updates, self.validate, self.report
        train.build_model = self.build_model
        before, self.code = counted(), 0
        try:
            train.main(list(argv))
        except SystemExit as stop:
            self.code = stop.code
        self.added = self.since(before)

    @staticmethod
    def since(before: dict[str, int]) -> dict[str, int]:
        return {name: count - before[name] for name, count in counted().items()}

    def train_updates(self, training, loader, recipe, device, place, progress):
        before = counted()
        for reported in TRAIN_UPDATES(training, loader, recipe, device, place, progress):
            self.updates.append(self.since(before) | dict(reported=reported))
            if place.update == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield reported
            before = counted()

    def validate(self, training, loader, recipe, device, heed):
        before = counted()

        def note() -> None:
            nonlocal before
            self.batches.append(self.since(before))
            heed()
            before = counted()
        return VALIDATE(training, loader, recipe, device, note)

    def report(self, progress_or_update, *arguments) -> None:
        self.losses.append(arguments[0])

    def build_model(self, recipe, device):
        model, data_config = BUILD_MODEL(recipe, device)
        model.layer3.register_forward_hook(lambda *call: self.dtypes.add(str(call[-1].dtype))) if hasattr(
            model, 'layer3') else None
        return model, data_config

    def summary(self) -> dict[str, object]:
        return dict(code=self.code, updates=self.updates, batches=self.batches, losses=self.losses, added=self.added,
                    dtypes=sorted(self.dtypes))


TRAIN_UPDATES, VALIDATE, BUILD_MODEL = train.train_updates, train.validate, train.build_model


def main(images: str, output: str, *scenarios: str) -> None:
    local = ['--batch-size', str(8 // int(os.environ['CPU_NUM_DEVICES'])), '--data-dir', images]
    for scenario in scenarios:
        folder = Path(output) / scenario
        place = ['--output', str(folder)]
        if scenario == 'curve':
            batch = str(64 // int(os.environ['CPU_NUM_DEVICES']))
            runs = [Recorded(*CURVE, *place, '--experiment', 'run', '--device', 'xla', '--batch-size', batch,
                             '--bn-group-size', '16')]
        elif scenario == 'resume':
            runs = [Recorded(*TINY, *HARD, *local, *place, '--experiment', 'whole')]
            runs += [Recorded(*TINY, *HARD, *local, *place, '--experiment', 'part', '--resume', 'auto', stop_after=stop)
                     for stop in (4, 11, 0)]
        elif scenario == 'accumulate':
            runs = [Recorded(*TINY, *HARD, *local, *place, '--experiment', 'run', '--grad-accum-steps', '2',
                             '--grad-checkpointing', '--batch-size', '4', '--log-interval', '1')]
        elif scenario == 'both_ways':  # a run of a CPU goes on here; another is left for a CPU to go on with
            runs = [Recorded(*TINY, *local, *place, '--experiment', 'from_cpu', '--resume', 'auto', '--model-ema'),
                    Recorded(*TINY, *local, *place, '--experiment', 'to_cpu', '--model-ema', stop_after=4)]
        else:  # the name of a model
            runs = [Recorded('--model', scenario, '--img-size', '32', '--device', 'xla', '--workers', '0', '--epochs', '1',
                             *HARD, *local, *place, '--experiment', 'run')]
        folder.with_suffix('.json').write_text(json.dumps([run.summary() for run in runs]))


if __name__ == '__main__':
    main(*sys.argv[1:])
