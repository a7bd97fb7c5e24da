"""Datasets through timm's `create_dataset`, with the checks that turn silent surprises into messages."""

import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset
from torch.utils.data import IterableDataset

from timm_rs.data.bad_samples import why_unreadable
from timm_rs.data.listed_images import open_images
from timm_rs.data.listing import check_known, read_class_map, some
from timm_rs.data.minival import MINIVAL, SOURCE_SPLIT, TRAIN_MINIVAL, split_minival
from timm_rs.data.samples import AnyDataset, Relabelled, Samples, TimmSamples, as_samples
from timm_rs.data.shards.reading import ShardSamples, is_packed, open_shards
from timm_rs.errors import UserError
from timm_rs.recipe.command_line import flag
from timm_rs.recipe.knobs import Recipe

# timm's names of a folder or tar per split, in its order of search
TRAIN_NAMES = ('train', 'training')
VALIDATION_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')
# What --dataset may be for the folder or tar files in data_dir, and begin with for all else. timm takes any other word
# for a folder.
LISTED = ('', 'folder', 'tar', 'imagefolder', 'imagetar')
PREFIXES = ('torch/', 'hfds/', 'hfids/', 'tfds/', 'wds/')


def create_datasets(
        recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = '',
        open_one: Callable[[Recipe, str, bool], AnyDataset] | None = None
) -> tuple[AnyDataset | None, AnyDataset | None, int | None]:
    """The training and validation data (None without `val_split`), and how many classes there are.

    `open_one` opens a split for training or not; by default `open_split`.

    Classes are those that are `known`, by name -> index, from `source`; otherwise those of the class map, or of the
    training split in natural order, then of validation. Without `need_training` (evaluation) the training split may be
    missing. The count is None when nobody knows. Raises UserError when data is missing, empty or not sorted into class
    folders, when it has classes that those lack, when `num_classes` disagrees with the data, and when minival would be
    trained on.
    """
    minival: dict[str, Samples] = {}  # and the rest, both cut from one opened training split

    def create(split: str, is_training: bool) -> AnyDataset:
        if split not in (MINIVAL, TRAIN_MINIVAL):
            return (open_one or open_split)(recipe, split, is_training)
        if not minival:
            whole = as_samples((open_one or open_split)(recipe, SOURCE_SPLIT, is_training))
            minival.update(zip((MINIVAL, TRAIN_MINIVAL), split_minival(whole), strict=True))
        return minival[split]

    if need_training and recipe.val_split == MINIVAL and recipe.train_split != TRAIN_MINIVAL:
        raise UserError(f'val_split {MINIVAL} is a part of the training split {recipe.train_split}: train without it, '
                        f'by {flag("train_split")} {TRAIN_MINIVAL}')
    train = validation = None
    if need_training or not known:
        try:
            train = in_classes(create(recipe.train_split, is_training=True), known, 'training', source)
        except UserError:
            if need_training:
                raise
    classes = known or class_to_index(train)
    if recipe.val_split:
        validation = in_classes(
            create(recipe.val_split, is_training=False), classes, 'validation', source or 'training')
    classes = classes or class_to_index(validation)
    num_classes = max(classes.values()) + 1 if classes else None
    if num_classes and recipe.num_classes and recipe.num_classes != num_classes:
        raise UserError(f'num_classes is {recipe.num_classes}, but the data has {num_classes} classes '
                        f'({some(list(map(str, classes)))}); drop num_classes to follow the data')
    if num_classes is None and isinstance(train, ShardSamples):
        num_classes = 1 + max(max(split.targets()) for split in (train, validation) if isinstance(split, ShardSamples))
    return train, validation, num_classes


def in_classes(dataset: AnyDataset, classes: dict[Any, int] | None, where: str, source: str) -> AnyDataset:
    """`dataset` with the indices that `classes`, from `source`, has for its classes' names, if both have names.

    Raises UserError that names the classes of the data at `where` which `source` does not have.
    """
    if not classes or not isinstance(dataset, Samples) or not dataset.classes or dataset.classes == classes:
        return dataset
    check_known(dataset.classes, classes, where, source)
    return Relabelled(dataset, classes)


