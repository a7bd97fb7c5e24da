"""The quickstart's data: scikit-learn's handwritten digits."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from timm_rs.errors import UserError
from timm_rs.recipe.command_line import flag

DIGITS_FOLDER = Path('data/digits')
DIGITS_SPLITS = {'train': 1437, 'validation': 360}  # images in each


def is_digits(builtin_data: str, data_dir: str | None) -> bool:
    """Whether a run whose recipe has these two, and no `dataset`, is on the digits."""
    return bool(builtin_data) and data_dir in ('', None, str(DIGITS_FOLDER))


def write_digits(folder: Path = DIGITS_FOLDER) -> Path:
    """Write scikit-learn's handwritten digits (1,797 real 8x8 grayscale images) as PNGs, split once and for all.

    `folder` gets train/ and validation/ with a folder per digit: a stratified random fifth, drawn with seed 0, is
    for validation. A complete folder is left alone, an incomplete one is written anew.
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
        _, validation = train_test_split(
            range(len(data.target)), test_size=DIGITS_SPLITS['validation'], stratify=data.target, random_state=0)
        held_out = set(validation)
        for index, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
            split = 'validation' if index in held_out else 'train'
            target = temporary / split / str(label) / f'{index:04}.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(np.round(image * (255 / 16)))).save(target)  # 17 gray levels, 0 to 16
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f'the digits cannot be written to {folder}: {error.strerror or error}; give another folder '
                        f'of images with {flag("data_dir")}') from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return folder
