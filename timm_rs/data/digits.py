"""The quickstart's data: scikit-learn's handwritten digits."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from timm_rs.errors import UserError
from timm_rs.recipe.command_line import flag

DIGITS_FOLDER = Path('data/digits')
DIGITS_SPLITS = {'train': 1437, 'train_few': 200, 'validation': 360}  # images in each; few are of those of train


def is_digits(builtin_data: str, data_dir: str | None) -> bool:
    """Whether a run whose recipe has these two, and no `dataset`, is on the digits."""
    return bool(builtin_data) and data_dir in ('', None, str(DIGITS_FOLDER))


def write_digits(folder: Path = DIGITS_FOLDER) -> Path:
    """Write scikit-learn's handwritten digits (1,797 real 8x8 grayscale images) as PNGs, split once and for all.

    `folder` gets train/ and validation/ with a folder per digit: a stratified random fifth, drawn with seed 0, is
    for validation. train_few/ has some of the images of train/ again, for studies of little data. A complete folder is
    left alone, an incomplete one is written anew.
    Source: UCI Optical Recognition of Handwritten Digits, test part (Alpaydin and Kaynak), CC BY 4.0.
    Raises UserError when the folder cannot be written.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    if all(len(list((folder / split).glob('*/*.png'))) == count for split, count in DIGITS_SPLITS.items()):
        return folder
    temporary = folder.with_name(f'.{folder.name}.tmp')
    try:
        for path in (folder, temporary):
            if path.exists():
                shutil.rmtree(path)
        data = load_digits()
        train, validation = train_test_split(
            range(len(data.target)), test_size=DIGITS_SPLITS['validation'], stratify=data.target, random_state=0)
        few, _ = train_test_split(
            train, train_size=DIGITS_SPLITS['train_few'], stratify=data.target[train], random_state=0)
        for split, indices in (('train', train), ('train_few', few), ('validation', validation)):
            for index in indices:
                target = temporary / split / str(data.target[index]) / f'{index:04}.png'
                target.parent.mkdir(parents=True, exist_ok=True)
                gray = np.uint8(np.round(data.images[index] * (255 / 16)))  # 17 levels, 0 to 16
                Image.fromarray(gray).save(target)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f'the digits cannot be written to {folder}: {error.strerror or error}; give another folder '
                        f'of images with {flag("data_dir")}') from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return folder
