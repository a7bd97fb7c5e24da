"""The images of a folder or tar file as timm's datasets read them."""

import io
import os
import tarfile
from collections.abc import Iterable
from typing import IO

import numpy as np
import numpy.typing as npt
from timm.data.readers.reader import Reader

from timm_rs.data.compact import Pairs
from timm_rs.data.listing import Listing, in_class_order, list_archive, summary
from timm_rs.data.listing_cache import cached_listing
from timm_rs.errors import UserError


class ListedImages(Reader):  # type: ignore[misc]
    """A listing as timm's datasets read one: `reader[index]` is an open file and a class index.

    Attributes:
        root: the folder or archive.
        class_to_idx: the classes, in order.
        targets: the class index of each image, (images,) integers.
        samples: (path, class index), made when they are asked for; in an archive the path is the member's name.
        left_out, directories: as of the listing, with the folder's path.
        listed: a sentence for people where this is a listing of before.
    """

    def __init__(self, root: str, listing: Listing, targets: npt.NDArray[np.integer], classes: dict[str, int],
                 listed: str = ''):
        super().__init__()
        self.root, self.class_to_idx, self.targets, self.listed = root, classes, targets, listed
        self.spans = listing.spans
        prefix = '' if len(self.spans) else os.path.join(root, '')
        self.left_out = Pairs(
            listing.left_out.names.below(prefix), listing.left_out.numbers, listing.left_out.words)
        self.directories = listing.directories.below(prefix)
        self.paths = listing.names.below(prefix)
        self.samples = Pairs(self.paths, targets)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, target = self.samples[index]
        if not len(self.spans):
            return open(path, 'rb'), target
        offset, length = self.spans[index].tolist()
        with open(self.root, 'rb') as archive:
            archive.seek(offset)
            content = archive.read(length)
        if len(content) < length:
            raise tarfile.ReadError('unexpected end of data')
        return io.BytesIO(content), target

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path: str = self.paths[index]
        if basename:
            return os.path.basename(path)
        return path if absolute or len(self.spans) else os.path.relpath(path, self.root)


def open_images(root: str, suffixes: Iterable[str] = (), class_is_leaf: bool = False) -> ListedImages:
    """The images of a folder or tar file, in classes by natural order.

    The class of an image is the folder directly below `root` that it is in, whatever lies deeper; with
    `class_is_leaf` the folder that it lies in itself, as timm has it. Raises UserError where there is none, or where
    images lie in no folder; OSError and tarfile's errors.
    """
    listing, listed = (list_archive(root, suffixes), '') if os.path.isfile(root) else cached_listing(root, suffixes)
    labels = listing.labels(class_is_leaf)
    if '' in labels:
        raise UserError(f'images lie directly in {root}; training needs one folder per class there')
    if not labels:
        raise UserError(f'there are no images in {root}' + (
            f'; what is there: {summary(listing.left_out)}' if listing.left_out else ''))
    classes = in_class_order(labels)
    return ListedImages(root, listing, np.array([classes[label] for label in labels])[listing.places], classes, listed)
