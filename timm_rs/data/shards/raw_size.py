"""What raw pixels will take on the disk, found out before they are packed."""

import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from timm_rs.data.samples import Samples
from timm_rs.data.shards.encoding import IMAGES, RAW, Encoder
from timm_rs.data.shards.index import BLOCK
from timm_rs.errors import UserError

LOOKED_AT = 100  # images, which tell the size to a few percent
SHARD_BYTES = 270_000_000
MIN_SHARDS = 8  # or there is little to shuffle, and nothing to share out among the workers of timm's reader
QUALITY = 90  # of the JPEGs they are compared with
CERTAIN = 0.9  # of what is expected of these images is needed at any rate


class RawSize(NamedTuple):
    """What a split takes as raw pixels, by the mean of some of its images."""

    num_bytes: int
    as_jpegs: int  # the same images, packed as JPEGs
    looked_at: int
    num_images: int

    @property
    def num_shards(self) -> int:
        return within(math.ceil(self.num_bytes / SHARD_BYTES), self.num_images)


def within(num_shards: int, num_images: int) -> int:
    """As many shards, or what is sensible for so many images."""
    return min(max(MIN_SHARDS, num_shards), num_images)


def raw_size(samples: Samples, short_side: int) -> RawSize:
    """What all `samples` take, bad images aside: `LOOKED_AT` of them, evenly spaced, are encoded in both ways."""
    total = len(samples)
    indices = np.linspace(0, total - 1, min(total, LOOKED_AT)).round().astype(int).tolist()
    raw, jpegs = (sum(_in_tar(len(found.content)) for found in map(encoder.__getitem__, indices) if not found.reason)
                  for encoder in (Encoder(samples, short_side, QUALITY, kind) for kind in (RAW, IMAGES)))
    share = max(1, len(indices)) / max(1, total)
    return RawSize(round(raw / share), round(jpegs / share), len(indices), total)


def check_disk(sizes: dict[str, RawSize], destination: str | Path) -> list[str]:
    """What the splits take and what is free, a line for each. Raises UserError where it is clearly not enough."""
    destination = Path(destination)
    there = {split: sum(path.stat().st_size for path in destination.glob(f'{split}-*.tar')) for split in sizes}
    needed = sum(max(0, size.num_bytes - there[split]) for split, size in sizes.items())
    disk = next(folder for folder in (destination.absolute(), *destination.absolute().parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    lines = [f'{split}: about {in_words(size.num_bytes)} as raw pixels, {size.num_bytes / max(1, size.as_jpegs):.1f} '
             f'times as much as JPEGs of quality {QUALITY} (by {size.looked_at:,} of {size.num_images:,} images)'
             + (f', of which {in_words(there[split])} are there' if there[split] else '')
             + f'; {in_words(free)} are free' for split, size in sizes.items()]
    if CERTAIN * needed > free:
        raise UserError(f'{destination}: raw pixels need about {in_words(needed)} more, and {in_words(free)} are free; '
                        'free some space, or give another folder, a smaller --short-side, or no --raw')
    return lines


def in_words(num_bytes: int) -> str:
    return f'{num_bytes / 1e9:.1f} GB' if num_bytes >= 1e9 else f'{num_bytes / 1e6:.1f} MB'


def _in_tar(content: int) -> int:
    """Bytes of an image with its header, and of its label with its own."""
    return -(-content // BLOCK) * BLOCK + 3 * BLOCK
