"""Images and videos as `pack` stores them."""

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from timm_rs.data.samples import Samples
from timm_rs.data.shards.index import RAW_KEY
from timm_rs.errors import UserError
from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, Pixels, open_picture, open_with_pillow
from timm_rs.transforms.frames import JOINED, Frames, Source, container_of, join_frames, open_video

KEPT_FORMATS = {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp'}
KINDS = IMAGES, RAW, VIDEOS, FRAMES = 'images', 'raw', 'videos', 'frames'
OF_IMAGES = IMAGES, RAW


class Encoded(NamedTuple):
    """A sample as it goes into a shard."""

    content: bytes
    extension: str
    target: int
    reason: str  # why the image is bad, or empty


class Encoder(Dataset[Encoded]):
    """The images of `samples` as they go into shards; a map-style dataset for torch's DataLoader."""

    def __init__(self, samples: Samples, short_side: int, quality: int, kind: str):
        self.samples, self.short_side, self.quality, self.kind = samples, short_side, quality, kind

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        try:
            with warnings.catch_warnings(), DEFAULT_LIMITS.in_time():
                warnings.simplefilter('ignore')  # PIL's, of metadata it does not understand
                source: Any
                source, target = self.samples.read(index)
                if self.kind == RAW:
                    content, extension = encode_raw(source, self.short_side)
                elif self.kind == IMAGES:
                    content, extension = encode(source, self.short_side, self.quality)
                else:
                    short_side = self.short_side if self.kind == FRAMES else 0
                    content, extension = encode_video(source, short_side, self.quality)
        except UserError:
            raise
        except Exception as error:  # damaged files raise whatever a decoder stumbles over
            return Encoded(b'', '', -1, _reason(error))
        if not isinstance(target, (int, np.integer)):
            raise UserError(f'{self.samples.name(index)} has the label {target}; shards hold one class index per image')
        return Encoded(content, extension, int(target), '')


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, BadImage) else error
    if isinstance(cause, UnidentifiedImageError):  # PIL's message has an address in memory, which is never the same
        return 'not an image, or of an unknown kind'
    return f'{type(cause).__name__}: {cause}' if cause else str(error)


def encode(source: bytes | Image.Image, short_side: int, quality: int) -> tuple[bytes, str]:
    """The bytes and the file extension under which `pack` stores an image; raises what PIL raises for a bad one."""
    image = source if isinstance(source, Image.Image) else open_with_pillow(source)
    image.load()  # all of it: what is kept as it is must be whole too
    if isinstance(source, bytes):
        is_ready = (image.format == 'JPEG' and not image.info.get('progressive') and image.mode in ('L', 'RGB')
                    and min(image.size) <= short_side)
        if is_ready or (not short_side and image.format in KEPT_FORMATS):
            return source, KEPT_FORMATS[str(image.format)]
    content = io.BytesIO()
    if short_side or image.mode not in ('L', 'RGB'):
        image = _as_trained(image)
    if not short_side:
        image.save(content, 'PNG')
        return content.getvalue(), 'png'
    _shrink(image, short_side).save(content, 'JPEG', quality=quality, subsampling='4:2:0', comment=b'')
    return content.getvalue(), 'jpg'


def encode_raw(source: bytes | Image.Image, short_side: int) -> tuple[bytes, str]:
    """The same as raw pixels, RGB or of grey images one byte each, which all modes that training knows come from."""
    image = source if isinstance(source, Image.Image) else open_with_pillow(source)
    image.load()
    content = io.BytesIO()
    image = image if image.mode == 'L' else _as_trained(image)
    (_shrink(image, short_side) if short_side else image).save(content, 'PPM')
    return content.getvalue(), RAW_KEY


def _as_trained(image: Image.Image) -> Image.Image:
    """The RGB pixels that training sees, also of 16-bit images."""
    return Image.fromarray(open_picture(image).pixels())


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode_video(source: Source, short_side: int, quality: int) -> tuple[bytes, str]:
    """The bytes and extension of a video: with `short_side` its frames, each as `encode` has it, otherwise as it is.

    Raises BadImage and OSError for one that cannot be used.
    """
    video, frames = open_video(source), []
    if isinstance(source, Frames):
        return join_frames([encode(path.read_bytes(), short_side, quality)[0] for path in source.paths]), JOINED
    if not short_side:
        return source, container_of(source)

    def keep(pixels: Pixels) -> Pixels:
        frames.append(encode(Image.fromarray(pixels), short_side, quality)[0])
        return pixels[:1, :1]  # no need to have all of them at once
    video.frames(range(video.num_frames), prepare=keep)
    return join_frames(frames), JOINED
