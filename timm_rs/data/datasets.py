"""Datasets through timm's `create_dataset`, with the checks that turn silent surprises into messages."""

import tarfile
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch.utils.data import IterableDataset

from timm_rs.data.bad_samples import why_unreadable
from timm_rs.data.minival import MINIVAL, SOURCE_SPLIT, TRAIN_MINIVAL, split_minival
from timm_rs.data.samples import AnyDataset, Samples, as_samples
from timm_rs.data.shards.reading import is_packed, open_shards
from timm_rs.errors import UserError
from timm_rs.recipe.command_line import flag
from timm_rs.recipe.knobs import Recipe

# timm's names of a folder or tar per split, in its order of search
TRAIN_NAMES = ('train', 'training')
VALIDATION_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')


def create_datasets(recipe: Recipe, need_training: bool = True) -> tuple[
        AnyDataset | None, AnyDataset | None, int | None]:
    """The training and validation data (None without `val_split`), and how many classes the data names.

    Classes are numbered by the training split; without `need_training` (evaluation) it may be missing. The count is
    None when the data only has numbers. Raises UserError when data is missing, empty or not sorted into class
    folders, when validation has classes that training lacks, when `num_classes` disagrees with the data, and when
    minival would be trained on.
    """
    minival: dict[str, Samples] = {}  # and the rest, both cut from one opened training split

    def create(split: str, is_training: bool, **options: Any) -> AnyDataset:
        if split not in (MINIVAL, TRAIN_MINIVAL):
            return open_split(recipe, split, is_training, **options)
        if not minival:
            whole = as_samples(open_split(recipe, SOURCE_SPLIT, is_training))
            minival.update(zip((MINIVAL, TRAIN_MINIVAL), split_minival(whole), strict=True))
        return minival[split]

    if need_training and recipe.val_split == MINIVAL and recipe.train_split != TRAIN_MINIVAL:
        raise UserError(f'val_split {MINIVAL} is a part of the training split {recipe.train_split}: train without it, '
                        f'by {flag("train_split")} {TRAIN_MINIVAL}')
    train = validation = None
    try:
        train = create(recipe.train_split, is_training=True)
    except UserError:
        if need_training:
            raise
    classes = class_to_index(train)
    if recipe.val_split:
        validation = create(recipe.val_split, is_training=False)
        theirs = class_to_index(validation)
        if classes and theirs and not recipe.class_map and theirs.keys() != classes.keys():
            if new := sorted(map(str, theirs.keys() - classes.keys())):
                raise UserError(f'validation has classes that training lacks: {_some(new)}')
            # timm numbers each split by itself, so a class missing in validation would shift all later labels.
            validation = create(recipe.val_split, is_training=False, class_map=classes)
    classes = classes or class_to_index(validation)
    num_classes = max(classes.values()) + 1 if classes else None
    if num_classes and recipe.num_classes and recipe.num_classes != num_classes:
        raise UserError(f'num_classes is {recipe.num_classes}, but the data has {num_classes} classes '
                        f'({_some(list(map(str, classes)))}); drop num_classes to follow the data')
    return train, validation, num_classes


def open_split(recipe: Recipe, split: str, is_training: bool, class_map: Any = None) -> AnyDataset:
    if recipe.data_dir and (shards := _open_shards(recipe, recipe.data_dir, split)):
        return shards
    root, search = recipe.data_dir, True
    if '/' not in recipe.dataset:  # a folder or a tar; the others know their own splits
        root, search = _split_root(recipe.data_dir, split, alone=recipe.val_split in ('', MINIVAL)), False
    where = f'dataset {recipe.dataset or root}, split {split}'
    try:
        dataset = create_dataset(
            recipe.dataset, root=root, split=split, search_split=search, is_training=is_training,
            class_map=class_map or recipe.class_map, download=recipe.dataset_download, batch_size=recipe.batch_size,
            seed=recipe.seed, repeats=recipe.epoch_repeats if is_training else 0,
            input_img_mode=recipe.image_mode, input_key=recipe.input_key, target_key=recipe.target_key,
            num_samples=recipe.train_num_samples if is_training else recipe.val_num_samples,
            trust_remote_code=recipe.dataset_trust_remote_code)
    except ImportError as error:
        raise UserError(f'{where} needs the package {error.name}: pip install {error.name}') from None
    except tarfile.TarError as error:
        raise UserError(f'{where} cannot be opened: {why_unreadable(error)}') from error
    except Exception as error:  # timm, torchvision and Hugging Face raise a dozen kinds
        raise UserError(f'{where} cannot be opened: {error or type(error).__name__}') from error
    if '' in class_to_index(dataset):
        raise UserError(f'images lie directly in {root}; training needs one folder per class there')
    if isinstance(dataset, IterableDataset):
        return dataset
    return as_samples(dataset)


def _open_shards(recipe: Recipe, root: str, split: str) -> Samples | None:
    """Local shards, which unlike streams have an index; None for all else, and where classes are mapped by timm."""
    if recipe.class_map:
        return None
    if recipe.dataset.lower().startswith('wds/'):
        return open_shards(root, split, recipe.input_key, recipe.target_key)
    return open_shards(root, split) if not recipe.dataset and is_packed(root) else None


def _split_root(data_dir: str | None, split: str, alone: bool) -> str:
    """The folder or tar file of `split` below `data_dir`; the data itself when it is the only split (`alone`)."""
    if not data_dir:
        raise UserError('no data: give --data-dir FOLDER with train/ and validation/, each with a folder per class, '
                        'or name a --dataset')
    root = Path(data_dir)
    if not root.exists():
        raise UserError(f'data folder {root} does not exist')
    synonyms = next((names for names in (TRAIN_NAMES, VALIDATION_NAMES) if split in names), ())
    candidates = [root / (name + suffix) for name in (split, *synonyms) for suffix in ('', '.tar')]
    found = next((path for path in candidates if path.exists()), root if alone else None)
    if found is None:
        raise UserError(f'{root} has no split {split} (looked for {", ".join(path.name for path in candidates)}); '
                        'make that folder, or train without validation by --val-split ""')
    if found.is_dir() and not any(found.iterdir()):
        raise UserError(f'{found} is empty; it needs one folder of images per class')
    return str(found)


def class_to_index(dataset: Any) -> dict[Any, int]:
    """The classes a dataset names, or an empty dict when it only has numbers (shards, streams)."""
    if isinstance(dataset, Samples):
        return dataset.classes
    return dict(getattr(getattr(dataset, 'reader', None), 'class_to_idx', None) or {})


def _some(names: list[str], limit: int = 5) -> str:
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '')
