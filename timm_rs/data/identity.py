"""Whether data is the data of before: its classes, how many images it has, and what they are called."""

import hashlib
import os
from pathlib import Path
from typing import Any

from timm_rs.data.class_names import in_order, read_class_names
from timm_rs.data.datasets import class_to_index
from timm_rs.data.listing import some
from timm_rs.data.mixture import Mixture
from timm_rs.data.samples import Relabelled, Samples
from timm_rs.errors import UserError


def identity_of(dataset: Any, classes: dict[Any, int]) -> dict[str, Any]:
    """What a checkpoint remembers of its training data: plain values. Streams have no number of images and no names.

    Names are those of the files, without folder and suffix, so that data may be moved, or packed as shards.
    """
    if isinstance(dataset, Mixture):
        return identity_of(dataset.labelled, classes) | dict(pseudo_labels=dataset.fingerprint)
    identity: dict[str, Any] = dict(classes={str(name): index for name, index in classes.items()})
    if isinstance(dataset, Samples):
        stems = sorted(os.path.splitext(os.path.basename(name))[0] for name in dataset.all_names())
        text = '\n'.join(stems).encode(errors='surrogateescape')
        identity |= dict(num_images=len(stems), names_sha256=hashlib.sha256(text).hexdigest())
    return identity


def num_present(dataset: Any) -> int:
    """How many classes the data itself names; 0 where it names none."""
    if isinstance(dataset, Relabelled):
        return len(dataset.index_of)
    return len(class_to_index(dataset))


def known_classes(content: dict[str, Any], path: str | Path) -> dict[str, int] | None:
    """The classes that a checkpoint, or else the file beside it, says it was trained on; None where neither does."""
    if classes := (content.get('data') or {}).get('classes'):
        return dict(classes)
    if (names := read_class_names(Path(path).parent)) is None:
        return None
    return {name: index for index, some_names in enumerate(names) for name in some_names.split(' / ')}


def check_same_classes(before: dict[str, int], now: dict[str, int], source: str) -> None:
    """Raise UserError that names the first class of the data with another index than in `source`."""
    if not before or not now or before == now or in_order(before) == in_order(now):
        return
    gone, new = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    if gone or new:
        parts = [f'{what} {some(names)}' for what, names in (('lacks', gone), ('has also', new)) if names]
        raise UserError(f'the classes are not those of {source}: the data {" and ".join(parts)}')
    name = next(name for name in before if before[name] != now[name])
    raise UserError(f'the classes are not in the order of {source}: {name} was class {before[name]} and is {now[name]}')


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In which respect data is not that of before, as parts of a sentence."""
    if before.get('num_images') != now.get('num_images'):
        return [f'images {before.get("num_images")} -> {now.get("num_images")}']
    if before.get('names_sha256') != now.get('names_sha256'):
        return ['as many images, but with other names']
    if before.get('pseudo_labels') != now.get('pseudo_labels'):
        return ['pseudo labels']
    return []
