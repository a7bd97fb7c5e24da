"""The labels of a pool, unit by unit: each is a file that is there whole or not at all, whoever makes it."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timm_rs.containers.archives import load_arrays
from timm_rs.data.pseudo_labels import MANIFEST
from timm_rs.errors import UserError
from timm_rs.files import atomic_write, make_folder, read_json
from timm_rs.training.lock import FolderBusy, FolderLock

UNIT = 4096  # images


class Unit(NamedTuple):
    """What is known of n images that follow each other in the pool.

    Attributes:
        ids: (n, k) the teacher's likeliest classes, in falling order.
        probabilities: (n, k) float16.
        bad, reasons: (b,) the places of images that could not be used, and why; their labels are all 0.
        leaks, leak_of: (l,) the places of images that are validation images again, and the names of those.
        leak_kinds, leak_distances: (l,) how that was seen, and how far the two are apart.
    """

    ids: npt.NDArray[np.integer[Any]]
    probabilities: npt.NDArray[np.float16]
    bad: npt.NDArray[np.int32]
    reasons: npt.NDArray[np.str_]
    leaks: npt.NDArray[np.int32]
    leak_of: npt.NDArray[np.str_]
    leak_kinds: npt.NDArray[np.str_]
    leak_distances: npt.NDArray[np.float32]


class Units:
    """The units in `folder`, which `manifest` describes."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.num_images, self.top_k = folder / 'units', manifest['num_images'], manifest['top_k']

    def __len__(self) -> int:
        return -(-self.num_images // UNIT)

    @staticmethod
    def of(image: int) -> int:
        """The unit that an image of the pool is in."""
        return image // UNIT

    def path(self, number: int) -> Path:
        return self.folder / f'{number:06}.npz'

    def images(self, number: int) -> range:
        """Which images of the pool the unit has."""
        return range(number * UNIT, min((number + 1) * UNIT, self.num_images))

    def read(self, number: int) -> Unit | None:
        """The unit; None where it is missing or damaged, since it can be made again."""
        try:
            arrays = load_arrays(self.path(number), compressed=False)
            unit = Unit(**{name: arrays[name] for name in Unit._fields})
        except Exception:  # NumPy raises a dozen kinds for damaged bytes
            return None
        if any(column.ndim == 0 for column in unit):
            return None
        count = len(self.images(number))
        fits = (unit.ids.shape == unit.probabilities.shape == (count, self.top_k)
                and len(unit.bad) == len(unit.reasons) and len({len(column) for column in unit[4:]}) == 1
                and all(column.dtype.kind in 'iu' for column in (unit.ids, unit.bad, unit.leaks))
                and all(0 <= place < count for place in (*unit.bad.tolist(), *unit.leaks.tolist())))
        return unit if fits else None

    def write(self, number: int, unit: Unit) -> None:
        with atomic_write(self.path(number), 'wb') as file:
            np.savez(file, **unit._asdict())

    def missing(self) -> list[int]:
        """Units that are not there, or damaged."""
        return [number for number in range(len(self)) if self.read(number) is None]

    def claim(self, left: list[int]) -> Iterator[tuple[int, contextlib.ExitStack]]:
        """Those of the units `left` that are missing and that no other process is at, and their locks, held."""
        for number in left:
            lock = contextlib.ExitStack()
            try:
                self.lock(f'{number:06}', lock)
            except FolderBusy:
                continue
            if self.read(number) is None:
                yield number, lock
            else:
                lock.close()

    def clean(self) -> None:
        """Remove what killed processes have left beside the units."""
        for path in [*self.folder.glob('*.claim'), *self.folder.glob('.*.tmp')]:
            with contextlib.ExitStack() as stack, contextlib.suppress(FolderBusy):
                self.lock(path.name.lstrip('.').partition('.')[0], stack)

    def lock(self, name: str, stack: contextlib.ExitStack) -> None:
        """Keep other processes from the unit called `name`, or from whatever else, until `stack` ends.

        Raises FolderBusy where one is at it.
        """
        place = self.folder / f'{name}.claim'
        while True:
            lock = FolderLock()
            try:
                place.mkdir(parents=True, exist_ok=True)
                lock.take(place)
            except FileNotFoundError:  # the process before has just removed the place
                continue
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            stack.enter_context(lock)
            for half in self.folder.glob(f'.{name}.*.tmp'):
                half.unlink(missing_ok=True)
            return


def open_units(folder: Path, manifest: dict[str, Any]) -> Units:
    """The units of `folder`, whose manifest is there or is made: the same, but for versions, or UserError."""
    path = folder / MANIFEST
    try:
        make_folder(folder)
        make_folder(folder / 'units')
        if path.exists():
            try:
                before = read_json(path)
            except UserError as error:
                raise UserError(f'{error}; remove {folder} and label again') from None
            changed = [name for name in manifest if name != 'versions' and before.get(name) != manifest[name]]
            if changed:
                raise UserError(f'{folder} has labels of another kind: {", ".join(sorted(changed))} differ; '
                                'choose another folder, or remove this one')
        else:
            with atomic_write(path, encoding='utf-8') as file:
                file.write(json.dumps(manifest, indent=1) + '\n')
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror or error}') from error
    return Units(folder, manifest)
