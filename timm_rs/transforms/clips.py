"""Which frames of a video make a clip, and its pixels, as in the authors' video code; a function of the seed alone.

Source: tensorflow/models, official/vision/ops/preprocess_ops_3d.py and dataloaders/video_input.py. Frames go by number,
not by seconds: nothing is converted to another frame rate. differs from the paper: frames are decoded by FFmpeg.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from timm_rs.transforms.decode import DEFAULT_LIMITS, Box, Limits, Pixels
from timm_rs.transforms.frames import Clip, Source, open_video
from timm_rs.transforms.official_crops import sample_crop
from timm_rs.transforms.sample import SampleTransform

Views: TypeAlias = npt.NDArray[np.uint8]  # (views, frames, height, width, 3)

ATTEMPTS = 100  # at a crop, after which the whole frame is taken


class TrainClip(SampleTransform):
    """A video's bytes or frames, and a seed -> (frames, size, size, 3) uint8: one start, one crop, one flip.

    `num_frames` are taken `stride` apart. Areas of the crop are shares in `scale`, width/height is in `ratio`. Raises
    `decode.BadImage` for a video that cannot be used; when it is made, ValueError for ranges that are empty or out of
    bounds.
    """

    def __init__(self, size: int, num_frames: int, stride: int, scale: Sequence[float] = (0.08, 1),
                 ratio: Sequence[float] = (0.5, 2), hflip: float = 0.5, limits: Limits = DEFAULT_LIMITS):
        (small, large), (narrow, wide) = scale, ratio
        if not 0 < small <= large <= 1 or not 0 < narrow <= wide:
            raise ValueError(f'scale must be a range within 0..1 and ratio one above 0, got {scale} and {ratio}')
        self.size, self.num_frames, self.stride, self.limits = size, num_frames, stride, limits
        self.scale, self.ratio, self.hflip = (small, large), (narrow, wide), hflip

    def __call__(self, source: Source, seed: int) -> Clip:
        rng = np.random.default_rng(seed)
        with self.limits.in_time():
            video = open_video(source, self.limits)
            indices = random_frames(video.num_frames, self.num_frames, self.stride, rng)
            box = self.box(video.height, video.width, rng)
            clip = video.frames(indices, box, partial(resize_bilinear, height=self.size, width=self.size))
        return np.ascontiguousarray(clip[:, :, ::-1]) if rng.random() < self.hflip else clip

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """The crop of a clip whose frames are `height` x `width`."""
        return sample_crop(height, width, rng, self.scale, self.ratio, ATTEMPTS) or (0, 0, height, width)


class EvalClips(SampleTransform):
    """A video's bytes or frames -> views (crops * clips, frames, size, size, 3) uint8, one without the first dimension.

    The clips are spread over the video, one or three crops over the long side of frames whose short side is `size`; all
    clips of a crop follow each other. Raises as `TrainClip`.
    """

    def __init__(self, size: int, num_frames: int, stride: int, num_clips: int = 1, num_crops: int = 1,
                 limits: Limits = DEFAULT_LIMITS):
        self.size, self.num_frames, self.stride, self.limits = size, num_frames, stride, limits
        self.num_clips, self.num_crops = num_clips, num_crops

    def __call__(self, source: Source, seed: int) -> Clip | Views:
        with self.limits.in_time():
            video = open_video(source, self.limits)
            indices = spread_frames(video.num_frames, self.num_frames, self.stride, self.num_clips)
            height, width = (max(self.size, side * self.size // other) for side, other in (
                (video.height, video.width), (video.width, video.height)))
            clips = video.frames(indices.reshape(-1).tolist(), None, partial(
                resize_bilinear, height=height, width=width))
        corners = zip(*(spread_crops(side, self.size, self.num_crops) for side in (height, width)), strict=True)
        crops = [clips[:, top:top + self.size, left:left + self.size] for top, left in corners]
        views = np.stack(crops).reshape(-1, self.num_frames, *crops[0].shape[1:])
        return views if len(views) > 1 else views[0]


def random_frames(length: int, num_frames: int, stride: int, rng: np.random.Generator) -> list[int]:
    """The frames of a clip from a random start in a video of `length` frames; a short one is repeated."""
    room = length - (num_frames - 1) * stride
    start = int(rng.integers(room if room > 0 else length))
    return [(start + step * stride) % length for step in range(num_frames)]


def spread_frames(length: int, num_frames: int, stride: int, num_clips: int) -> npt.NDArray[np.int64]:
    """The frames (num_clips, num_frames) of clips spread evenly over a video, of one clip in its middle."""
    room = max(length - num_frames * stride, 0)
    starts = np.linspace(0, room, num_clips, dtype=np.float32).astype(np.int64) if num_clips > 1 else [room // 2]
    return (np.asarray(starts)[:, None] + stride * np.arange(num_frames)) % length


def spread_crops(side: int, size: int, num_crops: int) -> list[int]:
    """Where crops of `size` begin in `side`: one in the middle, or three, at its start, middle and end."""
    return [(side - size) // 2] if num_crops == 1 else [0, round(side / 2 - size // 2), side - size]


def resize_bilinear(image: Pixels, height: int, width: int) -> Pixels:
    """`image` (H, W, 3) as (`height`, `width`, 3), not antialiased, fractions dropped: `tf.image.resize` and its cast.

    The sums are those of TensorFlow, in its order, so that flat areas keep their value.
    """
    if image.shape[:2] == (height, width):
        return image
    rows, columns, channels = image.shape
    values = torch.from_numpy(np.ascontiguousarray(image)).view(rows, -1).float()  # picking single columns is quicker
    for dimension, before, after, step in ((1, columns, width, channels), (0, rows, height, 1)):
        low, high, weight = _neighbours(before, after, step)
        first, second = values.index_select(dimension, low), values.index_select(dimension, high)
        values = second.sub_(first).mul_(weight if dimension else weight[:, None]).add_(first)
    return values.to(torch.uint8).view(height, width, channels).numpy()


def _neighbours(before: int, after: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `after` pixels the two of `before` that it lies between, and how far it is from the first.

    Pixels that lie side by side are `channels` values each, and so are their neighbours.
    """
    places = (torch.arange(after) + 0.5) * torch.tensor(before / after) - 0.5
    low, high = places.floor(), places.ceil().clamp(max=before - 1)
    first, second = (channels * side[:, None].long() + torch.arange(channels) for side in (low.clamp(min=0), high))
    return first.flatten(), second.flatten(), (places - low).repeat_interleave(channels)
