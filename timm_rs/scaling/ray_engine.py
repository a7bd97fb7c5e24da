"""Jobs on the machines of a Ray cluster; the only file that imports ray."""

import os
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError, blaming
from timm_rs.scaling.jobs import Job, Outcome, run_job

STOP = '.stop'  # a file in the folder of a study, which all machines see: a byte for each signal


class RayPool:
    """The engine for a cluster: a task of Ray for each job, with a GPU where the cluster has any.

    Ray kills tasks without a word when it stops. So tasks look for a file, and end their processes as a pool does.
    """

    def __init__(self, folder: Path, at_once: int | None, address: str | None):
        """`address` is that of a cluster; None for the one that RAY_ADDRESS names, or else this machine.

        Raises UserError when ray is not installed, or there is no cluster.
        """
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray needs the package ray: pip install 'timm_rs[ray]'") from None
        self.ray, self.stop_file = ray, folder / STOP
        self.stop_file.unlink(missing_ok=True)
        with blaming('Ray cannot be started, or reached'):
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        there = ray.cluster_resources()
        gpus, cpus = there.get('GPU', 0.0), there['CPU']
        slots = at_once or int(gpus) or 1
        threads = max(1, int(cpus) // slots)
        self.task = ray.remote(_run).options(num_cpus=threads, num_gpus=min(1.0, gpus / slots))
        self.environment = dict(OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS') or str(threads))
        self.running: list[Any] = []

    def submit(self, job: Job, delay_s: float) -> None:
        self.running.append(self.task.remote(job, self.environment, self.stop_file, delay_s))

    def next(self) -> Outcome:
        (ended, *_), self.running = self.ray.wait(self.running)
        outcome: Outcome = self.ray.get(ended)
        return outcome

    def stop(self) -> None:
        """Tell all tasks, on whatever machine."""
        with open(self.stop_file, 'ab') as file:
            file.write(b'.')

    def close(self) -> None:
        self.ray.shutdown()
        self.stop_file.unlink(missing_ok=True)


def _run(job: Job, environment: dict[str, str], stop_file: Path, delay_s: float) -> Outcome:
    return run_job(job, environment, lambda: stop_file.stat().st_size if stop_file.exists() else 0, delay_s)
