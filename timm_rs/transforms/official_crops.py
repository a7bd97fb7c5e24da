"""Crop, resize and flip as the authors' release has them, on uint8 NumPy images.

Source: tensorflow/tpu, models/official/resnet/resnet_preprocessing.py, and the TensorFlow operations it calls:
`sample_distorted_bounding_box` and version 1's `resize_bicubic`. tests/expected/preprocessing.npz holds what
TensorFlow computes. differs from the paper: images are decoded by whatever the dataset uses, not by TensorFlow.
"""

import functools
from typing import TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import embedding_bag

from timm_rs.transforms.decode import Box, Picture, Pixels, check_image

Floats: TypeAlias = npt.NDArray[np.float32]
Number = TypeVar('Number', np.uint8, np.float32)

ATTEMPTS = 10
MIN_COVERED = 0.1  # of the whole image, which the release passes as the object to keep in view
_TABLE_SIZE = 1024  # `resize_bicubic` looks its kernel up at this many places between two pixels


class TrainCrop:
    """A random crop, resized to `size` x `size` and mirrored with probability `hflip`."""

    def __init__(
            self,
            size: int,
            scale: tuple[float, float] = (0.08, 1),
            ratio: tuple[float, float] = (3 / 4, 4 / 3),
            hflip: float = 0.5,
            crop_pct: float = 0.875,
            bfloat16: bool = True,
    ):
        """Areas as shares in `scale`, width/height in `ratio`; `crop_pct` for the centre crop after a failed one.

        `bfloat16`: round to that type before dropping the fraction, since all released configurations train in it.
        Raises ValueError for ranges that are empty or out of bounds.
        """
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f'scale must be a range within 0..1 and ratio one above 0, got {scale} and {ratio}')
        self.size, self.scale, self.ratio, self.hflip = size, scale, ratio, hflip
        self.crop_pct, self.bfloat16 = crop_pct, bfloat16

    def __repr__(self) -> str:
        settings = f'size={self.size}, scale={self.scale}, ratio={self.ratio}, hflip={self.hflip}'
        return f'{type(self).__name__}({settings})'

    def __call__(self, image: Pixels, seed: int | np.random.Generator) -> Pixels:
        """(size, size, 3) uint8 from an RGB image (H, W, 3) uint8; the same for the same seed.

        Raises TypeError for another dtype, ValueError for another shape.
        """
        check_image(image)
        rng = np.random.default_rng(seed)
        return self.finish(crop(image, self.box(image.shape[0], image.shape[1], rng)), rng)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """The first half, for who decodes no more than the crop: where it is in an image of `height` x `width`."""
        return sample_crop(height, width, rng, self.scale, self.ratio) or centre_box(
            height, width, self.size, self.crop_pct)

    def finish(self, cropped: Pixels, rng: np.random.Generator) -> Pixels:
        """The second half: (size, size, 3) uint8 from what is in the box, with the `rng` that `box` left."""
        if self.bfloat16:
            pixels = _bfloat16_columns(cropped, self.size)
        else:
            pixels = to_uint8(_resized_columns(cropped, self.size, self.size))
        if rng.random() < self.hflip:
            pixels = pixels[::-1].copy()
        return _upright(pixels)


class EvalCrop:
    """The centre of an RGB image, in one step to `size` x `size` pixels: a PIL image, or in halves as `TrainCrop`."""

    def __init__(self, size: int, crop_pct: float = 0.875):
        self.size, self.crop_pct = size, crop_pct

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, crop_pct={self.crop_pct})'

    def __call__(self, image: Image.Image) -> Image.Image:
        """Raises ValueError for an image that is not RGB."""
        pixels = np.asarray(image)
        check_image(pixels)
        return Image.fromarray(self.finish(crop(pixels, self.box(*pixels.shape[:2]))))

    def box(self, height: int, width: int) -> Box:
        """Where the centre is in an image of `height` x `width`."""
        return centre_box(height, width, self.size, self.crop_pct)

    def finish(self, cropped: Pixels) -> Pixels:
        """(size, size, 3) uint8 from what is in the box."""
        # differs from the paper: rounded to uint8, which is how batches travel here; the release keeps fractions.
        return _upright(to_uint8(np.rint(_resized_columns(cropped, self.size, self.size))))


