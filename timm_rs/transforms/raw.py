"""Images whose pixels lie in a file as they are: binary PPM, of which no more is read than the rows of a crop.

PPM rather than .npy, because Pillow and all tools for images read it, and so do timm and webdataset from shards.
"""

import os
import re
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HEADER_BYTES = 32  # at most, of what Pillow writes
# Pillow's, for RGB (P6) and grey (P5) of 8 bits. Others mean the same with comments, more spaces or 16 bits.
_HEADER = re.compile(rb'P([56])\s([1-9]\d{0,8})\s([1-9]\d{0,8})\s255\s')


class OpenFile:
    """A file, closed with the last reference to this."""

    def __init__(self, path: Path):
        self.file = open(path, 'rb', buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def read_into(self, array: npt.NDArray[np.uint8], offset: int) -> int:
        """Fill `array` with what is there from `offset` on; how many bytes there are, fewer where the file ends."""
        if hasattr(os, 'preadv'):  # it has no position, which forked processes would share
            return os.preadv(self.file.fileno(), [array.data], offset)
        self.file.seek(offset)  # Windows, where none are forked
        return self.file.readinto(array.data)


class Stretch(NamedTuple):
    """`length` bytes of a file from `offset` on, read when they are asked for."""

    file: OpenFile
    offset: int
    length: int

    def read(self, start: int, length: int) -> npt.NDArray[np.uint8]:
        """`length` of the bytes from `start` on, (length,) uint8. Raises OSError where the file ends early.

        Were the file mapped into memory, that would end the process instead.
        """
        array = np.empty(length, np.uint8)
        found = self.file.read_into(array, self.offset + start)
        if found != length:
            raise OSError(f"the shard ends after {start + found} of the image's {self.length} bytes")
        return array


class Rows:
    """The pixels in a stretch: `height` rows of `width` pixels of `channels` bytes each, 3 (RGB) or 1 (grey)."""

    def __init__(self, stretch: Stretch, start: int, height: int, width: int, channels: int):
        self.stretch, self.start, self.height, self.width, self.channels = stretch, start, height, width, channels

    def read(self, top: int, height: int) -> npt.NDArray[np.uint8]:
        """(`height`, width, channels) uint8 from row `top` on. Raises OSError where the file ends early."""
        row = self.width * self.channels
        return self.stretch.read(self.start + top * row, height * row).reshape(height, self.width, self.channels)


def find_rows(stretch: Stretch) -> Rows | None:
    """The rows of a PPM such as Pillow writes, with nothing before, behind or missing; None for all else.

    Raises OSError where the file ends early.
    """
    found = _HEADER.match(stretch.read(0, min(HEADER_BYTES, stretch.length)).tobytes())
    if not found:
        return None
    channels, (width, height) = 3 if found[1] == b'6' else 1, map(int, found.groups()[1:])
    if found.end() + height * width * channels != stretch.length:
        return None
    return Rows(stretch, found.end(), height, width, channels)
