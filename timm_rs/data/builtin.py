"""Data that needs no download: small real images that ship in packages, written once as folders of PNGs or videos."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from timm_rs.containers.archives import load_arrays
from timm_rs.data.motion import write_motion
from timm_rs.data.motorcycle import write_motorcycle
from timm_rs.data.scenes import write_scenes
from timm_rs.data.several import write_several
from timm_rs.errors import UserError
from timm_rs.files import neighbour
from timm_rs.recipe.command_line import flag

FASHION_MNIST = Path('/usr/share/datasets/fashion-mnist')  # of Debian's package


class Images(NamedTuple):
    """Pixels (N, H, W) uint8, classes (N,), and which of them are for validation: (N,) bool."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.integer[Any]]
    is_validation: npt.NDArray[np.bool_]


def load_digits() -> Images:
    """1,797 handwritten digits of 8 px, those of scikit-learn; a stratified random fifth is for validation.

    Source: UCI Optical Recognition of Handwritten Digits, test part (Alpaydin and Kaynak 1998), CC BY 4.0.
    """
    data = load_arrays(Path(__file__).with_name('digits.npz'))
    pixels = np.uint8(np.round(data['images'] * (255 / 16)))  # 17 gray levels, 0 to 16
    return Images(pixels, data['labels'].astype(int), data['is_validation'])


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


# What loads images of classes, and how many they are.
SOURCES: dict[str, tuple[Callable[[], Images], int]] = {
    'digits': (load_digits, 1797), 'fashion-mnist': (load_fashion_mnist, 70_000)}
# What writes something else than images of classes, most of it of the digits, how many files that is, their suffix.
MADE: dict[str, tuple[Callable[[Path, Images], None], int, str]] = {
    'scenes': (lambda folder, digits: write_scenes(folder, *digits), 1000, '.xml'),
    'motion': (lambda folder, digits: write_motion(folder, digits.pixels, digits.is_validation), 3594, '.mp4'),
    'several': (lambda folder, digits: write_several(folder, *digits), 2400, '.png'),
    'motorcycle': (lambda folder, digits: write_motorcycle(folder), 682, '.png')}


def folder_of(name: str) -> Path:
    return Path('data', name)


def is_builtin(name: str, data_dir: str | None) -> bool:
    """Whether a run whose recipe has these two, and no `dataset`, is on data from here."""
    return bool(name) and data_dir in ('', None, str(folder_of(name)))


def write_builtin(name: str, folder: Path | None = None, seed: int = 0) -> Path:
    """Write what `name` stands for into train/CLASS/ and validation/CLASS/, or as VOC's tree, and give the folder.

    Args:
        name: `digits`, `fashion-mnist`, or such a name with a number, `digits-10`: only so many images of each class
            are in train/, drawn with `seed`, and all others of the training images without a class in pool/. `scenes`
            are digits on photos with masks and boxes, `several` images of several digits with tags, `motion` videos of
            digits that move, `motorcycle` is a photo with depths.
        folder: where; data/NAME when None. A complete folder is left alone, an incomplete one is written anew.

    Raises UserError when the folder cannot be written, and as the loaders above do.
    """
    folder = folder or folder_of(name)
    source, _, number = name.rpartition('-') if name[-1].isdigit() else (name, '', '')
    count, suffix = MADE[source][1:] if source in MADE else (SOURCES[source][1], '.png')

    def is_complete() -> bool:
        return sum(1 for _ in folder.rglob(f'*{suffix}')) == count
    if is_complete():  # at every start of a run: nothing else need be read
        return folder
    temporary = neighbour(folder)
    try:
        if source in MADE:
            MADE[source][0](temporary, load_digits())
        else:
            _write_images(temporary, SOURCES[source][0](), number, seed)
        if not is_complete():  # another process may have been quicker
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
    except OSError as error:
        if not is_complete():
            raise UserError(f'{name} cannot be written to {folder}: {error.strerror or error}; give another folder '
                            f'of images with {flag("data_dir")}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_images(folder: Path, images: Images, number: str, seed: int) -> None:
    """Write `images`, with a `number` only so many of each class into train/ and the rest into pool/."""
    in_pool = ~images.is_validation if number else np.zeros(len(images.labels), bool)
    if number:
        order = np.random.default_rng(seed).permutation(len(images.labels))
        for label in np.unique(images.labels):
            drawn = order[(images.labels[order] == label) & in_pool[order]]
            in_pool[drawn[:int(number)]] = False
    paths = [Path('pool', f'{index:05}.png') if in_pool[index] else
             Path('validation' if images.is_validation[index] else 'train', str(label), f'{index:04}.png')
             for index, label in enumerate(images.labels)]
    for parent in {path.parent for path in paths}:
        (folder / parent).mkdir(parents=True)
    for pixels, path in zip(images.pixels, paths, strict=True):
        Image.fromarray(pixels).save(folder / path)