class OfficialTrainCrop:
    """`TrainCrop` of a picture, of which no more is decoded than the crop."""

    def __init__(self, crop: TrainCrop, scaled: bool = False):
        self.crop, self.scaled = crop, scaled

    def __repr__(self) -> str:
        return repr(self.crop)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Pixels:
        box = self.crop.box(picture.height, picture.width, rng)
        at_least = (self.crop.size, self.crop.size) if self.scaled else None
        return self.crop.finish(picture.pixels(box, at_least=at_least), rng)


class OfficialEvalCrop:
    """`EvalCrop` of a picture, of which no more is decoded than the crop."""

    def __init__(self, crop: EvalCrop):
        self.crop = crop

    def __repr__(self) -> str:
        return repr(self.crop)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Pixels:
        return self.crop.finish(picture.pixels(self.crop.box(picture.height, picture.width)))


def sample_crop(
        height: int, width: int, rng: np.random.Generator,
        scale: tuple[float, float] = (0.08, 1), ratio: tuple[float, float] = (3 / 4, 4 / 3),
        attempts: int = ATTEMPTS) -> Box | None:
    """A random box, or None where the release takes the centre crop: no attempt succeeded, or one took everything.

    The aspect ratio is drawn uniformly (timm: its logarithm), and then the height between those of the least and
    the greatest area (timm: the area). Boxes below `MIN_COVERED` of the image count as failed.
    """
    min_area, max_area = (share * height * width for share in scale)
    for _ in range(attempts):
        aspect = rng.uniform(*ratio)
        low, high = (round((area / aspect) ** 0.5) for area in (min_area, max_area))
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
            high -= round(high * aspect) > width
        high = min(high, height)
        box_height = int(rng.integers(min(low, high), high, endpoint=True))
        if box_height * round(box_height * aspect) < min_area:  # by rounding
            box_height += 1
        if box_height * round(box_height * aspect) > max_area:
            box_height -= 1
        box_width = round(box_height * aspect)
        area = box_height * box_width
        if not (max(min_area, MIN_COVERED * height * width, 1) <= area <= max_area
                and box_height <= height and box_width <= width):
            continue
        if (box_height, box_width) == (height, width):
            return None
        # TensorFlow draws below the room there is: the last row and column are in no crop that leaves any out.
        top = int(rng.integers(max(height - box_height, 1)))
        left = int(rng.integers(max(width - box_width, 1)))
        return top, left, box_height, box_width
    return None


