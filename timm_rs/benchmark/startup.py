"""What it takes until a folder of many images can be read: listing it, and the memory of each process that reads it."""

import gc
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from timm_rs.benchmark.rows import provenance, spread
from timm_rs.data.datasets import open_split
from timm_rs.data.samples import Samples, as_samples
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe

MEMORY = Path('/proc/self/smaps_rollup')
ANEW, KEPT = 'anew', 'kept'  # listed now, or before
OLD_ENOUGH_S = 3  # a listing is kept of folders that have not changed for so long


def run_startup(counts: list[int], folders: int, workers: int, rounds: int, place: Path | None
                ) -> list[dict[str, Any]]:
    """Rows for folders of so many empty files, made below `place` or else where temporary files are, and removed again.

    Each measurement is made in a process of its own: seconds and processor seconds of listing, megabytes that this
    adds to the process, and that going through all images adds to each of `workers`, which share what stays as it is.
    One turn more than `rounds`, the first, does not count. Raises UserError where the system does not tell memory.
    """
    if not MEMORY.exists():
        raise UserError(f'start-up is measured on Linux, which tells memory in {MEMORY}')
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            root = write_tree(Path(scratch, 'images'), count, folders)
            time.sleep(OLD_ENOUGH_S)
            measured: dict[str, list[dict[str, float]]] = {}
            for number in track(range(-1, rounds), f'{count:,} images'):
                for kept in Path(scratch).glob('.*.npz'):
                    kept.unlink()
                turns = [in_new_process(root, workers)]
                if any(Path(scratch).glob('.*.npz')):
                    turns.append(in_new_process(root, workers))
                for name, costs in turns:
                    if number >= 0:
                        measured.setdefault(name, []).append(costs)
        rows += [dict(listing=name, images=count, folders=folders, workers=workers, rounds=len(costs),
                      **{f'{column}_{key}': value for column in costs[0]
                         for key, value in spread([cost[column] for cost in costs]).items()}, **provenance())
                 for name, costs in measured.items()]
    return rows


def write_tree(root: Path, images: int, folders: int) -> Path:
    """Empty files with names like ImageNet's, in folders of equal size."""
    for number in range(folders):
        name = f'n{15_000_000 + 37 * number:08}'
        (root / name).mkdir(parents=True)
        for index in range(number, images, folders):
            (root / name / f'{name}_{7919 * index % 100_003}.JPEG').touch()
    return root


def in_new_process(root: Path, workers: int) -> tuple[str, dict[str, float]]:
    """`measure`, in a process that has listed nothing yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as pool:  # which need not import torch again
        return pool.submit(measure, str(root), workers).result()


def measure(root: str, workers: int) -> tuple[str, dict[str, float]]:
    """How the images below `root` were listed, and what that and reading them took."""
    own, wall, cpu = own_megabytes(), time.perf_counter(), time.process_time()
    samples = as_samples(open_split(Recipe(data_dir=root, val_split=''), 'train', is_training=True))
    cost = dict(listing_s=time.perf_counter() - wall, listing_cpu_s=time.process_time() - cpu,
                main_mb=own_megabytes() - own)
    loader: Any = DataLoader(
        _Reads(samples, workers), batch_size=None, num_workers=workers, multiprocessing_context='fork')
    cost['worker_mb'] = max(loader)
    return KEPT if samples.listed else ANEW, cost


class _Reads(Dataset[float]):
    """An item for each worker: the megabytes that going through all images, in no order, adds to its process.

    Files are not opened: that takes time, and no memory that stays.
    """

    def __init__(self, samples: Samples, workers: int):
        self.samples, self.workers = samples, workers

    def __len__(self) -> int:
        return self.workers

    def __getitem__(self, number: int) -> float:
        before = own_megabytes()
        for index in np.random.default_rng(number).permutation(len(self.samples)):
            self.samples.name(int(index))
        return own_megabytes() - before


def own_megabytes() -> float:
    """Memory that this process shares with no other."""
    gc.collect()
    return sum(map(int, re.findall(r'^Private_(?:Clean|Dirty): +(\d+) kB', MEMORY.read_text(), re.M))) / 1e3


def startup_table(rows: list[dict[str, Any]]) -> str:
    """What `run_startup` found, for people."""
    lines = [f'{"images":>10} {"listed":>7} {"seconds (min-max)":>22} {"CPU s":>7} {"MB":>7} {"MB of a worker":>15}']
    lines += ['{images:10,} {listing:>7} {listing_s_median:8.3f} ({listing_s_min:.3f}-{listing_s_max:.3f}) '
              '{listing_cpu_s_median:7.3f} {main_mb_median:7.1f} {worker_mb_median:15.1f}'.format(**row)
              for row in rows]
    return '\n'.join(lines)
