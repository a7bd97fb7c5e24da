"""A pool labelled by a teacher, killed and started again and by several processes at once as if by one in one go."""

import contextlib
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch

from timm_rs.data.datasets import open_split
from timm_rs.data.minival import split_minival
from timm_rs.data.pool import open_pool, pool_fingerprint
from timm_rs.data.samples import Samples, Subset, as_samples
from timm_rs.errors import UserError
from timm_rs.files import write_csv
from timm_rs.labelling.leaks import References, look_at_references
from timm_rs.labelling.teacher import Teacher
from timm_rs.labelling.units import Unit, Units, open_units
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.lock import FolderBusy

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
                for half in folder.glob('.*.csv.*.tmp'):  # of a process that was killed
                    half.unlink(missing_ok=True)
            return write_lists(units, samples, folder)
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror or error}; what is labelled is kept, start '
                        'again to go on') from error


def _label(teacher: Teacher, samples: Samples, units: Units, to_do: list[int], references: References | None
           ) -> Iterator[None]:
    """Make the units `to_do`, and stop after each batch."""
    kind = np.uint16 if teacher.num_classes <= 2**16 else np.uint32
    for number in units.to_do(to_do):
        ids, shares, leaks, begin = [], [], [], 0
        reasons: dict[int, str] = {}
        for answers in teacher.look_at(Subset(samples, units.images(number)), references is not None):
            best = answers.logits.softmax(1).topk(units.top_k)
            good = torch.tensor([place not in answers.reasons for place in range(len(answers.names))])[:, None]
            ids.append((best.indices * good).numpy().astype(kind))
            shares.append((best.values * good).numpy().astype(np.float16))
            reasons |= {begin + place: reason for place, reason in answers.reasons.items()}
            if references is not None:
                leaks += [leak._replace(place=begin + leak.place) for leak in references.find(answers)]
            begin += len(answers.names)
            yield
        places, of, kinds, distances = zip(*leaks, strict=True) if leaks else ([], [], [], [])
        units.write(number, Unit(
            np.concatenate(ids), np.concatenate(shares), np.array(list(reasons), np.int32),
            np.array(list(reasons.values()), np.str_), np.array(places, np.int32), np.array(of, np.str_),
            np.array(kinds, np.str_), np.array(distances, np.float32)))


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
