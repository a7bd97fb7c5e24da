"""From a video's bytes, or a folder's frames, to exactly the frames that are asked for, as uint8 pixels.

Frames are counted as they are shown, whatever their time stamps say. Nothing is searched by time: the packets of a file
are listed first, and decoded from the last key frame before the first wanted one, so that no frame is a neighbour of
the one that was meant. Only wanted frames are converted to RGB.

Files come from strangers: only containers that hold their data themselves are opened, from memory, by one thread.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from timm_rs.errors import UserError
from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, Box, Limits, Pixels, check_size, open_picture

if TYPE_CHECKING:
    import av

Clip: TypeAlias = npt.NDArray[np.uint8]  # (frames, height, width, 3)
Prepare: TypeAlias = Callable[[Pixels], Pixels]

VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.webm', '.mkv', '.avi')
# FFmpeg's names of what those are. Playlists, which make it open other files and addresses, are not among them.
_CONTAINERS = 'mov,matroska,avi'
# How each of the three begins: (place, bytes).
_MAGIC = {'mp4': (4, b'ftyp'), 'mkv': (0, b'\x1a\x45\xdf\xa3'), 'avi': (0, b'RIFF')}
JOINED, _JOINED_MAGIC = 'frames', b'timm_rs frames 1'  # the suffix of files of frames, and how they begin
_SEGMENT = b'\x18\x53\x80\x67'  # of a Matroska file, in which all else lies


class Frames(NamedTuple):
    """The frames of a video as files of images, in order; read when they are asked for."""

    paths: Sequence[Path]


Source: TypeAlias = bytes | Frames


class Video(Protocol):
    """A video whose length and size are known, and whose frames are decoded when they are asked for."""

    num_frames: int
    height: int
    width: int

    def frames(self, indices: Sequence[int], box: Box | None = None, prepare: Prepare = lambda pixels: pixels) -> Clip:
        """The frames numbered `indices`, from 0 on, in any order and repeated at will, cut to `box`.

        (len(indices), height, width, 3) uint8, each frame as `prepare` has it. Raises BadImage where only decoding
        shows that they cannot be had, and OSError for files of frames that cannot be read.
        """
        ...


def open_video(source: Source, limits: Limits = DEFAULT_LIMITS) -> Video:
    """The video in a file's bytes, be it that of `join_frames`, or in a folder of frames.

    Raises BadImage for what is no video, is cut off or has larger frames than the `limits` allow; OSError for files of
    frames that cannot be read; UserError without PyAV.
    """
    if isinstance(source, Frames):
        return _FrameVideo(source.paths, limits)
    if source.startswith(_JOINED_MAGIC):
        return _FrameVideo(_split_frames(source), limits)
    return _FileVideo(source, limits)


def import_av() -> Any:
    """PyAV, quiet. Raises UserError where it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError('videos need the package av: pip install av (or timm_rs[video]); folders of JPEG frames do '
                        'without') from None
    av.logging.set_level(None)
    return av


def write_video(path: Path, clip: Clip, rate: int = 10, **options: str) -> None:
    """Write `clip` as an MP4, by the `options` of x264; without any it loses nothing of its brightness.

    Raises OSError; UserError without PyAV.
    """
    with import_av().open(str(path), 'w') as file:
        _, height, width, _ = clip.shape
        stream = file.add_stream('libx264', rate, width=width, height=height, pix_fmt='yuv420p',
                                 options=options or dict(qp='0'))
        stream.codec_context.thread_count = 1
        for pixels in clip:
            file.mux(stream.encode(import_av().VideoFrame.from_ndarray(pixels, format='rgb24')))
        file.mux(stream.encode())


def join_frames(frames: Sequence[bytes]) -> bytes:
    """Encoded images as one file, for `open_video`: a mark, their number, the length of each, and they themselves."""
    lengths = np.array([len(frames), *map(len, frames)], '<u4')
    return b''.join([_JOINED_MAGIC, lengths.tobytes(), *frames])


def container_of(data: bytes) -> str:
    """The suffix, without its dot, of what is in a video's bytes: mp4, mkv or avi, or that of `join_frames`."""
    return JOINED if data.startswith(_JOINED_MAGIC) else next(
        suffix for suffix, (place, magic) in _MAGIC.items() if data.startswith(magic, place))


