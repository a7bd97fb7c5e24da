"""From a file's bytes to uint8 pixels: the size first, then only what a crop needs, then one antialiased resize.

Pixels equal those of Pillow's `Image.open(file).convert(mode)`, which is what timm trains on. RGB from JPEG comes from
libjpeg-turbo itself (simplejpeg), everything else from Pillow, which also decides what is a bad file.

Files come from strangers. Importing this module leaves Pillow with the formats below, for all that open images in this
process (timm, torchvision, Hugging Face): others are hardly tested or, as PostScript, start a program.
"""

import io
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn.functional import interpolate

from timm_rs.transforms.raw import Rows, Stretch, find_rows

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow then decodes JPEGs too, the same pixels in twice the time
    simplejpeg = None

Pixels: TypeAlias = npt.NDArray[np.uint8]  # (height, width, channels)
Box: TypeAlias = tuple[int, int, int, int]  # top, left, height, width

# What is opened, by content, and the suffixes under which folders are searched for it. torchvision's GTSRB is in PPM.
FORMATS = {'JPEG': ('.jpg', '.jpeg', '.jfif'), 'PNG': ('.png',), 'WEBP': ('.webp',), 'BMP': ('.bmp',), 'GIF': ('.gif',),
           'TIFF': ('.tif', '.tiff'), 'PPM': ()}
MAX_ASPECT = 100  # how many times as long as wide an image may be that is resized whole

_BAND = 1 << 22  # pixels that are converted at once
_OFFSETS = 273, 324  # the tags of a TIFF that say where its strips, or tiles, are
_START_OF_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, 0xC2
_FRAMES = 0xC0, 0xC1, _PROGRESSIVE  # all with Huffman codes; the first two are sequential
_SEGMENT = re.compile(rb'\xff[^\0\1\xd0-\xd8\xff]')  # markers, but those without a length that may stand between codes


class BadImage(ValueError):
    """A file that cannot be used; the message is the reason in a few words."""


