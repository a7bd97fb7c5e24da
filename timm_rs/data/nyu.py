"""NYU's labelled rooms (v2): `nyu_depth_v2_labeled.mat`, an HDF5 file, and the official `splits.mat` beside it."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timm_rs.containers.hdf5 import open_hdf5
from timm_rs.data.annotated import Annotation, read_depth
from timm_rs.data.datasets import VALIDATION_NAMES
from timm_rs.data.samples import Samples
from timm_rs.errors import UserError, blaming, needing
from timm_rs.transforms.decode import Picture
from timm_rs.transforms.joint import check_same_size

FILES = ('nyu_depth_v2_labeled.mat', 'nyu_depth_v2_labeled.h5')
SPLITS = 'splits.mat'


class NyuSamples(Samples):
    """Images and depths in metres, at `indices` (from 0) of the file."""

    def __init__(self, path: Path, indices: list[int], size: tuple[int, ...]):
        """`size` is the height and width of an image, in either order."""
        self.path, self.indices, self.classes = path, indices, {}
        self.opened_by, self.stack = 0, ExitStack()
        self.decode, self.size = read_depth, size
        self.datasets: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, Annotation]:
        if self.opened_by != os.getpid():  # a file that is open does not survive a fork
            self.stack, self.opened_by = ExitStack(), os.getpid()
            self.datasets = self.stack.enter_context(open_hdf5(self.path, only=('images', 'depths')))
        images, depths = (np.asarray(self.datasets[name][self.indices[index]]) for name in ('images', 'depths'))
        # MATLAB stores columns one after the other.
        return Image.fromarray(images.transpose(2, 1, 0).copy()), Annotation(depths.T, self.name(index), False)

    def name(self, index: int) -> str:
        return f'{self.path}/{self.indices[index] + 1}'

    def check(self, picture: Picture, annotation: Annotation) -> None:
        """Raise BadImage for a depth that cannot be used with the image."""
        check_same_size(picture, tuple(self.decode(annotation).shape[::-1]))

    def longest_side(self) -> int:
        return max(self.size)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(opened_by=0, datasets={}, stack=ExitStack())


def open_nyu(root: Path, split: str) -> NyuSamples:
    """The official `split`, train or test. Raises UserError where a file is missing or is not what it should be."""
    path = next((root / name for name in FILES if (root / name).is_file()), None)
    if path is None or not (root / SPLITS).is_file():
        raise UserError(f'{root} needs {FILES[0]} and {SPLITS}; for pairs of files give --dataset depth_folders')
    official = 'test' if split in (*VALIDATION_NAMES, 'test') else split
    with needing(str(root / SPLITS), 'scipy'):
        import scipy.io
    with blaming(f'{root / SPLITS} cannot be read'):
        numbers = scipy.io.loadmat(root / SPLITS)
    if (wanted := numbers.get(f'{official}Ndxs')) is None:
        raise UserError(f'{root / SPLITS} has no split {split}: its splits are train and test')
    with needing(str(path), 'h5py'), open_hdf5(path, only=('images', 'depths')) as datasets:
        shapes = [datasets[name].shape for name in ('images', 'depths') if name in datasets]
    indices = [int(number) - 1 for number in wanted.ravel()]
    if len(shapes) < 2 or len(shapes[0]) != 4 or shapes[1] != (shapes[0][0], *shapes[0][2:]) or not (
            0 <= min(indices) <= max(indices) < shapes[0][0]):
        raise UserError(f'{path} is not the one that {root / SPLITS} is of: images {shapes[:1]}, depths {shapes[1:]}')
    return NyuSamples(path, indices, shapes[0][2:])