def centre_box(height: int, width: int, size: int, crop_pct: float = 0.875) -> Box:
    """The square in the middle with `crop_pct` of the short side: size/(size+pad), where pad is in whole pixels."""
    pad = round(size * (1 / crop_pct - 1))
    side = max(int(np.float32(size / (size + pad)) * np.float32(min(height, width))), 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def crop(image: Pixels, box: Box) -> Pixels:
    top, left, height, width = box
    return image[top:top + height, left:left + width]


def resize_bicubic(image: Pixels, height: int, width: int) -> Floats:
    """`image` (H, W, 3) as (`height`, `width`, 3) float32, unclipped, as TensorFlow 1's `resize_bicubic`.

    That is the kernel with a = -0.75 looked up in a table, no antialiasing, and no half-pixel centres: output pixel i
    is taken at i*scale, where PIL, OpenCV and torch take (i+0.5)*scale - 0.5.
    """
    return _upright(_resized_columns(image, height, width))


def round_to_bfloat16(values: Floats) -> Floats:
    """The nearest bfloat16 of each value (ties to even), still as float32."""
    return torch.from_numpy(values).bfloat16().float().numpy()


def to_uint8(values: Floats) -> Pixels:
    """`values` clipped to 0..255, fractions dropped, as TensorFlow's cast."""
    return torch.from_numpy(values).clamp(0, 255).numpy().astype(np.uint8)


def _resized_columns(image: Pixels, height: int, width: int) -> Floats:
    """`image` resized, but lying on its side: (width, 3, height), so that both axes were resized as whole lines."""
    rows = _resize_lines(np.ascontiguousarray(image).reshape(len(image), -1), height)
    columns = _resize_lines(cv2.transpose(rows).reshape(-1, 3 * height), width)
    return columns.reshape(width, 3, height)


def _upright(columns: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """(height, width, 3) from (width, 3, height)."""
    width, _, height = columns.shape
    return cv2.transpose(columns.reshape(-1, height)).reshape(height, width, 3)


def _resize_lines(lines: Pixels | Floats, after: int) -> Floats:
    """Each of `after` lines from the four around its place in `lines`, with weights that need not sum to 1.

    The sum runs in TensorFlow's order: a flat area may end a hair below its value, and so lose a whole level.
    Products are rounded before they are added, so nothing here may fuse the two (`torch.addcmul` does).
    """
    sources, weights = _taps(len(lines), after)
    terms = (torch.mul(torch.from_numpy(lines.take(source, axis=0)), weight[:, None])
             for source, weight in zip(sources.T.numpy(), weights.T, strict=True))
    total = next(terms)
    for term in terms:
        total += term
    return total.numpy()


@functools.lru_cache(maxsize=1024)  # of a few kB each
def _taps(before: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The four lines of `before` that each of `after` lines comes from, (after, 4), and their weights."""
    places = np.arange(after, dtype=np.float32) * (np.float32(before) / np.float32(after))
    first = np.floor(places)
    near = np.rint((places - first) * _TABLE_SIZE).astype(int)
    far = _TABLE_SIZE - near
    sources = (first.astype(int)[:, None] + np.arange(-1, 3)).clip(0, before - 1)  # the edge repeats
    weights = np.stack((_FAR[near], _NEAR[near], _NEAR[far], _FAR[far]), axis=1)
    return torch.from_numpy(sources), torch.from_numpy(weights)


# ---- the same in less time, where only uint8 is wanted ----------------------------------------------------------

# Sums of four terms, in whatever order and fused or not, are off by at most 4 * 2**-24 of their absolute terms. With
# pixels up to 255 and weights that add up to 1.375 at most, two sums along each of two axes differ by 0.0005 at most.
_TOLERANCE = 2 ** -11
_MANY = 4000  # close calls, from which on it is faster to do everything in TensorFlow's order


def _bfloat16_columns(image: Pixels, size: int) -> Pixels:
    """`to_uint8(round_to_bfloat16(_resized_columns(image, size, size)))`.

    The order of the sums is not defined. Where that might change the result, at about one value in 1000, they are
    computed again in TensorFlow's order.
    """
    rows = _sum_lines(image.reshape(len(image), -1).astype(np.float32), size)
    columns = torch.from_numpy(_sum_lines(cv2.transpose(rows).reshape(-1, 3 * size), size))
    low, high = (values.copy_(values.bfloat16()).clamp_(0, 255).numpy().astype(np.uint8)
                 for values in (columns - _TOLERANCE, columns.add_(_TOLERANCE)))
    unsure = np.flatnonzero(low != high)
    if len(unsure) > _MANY:
        return to_uint8(round_to_bfloat16(_resized_columns(image, size, size)))
    low.reshape(-1)[unsure] = to_uint8(round_to_bfloat16(_resized_values(image, size, unsure)))
    return low.reshape(size, 3, size)


def _sum_lines(lines: Floats, after: int) -> Floats:
    """As `_resize_lines`, in one pass and in no certain order."""
    sources, weights = _taps(len(lines), after)
    return embedding_bag(sources, torch.from_numpy(lines), mode='sum', per_sample_weights=weights).numpy()


def _resized_values(image: Pixels, size: int, where: npt.NDArray[np.intp]) -> Floats:
    """The values of `_resized_columns(image, size, size)` at the flat indices `where`, from 4 x 4 pixels each."""
    x, channel, y = np.unravel_index(where, (size, 3, size))
    (rows, row_weights), (columns, column_weights) = (
        (sources.numpy()[at].T, weights.numpy()[at].T)
        for at, (sources, weights) in ((y, _taps(image.shape[0], size)), (x, _taps(image.shape[1], size))))
    first, second, third, fourth = image[rows[:, None], columns, channel] * row_weights[:, None]
    first, second, third, fourth = (first + second + third + fourth) * column_weights
    return first + second + third + fourth


def _cubic(a: float = -0.75) -> tuple[Floats, Floats]:
    """The cubic kernel at distances 0..1 and 1..2, in steps of 1/_TABLE_SIZE."""
    x = np.linspace(0, 1, _TABLE_SIZE + 1)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    x = x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return near.astype(np.float32), far.astype(np.float32)


_NEAR, _FAR = _cubic()
