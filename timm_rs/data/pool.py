"""A pool of images whose labels, if there are any, are of no interest."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageDataset

from timm_rs.data.datasets import open_split
from timm_rs.data.listed_images import ListedImages
from timm_rs.data.listing import list_archive, summary
from timm_rs.data.listing_cache import cached_listing
from timm_rs.data.samples import Samples, TimmSamples, as_samples
from timm_rs.data.shards.index import UNLABELLED, cached_index, packed_keys
from timm_rs.data.shards.reading import ShardSamples
from timm_rs.errors import UserError
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe


def open_pool(pool: str, data_dir: str | None = None, split: str = 'train') -> Samples:
    """The images of a folder, flat or nested, of a tar file, of a folder of tar shards, or of one of timm's datasets.

    Args:
        pool: a path, or timm's name of a dataset with its prefix (`hfds/…`), which lies in `data_dir`.
        split: of such a dataset.

    Raises UserError where there is nothing of that kind, or no image in it.
    """
    path = Path(pool)
    if not path.exists():
        if '/' in pool and not path.is_absolute():
            return as_samples(open_split(Recipe(dataset=pool, data_dir=data_dir), split, is_training=False))
        raise UserError(f'pool {pool} does not exist; give a folder of images, tar files, or one of timm\'s datasets')
    try:
        shards = sorted(entry.name for entry in path.glob('*.tar')) if path.is_dir() else []
        if shards:
            index = cached_index(path, path / '.index-pool.npz', shards, packed_keys(are_videos=False), UNLABELLED)
            samples: Samples = ShardSamples(path, index)
            left_out: Any = ()
        else:
            listing, listed = cached_listing(pool) if path.is_dir() else (list_archive(pool), '')
            classes = dict.fromkeys(listing.labels(), 0)
            reader = ListedImages(pool, listing, np.zeros(len(listing.names), np.int64), classes, listed)
            samples, left_out = TimmSamples(ImageDataset(pool, reader=reader)), listing.left_out
    except OSError as error:
        raise UserError(f'pool {pool} cannot be read: {error.strerror or error}') from error
    if not len(samples):
        found = f'; what is there: {summary(left_out)}' if left_out else ''
        raise UserError(f'there are no images in {pool}{found}')
    return samples


def pool_names(samples: Samples, pool: str) -> list[str]:
    """The names of its images, without the folder that it is in."""
    around = os.path.join(pool, '')
    return [name.removeprefix(around) for name in samples.all_names()]


def pool_fingerprint(samples: Samples, pool: str) -> str:
    """The SHA-256 of the names of a pool's images, in order, and of their sizes where they are files or in shards."""
    digest = hashlib.sha256()
    for index, name in enumerate(track(pool_names(samples, pool), 'fingerprint of the pool')):
        digest.update(f'{name}\t{_size(samples, index)}\n'.encode(errors='surrogateescape'))
    return digest.hexdigest()


def _size(samples: Samples, index: int) -> int:
    if isinstance(samples, ShardSamples):
        return int(samples.index.lengths[index])
    spans = getattr(getattr(samples, 'reader', None), 'spans', ())
    if len(spans):
        return int(spans[index][1])
    try:
        return os.stat(samples.name(index)).st_size
    except OSError:  # no file, or a bad image
        return -1