def open_split(recipe: Recipe, split: str, is_training: bool) -> AnyDataset:
    """One split of the data, in the classes of the recipe's class map if it has one.

    Raises UserError when it is missing, empty, cannot be opened, or has classes that the class map lacks.
    """
    if recipe.data_dir and (shards := _open_shards(recipe, recipe.data_dir, split)):
        return in_class_map(shards, recipe.class_map, recipe.data_dir)
    is_listed = recipe.dataset.lower() in LISTED  # the others know their own splits
    if not is_listed and not recipe.dataset.lower().startswith(PREFIXES):
        raise UserError(f'unknown dataset {recipe.dataset}: leave it out for a folder or tar files, or begin it with '
                        f'{", ".join(PREFIXES)}')
    root = recipe.data_dir
    if is_listed:
        root = split_root(root, split, alone=recipe.val_split in ('', MINIVAL))
    where = f'dataset {recipe.dataset or root}, split {split}'
    try:
        if is_listed:
            suffixes = recipe.input_key.split(';') if recipe.input_key else ()
            reader = open_images(str(root), suffixes, recipe.class_folder == 'leaf')
            return in_class_map(TimmSamples(ImageDataset(root, reader=reader, input_img_mode=recipe.image_mode)),
                                 recipe.class_map, root)
        dataset = create_dataset(
            recipe.dataset, root=root, split=split, search_split=True, is_training=is_training,
            class_map=recipe.class_map, download=recipe.dataset_download, batch_size=recipe.batch_size,
            seed=recipe.seed, repeats=recipe.epoch_repeats if is_training else 0,
            input_img_mode=recipe.image_mode, input_key=recipe.input_key, target_key=recipe.target_key,
            num_samples=recipe.train_num_samples if is_training else recipe.val_num_samples,
            trust_remote_code=recipe.dataset_trust_remote_code)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f'{where} needs the package {error.name}: pip install {error.name}') from None
    except tarfile.TarError as error:
        raise UserError(f'{where} cannot be opened: {why_unreadable(error)}') from error
    except Exception as error:  # timm, torchvision and Hugging Face raise a dozen kinds
        raise UserError(f'{where} cannot be opened: {error or type(error).__name__}') from error
    return dataset if isinstance(dataset, IterableDataset) else as_samples(dataset)


def in_class_map(samples: Samples, class_map: str, root: str | None) -> AnyDataset:
    if not class_map:
        return samples
    path = class_map if Path(class_map).exists() else str(Path(root or '', class_map))
    return in_classes(samples, read_class_map(path), str(root), f'class_map {path}')


def _open_shards(recipe: Recipe, root: str, split: str) -> Samples | None:
    """Local shards, which unlike streams have an index; None for all else, and where timm maps nameless classes."""
    if recipe.dataset.lower().startswith('wds/'):
        shards = open_shards(root, split, recipe.input_key, recipe.target_key)
    else:
        shards = open_shards(root, split) if not recipe.dataset and is_packed(root) else None
    return None if shards and recipe.class_map and not shards.classes else shards


def split_root(data_dir: str | None, split: str, alone: bool, suffixes: Sequence[str] = ('', '.tar')) -> str:
    """The folder or file of `split` below `data_dir`, with one of the `suffixes`, the first of them first.

    The data itself when it is the only split (`alone`). Raises UserError where there is neither.
    """
    if not data_dir:
        raise UserError('no data: give --data-dir FOLDER with train/ and validation/, each with a folder per class, '
                        'or name a --dataset')
    root = Path(data_dir)
    if not root.exists():
        raise UserError(f'data folder {root} does not exist')
    synonyms = next((names for names in (TRAIN_NAMES, VALIDATION_NAMES) if split in names), ())
    candidates = [root / (name + suffix) for name in (split, *synonyms) for suffix in suffixes]
    found = next((path for path in candidates if path.exists()), root if alone else None)
    if found is None:
        raise UserError(f'{root} has no split {split} (looked for {", ".join(path.name for path in candidates)}); '
                        'make that folder, or train without validation by --val-split ""')
    if found.is_dir():
        with os.scandir(found) as entries:
            if next(entries, None) is None:
                raise UserError(f'{found} is empty; it needs one folder of images per class')
    return str(found)


def class_to_index(dataset: Any) -> dict[Any, int]:
    """The classes a dataset names, or an empty dict when it only has numbers (shards, streams)."""
    if isinstance(dataset, Samples):
        return dataset.classes
    return dict(getattr(getattr(dataset, 'reader', None), 'class_to_idx', None) or {})
