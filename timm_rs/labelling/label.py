"""A pool labelled by a teacher, killed and started again and by several processes at once as if by one in one go."""

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch

from timm_rs.data.datasets import open_split
from timm_rs.data.minival import split_minival
from timm_rs.data.pool import open_pool, pool_fingerprint
from timm_rs.data.samples import Samples, as_samples
from timm_rs.errors import UserError
from timm_rs.files import remove_stale, write_csv
from timm_rs.labelling.leaks import Leak, References, look_at_references
from timm_rs.labelling.teacher import Answers, Teacher, batches_of
from timm_rs.labelling.units import Unit, Units, open_units
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.lock import FolderBusy

POLL_S = 1.0  # how often to look whether another process has ended
LEAK_COLUMNS = ('name', 'is_again', 'kind', 'distance')


def describe(teacher: Teacher, samples: Samples, pool: str, data_dir: str | None, split: str, top_k: int,
             excluded: Sequence[tuple[str, Samples]]) -> dict[str, Any]:
    """The manifest: what is labelled, by whom, and what must not be among it."""
    config = teacher.source.data_config
    return dict(
        pool=pool, data_dir=data_dir, split=split, num_images=len(samples), pool_sha256=pool_fingerprint(samples, pool),
        teacher=teacher.source.name, teacher_sha256=teacher.weights_sha256(), num_classes=teacher.num_classes,
        classes=teacher.source.class_names, top_k=min(top_k, teacher.num_classes),
        input_size=list(config['input_size']), crop_pct=config['crop_pct'], interpolation=config['interpolation'],
        mean=list(config['mean']), std=list(config['std']), preprocessing=teacher.source.recipe.preprocessing,
        dtype=str(teacher.dtype or torch.float32).removeprefix('torch.'), batch_size=teacher.batch_size,
        device=teacher.device.torch_device.type,
        excluded=[[place, len(images), pool_fingerprint(images, place)] for place, images in excluded],
        versions=dict(torch=torch.__version__, timm=timm.__version__, python=platform.python_version()))


def open_excluded(places: Sequence[str], minival_of: Sequence[str]) -> list[tuple[str, Samples]]:
    """Data that must not be in a pool: the images of `places`, and minival of the training data `minival_of`."""
    found = [(place, open_pool(place)) for place in places]
    for place in minival_of:
        train = as_samples(open_split(Recipe(data_dir=place, val_split=''), 'train', is_training=False))
        found.append((place, split_minival(train)[0]))
    return found


class Totals(NamedTuple):
    """Numbers of images."""

    bad: int
    leaks: int


def label_pool(teacher: Teacher, samples: Samples, folder: Path, manifest: dict[str, Any], excluded: list[Samples]
               ) -> Totals:
    """Label what of the pool is not labelled yet in `folder`, and list there the bad images and those `excluded`.

    Raises UserError where `folder` has labels of another kind or cannot be written.
    """
    units = open_units(folder, manifest)
    to_do = units.missing()
    batches = sum(-(-len(units.images(number)) // teacher.batch_size) for number in to_do)
    try:
        references = look_at_references(teacher, excluded) if excluded and to_do else None
        labelling = _label(teacher, samples, units, to_do, references)
        for _ in track(labelling, 'labelling', batches, images=teacher.batch_size):
            pass
        units.clean()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FolderBusy):  # who writes the same lists
                units.lock('lists', stack)
            remove_stale(folder)
            return write_lists(units, samples, folder)
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror or error}; what is labelled is kept, start '
                        'again to go on') from error


def _label(teacher: Teacher, samples: Samples, units: Units, to_do: list[int], references: References | None
           ) -> Iterator[None]:
    """Make the units `to_do`, and stop after each batch.

    Those that other processes are at come last: they are there then, or their process has died.
    """
    while to_do:
        yield from _label_free(teacher, samples, units, to_do, references)
        to_do = [number for number in to_do if units.read(number) is None]
        if to_do:
            time.sleep(POLL_S)


def _label_free(teacher: Teacher, samples: Samples, units: Units, to_do: list[int], references: References | None
                ) -> Iterator[None]:
    """Make those of the units `to_do` that no other process is at; workers read one while another is written."""
    locks: dict[int, contextlib.ExitStack] = {}
    with contextlib.ExitStack() as all_locks:

        def batches() -> Iterator[range]:
            for number, lock in units.claim(to_do):
                locks[number] = all_locks.enter_context(lock)
                yield from batches_of(units.images(number), teacher.batch_size)

        parts: list[Part] = []  # of one unit
        for answers in teacher.look_at(samples, batches(), references is not None):
            parts.append(part_of(answers, units.top_k, references))
            number = units.of(answers.images[0])
            if answers.images[-1] == units.images(number)[-1]:
                units.write(number, unit_of(parts, teacher.num_classes))
                locks.pop(number).close()
                parts = []
            yield


class Part(NamedTuple):
    """What a unit keeps of a batch; reasons go by the place in the batch."""

    ids: torch.Tensor
    probabilities: torch.Tensor
    reasons: dict[int, str]
    leaks: list[Leak]


def part_of(answers: Answers, top_k: int, references: References | None) -> Part:
    best = answers.logits.softmax(1).topk(top_k)
    good = torch.tensor([place not in answers.reasons for place in range(len(answers.names))])[:, None]
    return Part(best.indices * good, (best.values * good).half(), answers.reasons,
                references.find(answers) if references is not None else [])


def unit_of(parts: list[Part], num_classes: int) -> Unit:
    begins = np.cumsum([0, *(len(part.ids) for part in parts[:-1])]).tolist()
    reasons = {begin + place: reason for begin, part in zip(begins, parts, strict=True)
               for place, reason in part.reasons.items()}
    leaks = [(begin + leak.place, *leak[1:]) for begin, part in zip(begins, parts, strict=True) for leak in part.leaks]
    places, of, kinds, distances = zip(*leaks, strict=True) if leaks else ([], [], [], [])
    return Unit(
        torch.cat([part.ids for part in parts]).numpy().astype(np.uint16 if num_classes <= 2**16 else np.uint32),
        torch.cat([part.probabilities for part in parts]).numpy(), np.array(list(reasons), np.int32),
        np.array(list(reasons.values()), np.str_), np.array(places, np.int32), np.array(of, np.str_),
        np.array(kinds, np.str_), np.array(distances, np.float32))


def write_lists(units: Units, samples: Samples, folder: Path) -> Totals:
    """bad_samples.csv and leaks.csv in `folder`, of all units. Raises OSError."""
    bad, leaks = [], []
    for number in range(len(units)):
        unit, images = units.read(number), units.images(number)
        assert unit is not None
        bad += [dict(name=samples.name(images[place]), reason=reason)
                for place, reason in zip(unit.bad.tolist(), unit.reasons.tolist(), strict=True)]
        leaks += [dict(zip(LEAK_COLUMNS, (samples.name(images[place]), *rest), strict=True))
                  for place, *rest in zip(*(column.tolist() for column in unit[4:]), strict=True)]
    write_csv(folder / 'bad_samples.csv', bad, ('name', 'reason'))
    write_csv(folder / 'leaks.csv', leaks, LEAK_COLUMNS)
    return Totals(len(bad), len(leaks))
