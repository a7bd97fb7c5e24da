"""Classes with few images and classes with many: how many there are, what each counts, how often each is seen."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from timm_rs.data.listing import some
from timm_rs.data.samples import Order
from timm_rs.errors import UserError
from timm_rs.files import read_csv

AUTO = 'auto'
COLUMNS = ['class', 'weight']


def describe_counts(counts: npt.NDArray[np.int64], names: Sequence[str], noun: str, what: str = '') -> list[str]:
    """How many training samples each class has, (classes,), in a line; and a second where some have none.

    The first begins with `what`, by default how many samples there are, of one class each, and classes.
    """
    least, most = int(counts.argmin()), int(counts.argmax())
    spread = (f'{counts[most]:,} of each' if counts[least] == counts[most] else
              f'from {counts[least]:,} of {names[least]} to {counts[most]:,} of {names[most]}')
    lines = [f'{what or f"{counts.sum():,} training {noun}s of {len(counts):,} classes"}: {spread}']
    if absent := without_images(counts, names):
        lines.append(f'warning: no training {noun} is of class {some(absent)}: the model cannot learn it')
    return lines


def without_images(counts: npt.NDArray[np.int64], names: Sequence[str]) -> list[str]:
    return [name for name, count in zip(names, counts, strict=True) if not count]


def class_weights(wanted: str, counts: npt.NDArray[np.int64], names: Sequence[str]) -> torch.Tensor:
    """What the images of each class count in the loss, (classes,) float32.

    `wanted` is `AUTO`, for weights inverse to `counts` whose mean over the images is 1 (a class without images has the
    weight of one with a single image), or a CSV with the columns class and weight, which are taken as they are.

    Raises UserError for a file that cannot be read, or has not one weight, from 0 on, for each of `names`.
    """
    if wanted == AUTO:
        inverse = 1 / np.maximum(counts, 1)
        return torch.tensor(inverse * counts.sum() / (counts @ inverse), dtype=torch.float32)
    given = _read_weights(Path(wanted))
    if unknown := sorted(given.keys() - set(names)):
        raise UserError(f'class_weights {wanted} has a weight for {some(unknown)}, which the data does not have; its '
                        f'classes are {some(list(names))}')
    if missing := [name for name in names if name not in given]:
        raise UserError(f'class_weights {wanted} has no weight for {some(missing)}; add a line for each')
    weights = torch.tensor([given[name] for name in names])
    if not weights @ torch.from_numpy(counts).float():
        raise UserError(f'class_weights {wanted} has weight 0 for every class with images: there is nothing to learn')
    return weights


def _read_weights(path: Path) -> dict[str, float]:
    try:
        rows = read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'class_weights {path} cannot be read: {getattr(error, "strerror", None) or error}; give '
                        f'{AUTO}, or a CSV with the columns class and weight') from None
    if not rows or [name for name in COLUMNS if name not in rows[0]]:
        raise UserError(f'class_weights {path} needs a first line "class,weight" and a line for each class')
    weights: dict[str, float] = {}
    for row in rows:
        name, text = row['class'], row['weight']
        if name in weights:
            raise UserError(f'class_weights {path} has {name} twice')
        try:
            weights[name] = float(text)
        except ValueError:
            raise UserError(f'class_weights {path}: the weight of {name} must be a number, got {text!r}') from None
        if not 0 <= weights[name] < math.inf:
            raise UserError(f'class_weights {path}: the weight of {name} must be finite and at least 0, got {text}')
    return weights


def balanced_order(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Order:
    """As many indices as there are `labels` (images,), shuffled, with each class among them equally often.

    But for one, where the number of classes does not divide that of images. So are the images of each class: of small
    classes all come several times, of large ones some do not come in this epoch.
    """
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.split(np.argsort(numbers, kind='stable'), np.cumsum(counts)[:-1])
    share, rest = divmod(len(labels), len(by_class))
    has_one_more = rng.permutation(len(by_class)) < rest
    return rng.permutation(np.concatenate([
        np.resize(rng.permutation(own), share + more) for own, more in zip(by_class, has_one_more, strict=True)]))