def _split_frames(data: bytes) -> list[memoryview]:
    start, content = len(_JOINED_MAGIC), memoryview(data)
    number = int.from_bytes(content[start:start + 4], 'little')
    if 4 * (number + 1) > len(data) - start:
        raise BadImage('truncated')
    lengths = np.frombuffer(data, '<u4', number, start + 4).astype(np.int64)
    ends = start + 4 * (number + 1) + np.cumsum(lengths)
    if number and ends[-1] != len(data):
        raise BadImage('truncated')
    return [content[end - length:end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


class _FrameVideo:
    """Frames that are files of their own, or parts of one."""

    def __init__(self, frames: Sequence[Path | memoryview], limits: Limits):
        self.files, self.limits, self.num_frames = frames, limits, len(frames)
        if not frames:
            raise BadImage('no frames')
        first = open_picture(self._read(0), 'RGB', limits)
        self.height, self.width = first.height, first.width

    def frames(self, indices: Sequence[int], box: Box | None = None, prepare: Prepare = lambda pixels: pixels) -> Clip:
        found = {}
        for index in set(indices):
            picture = open_picture(self._read(index), 'RGB', self.limits)
            if (picture.height, picture.width) != (self.height, self.width):
                raise BadImage(f'frame {index} is of another size than the first')
            found[index] = prepare(picture.pixels(box))
        return np.stack([found[index] for index in indices])

    def _read(self, index: int) -> bytes:
        file = self.files[index]
        return file.read_bytes() if isinstance(file, Path) else bytes(file)


class _FileVideo:
    def __init__(self, data: bytes, limits: Limits):
        self.data, self.limits = data, limits
        with self._open() as (stream, packets):
            self.height, self.width = stream.codec_context.height, stream.codec_context.width
            check_size(self.height, self.width, limits)
            if _is_cut_off(data, stream, packets):
                raise BadImage('truncated')
            self.times = _times(stream, packets)
            self.num_frames = len(self.times) or sum(1 for _ in _decode(packets))
        if not self.num_frames or not self.height or not self.width:
            raise BadImage('no frames')

    def frames(self, indices: Sequence[int], box: Box | None = None, prepare: Prepare = lambda pixels: pixels) -> Clip:
        top, left, height, width = box or (0, 0, self.height, self.width)
        found: dict[int, Pixels] = {}
        wanted = set(indices)
        converter = import_av().video.reformatter.VideoReformatter()  # one for all frames: each prepares tables
        with self._open() as (_, packets):
            for index, frame in self._numbered(packets, min(wanted)):
                if index not in wanted or index in found:
                    continue
                if frame.is_corrupt:
                    raise BadImage(f'damaged at frame {index}')
                pixels = to_pixels(frame, self.height, self.width, converter)
                found[index] = prepare(pixels[top:top + height, left:left + width])
                if len(found) == len(wanted):
                    return np.stack([found[index] for index in indices])
        raise BadImage(f'damaged at frame {min(wanted - found.keys())}')

    def _numbered(self, packets: 'list[av.Packet]', first: int) -> 'Iterator[tuple[int, av.VideoFrame]]':
        """Frames with their numbers, in order, from `first` on or earlier."""
        if not self.times:
            yield from enumerate(_decode(packets))
            return
        starts = [place for place, packet in enumerate(packets)
                  if packet.is_keyframe and packet.pts is not None and packet.pts <= self.times[first]]
        number = {time: index for index, time in enumerate(self.times)}
        for frame in _decode(packets[max(starts, default=0):]):
            if frame.pts in number:
                yield number[frame.pts], frame

    @contextmanager
    def _open(self) -> 'Iterator[tuple[av.VideoStream, list[av.Packet]]]':
        """The file's first video stream and all its packets; FFmpeg's errors in the block become BadImage."""
        av = import_av()
        if not self.data:
            raise BadImage('empty file')
        try:
            with av.open(io.BytesIO(self.data), options=dict(format_whitelist=_CONTAINERS)) as container:
                if not container.streams.video:
                    raise BadImage('no video stream')
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1  # a data worker is one core
                yield stream, list(container.demux(stream))
        except av.FFmpegError as error:
            raise BadImage(_reason(self.data, error)) from error


def to_pixels(frame: 'av.VideoFrame', height: int, width: int, converter: Any) -> Pixels:
    """A decoded frame as (height, width, 3) uint8, resized where a stream changes its size."""
    return converter.reformat(frame, width, height, 'rgb24').to_ndarray()


def _times(stream: 'av.VideoStream', packets: 'list[av.Packet]') -> list[int]:
    """The time stamp of every frame, in order; empty where those of the packets do not tell the frames apart.

    AVI numbers packets as they are stored, not as they are shown, and some of VP8 are not shown at all.
    """
    shown = [packet for packet in packets if packet.size and not packet.is_discard]
    times = sorted({packet.pts for packet in shown if packet.pts is not None})
    is_reliable = stream.container.format.name != 'avi' and stream.codec_context.name != 'vp8'
    return times if is_reliable and len(times) == len(shown) else []


def _decode(packets: 'list[av.Packet]') -> 'Iterator[av.VideoFrame]':
    for packet in packets:  # the last one is empty, and gives what the decoder still holds
        yield from packet.decode()  # type: ignore[misc]


def _is_cut_off(data: bytes, stream: 'av.VideoStream', packets: 'list[av.Packet]') -> bool:
    """Whether the file announces more than there is. FFmpeg takes what is missing for the end."""
    kind = stream.container.format.name
    if kind == 'avi':
        return 8 + int.from_bytes(data[4:8], 'little') > len(data)
    if 'matroska' not in kind:
        return stream.frames > sum(1 for packet in packets if packet.size)
    at = data.find(_SEGMENT) + len(_SEGMENT)
    length = 9 - data[at].bit_length()  # of the number, whose first byte begins with as many zeros, and a one
    size = int.from_bytes(data[at:at + length], 'big') & (1 << 7 * length) - 1
    return size != (1 << 7 * length) - 1 and at + length + size > len(data)  # all ones: not known


def _reason(data: bytes, error: 'av.FFmpegError') -> str:
    if not any(data.startswith(magic, place) for place, magic in _MAGIC.values()):
        return 'not a video'
    if isinstance(error, EOFError):
        return 'no frames, or truncated'
    if data.startswith(b'ftyp', 4) and b'moov' not in data:  # an index that is written last
        return 'truncated'
    return f'damaged: {error.strerror}'
