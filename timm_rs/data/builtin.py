"""Data that needs no download: small real images that ship in packages, written once as folders of PNGs or videos."""

import contextlib
import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from timm_rs.data.motion import motion_files
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe.command_line import flag

FASHION_MNIST = Path('/usr/share/datasets/fashion-mnist')  # of Debian's package


class Images(NamedTuple):
    """Pixels (N, H, W) uint8, classes (N,), and which of them are for validation: (N,) bool."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.integer[Any]]
    is_validation: npt.NDArray[np.bool_]


def load_digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8 px; a stratified random fifth, seed 0, is for validation.

    Source: UCI Optical Recognition of Handwritten Digits, test part (Alpaydin and Kaynak), CC BY 4.0.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split
    data = datasets.load_digits()
    _, validation = train_test_split(range(len(data.target)), test_size=360, stratify=data.target, random_state=0)
    pixels = np.uint8(np.round(data.images * (255 / 16)))  # 17 gray levels, 0 to 16
    return Images(pixels, data.target, np.isin(range(len(data.target)), validation))


def load_fashion_mnist() -> Images:
    """Zalando's 70,000 articles of 28 px in 10 classes, the last 10,000 for validation, from Debian's package.

    Source: Xiao, Rasul and Vollgraf 2017 (arXiv:1708.07747), MIT licence. Raises UserError where it is not installed.
    """
    try:
        (pixels, labels), (more_pixels, more_labels) = (
            [np.frombuffer(gzip.decompress((FASHION_MNIST / f'{split}-{what}-ubyte.gz').read_bytes()), np.uint8,
                           offset=header) for what, header in (('images-idx3', 16), ('labels-idx1', 8))]
            for split in ('train', 't10k'))
    except FileNotFoundError:
        raise UserError("Fashion-MNIST is not installed: it is Debian's package dataset-fashion-mnist") from None
    return Images(np.concatenate([pixels, more_pixels]).reshape(-1, 28, 28), np.concatenate([labels, more_labels]),
                  np.arange(len(labels) + len(more_labels)) >= len(labels))


SOURCES: dict[str, Callable[[], Images]] = {'digits': load_digits, 'fashion-mnist': load_fashion_mnist}


def folder_of(name: str) -> Path:
    return Path('data', name)


def is_builtin(name: str, data_dir: str | None) -> bool:
    """Whether a run whose recipe has these two, and no `dataset`, is on data from here."""
    return bool(name) and data_dir in ('', None, str(folder_of(name)))


def write_builtin(name: str, folder: Path | None = None, seed: int = 0) -> Path:
    """Write images as train/CLASS/*.png and validation/CLASS/*.png, or videos as *.mp4, and give the folder.

    Args:
        name: `motion`, videos of digits that move; `digits`, `fashion-mnist`, or such a name with a number,
            `digits-10`: only so many images of each class are in train/, drawn with `seed`, and all others of the
            training images without a class in pool/.
        folder: where; data/NAME when None. A complete folder is left alone, an incomplete one is written anew.

    Raises UserError when the folder cannot be written, and as the loaders above do.
    """
    folder = folder or folder_of(name)
    digits = load_digits() if name == 'motion' else None
    files = list(motion_files(digits.pixels, digits.is_validation) if digits else _image_files(name, seed))
    if sum(path.suffix in ('.png', '.mp4') for path in folder.rglob('*')) == len(files):
        return folder
    temporary = folder.with_name(f'.{folder.name}.tmp')
    try:
        for path in (folder, temporary):
            if path.exists():
                shutil.rmtree(path)
        for parent in {path.parent for path, _ in files}:
            (temporary / parent).mkdir(parents=True)
        for path, write in track(files, f'writing {name}'):
            write(temporary / path)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f'{name} cannot be written to {folder}: {error.strerror or error}; give another folder '
                        f'of images with {flag("data_dir")}') from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return folder


def _image_files(name: str, seed: int) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Path of each image, and what writes it there."""
    source, _, number = name.rpartition('-') if name[-1].isdigit() else (name, '', '')
    images = SOURCES[source]()
    in_pool = ~images.is_validation if number else np.zeros(len(images.labels), bool)
    if number:
        order = np.random.default_rng(seed).permutation(len(images.labels))
        for label in np.unique(images.labels):
            drawn = order[(images.labels[order] == label) & in_pool[order]]
            in_pool[drawn[:int(number)]] = False
    for index, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        yield (Path('pool', f'{index:05}.png') if in_pool[index] else
               Path('validation' if images.is_validation[index] else 'train', str(label), f'{index:04}.png'),
               Image.fromarray(pixels).save)