class Limits(NamedTuple):
    """What an image may cost.

    Attributes:
        pixels: how many it may have; None: as many as Pillow allows.
        scans: how many a JPEG may come in; each costs as much as decoding another image, and takes a few bytes.
        seconds: how long the processor may work on it. Not the clock, so that a slow disk harms no image.
    """

    pixels: int | None = None
    scans: int = 32
    seconds: float = 60.0

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Raise BadImage once this process has worked for `seconds` on the block; a library is let finish a call.

        Signals do that, so there is no limit in other threads than the main one, and on Windows.
        """
        if not hasattr(signal, 'setitimer') or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> None:
            raise BadImage(f'takes more than {self.seconds:g} s to decode')

        before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)


DEFAULT_LIMITS = Limits()


class Picture(Protocol):
    """An image whose size is known, and whose pixels are decoded when they are asked for."""

    height: int
    width: int

    def pixels(self, box: Box | None = None, at_least: tuple[int, int] | None = None) -> Pixels:
        """What is inside `box` (default: everything), (height, width, channels) uint8, maybe a view of more.

        With `at_least` (height, width), a JPEG may come at a half, a quarter or an eighth of its size, which is
        faster, as long as the box keeps that many pixels. Raises BadImage where only decoding shows that it is one.
        """
        ...


def open_picture(source: bytes | Image.Image | Stretch, mode: str = 'RGB', limits: Limits = DEFAULT_LIMITS) -> Picture:
    """The image in a file's bytes, or an open Pillow image, as `mode`: any of Pillow's with 8 bits per channel.

    Of a `Stretch` with raw pixels only the rows that are asked for are read, when they are, which raises OSError where
    the file has been cut off.

    Like timm, this does not turn images as their EXIF data says. 16-bit grayscale keeps its high byte, where Pillow
    would clip; whole numbers of 32 bits and fractions are clipped to 0..255, as Pillow does. Raises BadImage for what
    is no image of `FORMATS`, or beyond the `limits` or `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(source, Image.Image):
        check_size(source.height, source.width, limits)
        return _PillowPicture(source, mode)
    if isinstance(source, Stretch):
        if not (rows := find_rows(source)):
            return open_picture(source.read(0, source.length).tobytes(), mode, limits)
        check_size(rows.height, rows.width, limits)
        return _RawPicture(rows, mode)
    frame = _find_frame(source) if mode == 'RGB' and simplejpeg else None
    if not frame:
        return _PillowPicture(open_with_pillow(source, limits), mode)
    check_size(*frame[1:3], limits)
    if not frame[3]:  # of those with all channels in the first scan, libjpeg reads no other
        _check_scans(source, limits)
    return _JpegPicture(source, *frame, limits)


def open_with_pillow(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """A file's bytes as an image of Pillow's that is not decoded yet. Raises BadImage as `open_picture` does."""
    if not data:
        raise BadImage('empty file')
    if data[:2] == b'\xff\xd8':
        _check_scans(data, limits)
    with pillow_deciding():
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
    check_size(image.height, image.width, limits)
    if image.info.get('compression') == 'jpeg':  # a TIFF, whose parts are JPEGs
        parts = max(len(image.tag_v2.get(tag, ())) for tag in _OFFSETS)  # type: ignore[attr-defined]
        _check_scans(data, limits._replace(scans=parts * limits.scans), is_jpeg=False)
    if image.tile and image.tile[0][0] == 'bmp_rle':  # by Python, as slow as that many scans
        check_size(image.height, image.width, limits, limits.scans)
    return image


def resize(pixels: Pixels, height: int, width: int, interpolation: str = 'bicubic') -> Pixels:
    """`pixels` (H, W, 1 or 3) as (`height`, `width`, 1 or 3), antialiased, within two levels of Pillow's result.

    `interpolation`: nearest, box, bilinear, hamming, bicubic or lanczos; else ValueError.
    """
    if interpolation in ('bilinear', 'bicubic'):
        own = torch.from_numpy(pixels if pixels.flags.carray else pixels.copy())  # torch warns of read-only arrays
        resized = interpolate(own[None].permute(0, 3, 1, 2), (height, width), mode=interpolation, antialias=True)
        return resized[0].permute(1, 2, 0).numpy()
    try:
        resample = Image.Resampling[interpolation.upper()]
    except KeyError:
        raise ValueError(f'unknown interpolation {interpolation}') from None
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return _channels_last(np.array(image.resize((width, height), resample)))


def middle(height: int, width: int) -> Box:
    """What may be resized whole: everything, but of an image more than `MAX_ASPECT` times as long as wide the middle.

    A line of 1 x 40,000 pixels would otherwise become 10 million pixels long before its centre is cut out.
    """
    most = MAX_ASPECT * min(height, width)
    kept_height, kept_width = (min(side, most + (side - most) % 2) for side in (height, width))  # the centre stays
    return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width


def check_image(image: Any) -> None:
    """Raise TypeError unless `image` is a uint8 array, ValueError unless its shape is (H, W, 3) without zeros."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f'an image must be a uint8 array, got {getattr(image, "dtype", type(image).__name__)}')
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f'an image must have shape (height, width, 3), got {image.shape}')


# ---- JPEG by libjpeg-turbo --------------------------------------------------------------------------------------

class _JpegPicture:
    def __init__(self, data: bytes, frame: int, height: int, width: int, one_pass: bool, limits: Limits):
        """`frame` is where the frame header starts, `one_pass` whether all rows come in their order."""
        self.data, self.frame, self.height, self.width, self.one_pass = data, frame, height, width, one_pass
        self.limits = limits

    def pixels(self, box: Box | None = None, at_least: tuple[int, int] | None = None) -> Pixels:
        top, left, height, width = box or (0, 0, self.height, self.width)
        shrink = 1
        if at_least:
            shrink = next((by for by in (8, 4, 2) if height // by >= at_least[0] and width // by >= at_least[1]), 1)
        data, rows = self.data, top + height + 2 * shrink  # smoothing looks at the next row of chroma
        if not self.one_pass or rows > self.height:
            rows = self.height
        else:  # a header that promises fewer rows is all it takes to stop early
            data = b''.join((data[:self.frame + 5], rows.to_bytes(2, 'big'), memoryview(data)[self.frame + 7:]))
        strict = data is self.data  # otherwise the rows left over count as an error
        try:
            if shrink == 1:
                return simplejpeg.decode_jpeg(data, strict=strict)[top:top + height, left:left + width]
            pixels = simplejpeg.decode_jpeg(
                data, strict=strict, min_height=-(-rows // shrink), min_width=-(-self.width // shrink))
        except ValueError:
            return _PillowPicture(open_with_pillow(self.data, self.limits), 'RGB').pixels(box)
        top, bottom, left, right = (
            (edge + shrink // 2) // shrink for edge in (top, top + height, left, left + width))
        return pixels[top:bottom, left:right]


def _find_frame(data: bytes) -> tuple[int, int, int, bool] | None:
    """What `_JpegPicture` needs to know, or None for what is better left to Pillow.

    That is everything but complete JPEGs of 8 bits with one or three channels and Huffman codes.
    """
    if data[:2] != b'\xff\xd8' or data[-2:] != b'\xff\xd9':
        return None
    at, end, frame = 2, len(data) - 10, 0
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            frame = at
        elif marker == _START_OF_SCAN:
            break
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    else:
        return None
    bits, channels = data[frame + 4], data[frame + 9]
    height, width = data[frame + 5] << 8 | data[frame + 6], data[frame + 7] << 8 | data[frame + 8]
    if not frame or bits != 8 or channels not in (1, 3) or not height or not width:
        return None
    return frame, height, width, data[frame + 1] != _PROGRESSIVE and data[at + 4] == channels


# ---- raw pixels -------------------------------------------------------------------------------------------------

class _RawPicture:
    def __init__(self, rows: Rows, mode: str):
        self.rows, self.mode, self.height, self.width = rows, mode, rows.height, rows.width

    def pixels(self, box: Box | None = None, at_least: tuple[int, int] | None = None) -> Pixels:
        top, left, height, width = box or (0, 0, self.height, self.width)
        pixels = self.rows.read(top, height)[:, left:left + width]
        is_grey = self.rows.channels == 1
        if self.mode == ('L' if is_grey else 'RGB'):
            return pixels
        return _PillowPicture(Image.fromarray(pixels[..., 0] if is_grey else pixels), self.mode).pixels()


# ---- everything else by Pillow ----------------------------------------------------------------------------------

class _PillowPicture:
    def __init__(self, image: Image.Image, mode: str):
        self.image, self.mode = image, mode
        self.width, self.height = image.size

    def pixels(self, box: Box | None = None, at_least: tuple[int, int] | None = None) -> Pixels:
        top, left, height, width = box or (0, 0, self.height, self.width)
        with pillow_deciding():
            self.image.load()
            rows = max(1, _BAND // self.width)
            if self.height <= rows:
                return self._convert(self.image)[top:top + height, left:left + width]
            bands = [(start, min(start + rows, top + height)) for start in range(top, top + height, rows)]
            pixels = np.empty((height, width, Image.getmodebands(self.mode)), np.uint8)
            for start, stop in bands:  # all at once would take the memory of the image three times
                pixels[start - top:stop - top] = self._convert(self.image.crop((left, start, left + width, stop)))
        return pixels

    def _convert(self, image: Image.Image) -> Pixels:
        if image.mode.startswith('I;16') or image.mode == 'I' and self.image.format == 'PPM':  # made 16-bit
            image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
        return _channels_last(np.array(image if image.mode == self.mode else image.convert(self.mode)))


def _keep_known_formats() -> None:
    Image.init()
    for name in set(Image.OPEN) - set(FORMATS):
        del Image.OPEN[name]
        Image.ID.remove(name)


_keep_known_formats()


@contextmanager
def pillow_deciding() -> Iterator[None]:
    """Turn whatever Pillow raises (there is hardly an exception it does not) into BadImage, and keep it quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        except MemoryError:
            raise
        except UnidentifiedImageError as error:
            raise BadImage('not an image') from error
        except Image.DecompressionBombError as error:
            raise BadImage(f'{re.findall("[0-9]+", str(error))[0]} pixels, more than the '
                           f'{Image.MAX_IMAGE_PIXELS} allowed') from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise BadImage('truncated' if 'truncated' in reason.lower() else reason) from error


def check_size(height: int, width: int, limits: Limits, scans: int = 1) -> None:
    """Raise BadImage for more pixels than the limits, or else Pillow, allow an image that is decoded `scans` times."""
    allowed = Image.MAX_IMAGE_PIXELS if limits.pixels is None else limits.pixels
    if allowed is not None and height * width * scans > allowed:
        raise BadImage(f'{width} x {height} pixels, more than the {allowed // scans} allowed')


def _check_scans(data: bytes, limits: Limits, is_jpeg: bool = True) -> None:
    scans = data.count(bytes([0xFF, _START_OF_SCAN]))  # also what only looks so, in metadata or behind the image
    if scans > limits.scans and is_jpeg:
        scans, at = 0, 2
        while (found := _SEGMENT.search(data, at)) and found[0] != bytes([0xFF, _END]):
            scans += found[0][1] == _START_OF_SCAN
            at = found.end() + int.from_bytes(data[found.end():found.end() + 2], 'big')
    if scans > limits.scans:
        raise BadImage(f'{scans} scans, more than the {limits.scans} allowed')


def _channels_last(pixels: Pixels) -> Pixels:
    return pixels[..., None] if pixels.ndim == 2 else pixels
