"""What the classes are called: written beside a run's checkpoints, and known for ImageNet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from timm_rs.errors import UserError
from timm_rs.files import atomic_write

FILE = 'class_names.txt'  # in the folder of a run; line i is the name of class i


def in_order(classes: dict[Any, int]) -> list[str]:
    """Names by class index, from a dataset's name -> index. Names of one index stand together, with a slash."""
    names: list[list[str]] = [[] for _ in range(max(classes.values(), default=-1) + 1)]
    for name, index in classes.items():
        names[index].append(' '.join(str(name).split()))
    return [' / '.join(some) or f'class {index}' for index, some in enumerate(names)]


def names_of(classes: dict[Any, int], number: int) -> list[str]:
    """Names of the `number` outputs of a model; class 7, and so on, where `classes`, name -> index, has none."""
    names = in_order(classes)[:number]
    return names + [f'class {index}' for index in range(len(names), number)]


def write_class_names(folder: Path, classes: dict[Any, int]) -> None:
    """Write `FILE` into `folder`; nothing when the data names no classes. Raises OSError."""
    if classes:
        with atomic_write(folder / FILE, encoding='utf-8', errors='surrogateescape') as file:
            file.writelines(f'{name}\n' for name in in_order(classes))


def read_class_names(folder: Path, num_classes: int | None = None) -> list[str] | None:
    """What `write_class_names` wrote; None where there is no such file.

    Raises UserError when it cannot be read, or has another number of names than `num_classes`.
    """
    path = folder / FILE
    try:
        names = path.read_text(encoding='utf-8', errors='surrogateescape').splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
    if num_classes not in (None, len(names)):
        raise UserError(f'{path} has {len(names)} names, but the model has {num_classes} classes; mend it or move it '
                        'away')
    return names


def names_of_timm_model(model: Any) -> list[str] | None:
    """The names in the configuration of a timm model; otherwise ImageNet's descriptions if it has as many classes.

    None where neither is known.
    """
    config = model.pretrained_cfg or {}
    names = config.get('label_names')
    if isinstance(names, dict):
        names = [names.get(index, names.get(str(index), f'class {index}')) for index in range(model.num_classes)]
    if names and len(names) == model.num_classes:
        return _described(names, config.get('label_descriptions') or {})
    subset = infer_imagenet_subset(model)
    if subset is None or config.get('num_classes') != model.num_classes:  # a head of its own
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(model.num_classes)]


def _described(names: Sequence[Any], descriptions: dict[str, str]) -> list[str]:
    return [str(descriptions.get(name, name)) for name in names]
