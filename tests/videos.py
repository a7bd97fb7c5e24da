"""Videos written by PyAV for tests, each frame with its number burnt in as bars: black is 0, white is 1."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS = 8
HEIGHT, WIDTH = 48, 64


def picture(number, colour=(255, 255, 255)):
    """(48, 64, 3) uint8 with `number` in bars of `colour`."""
    bits = (number >> np.arange(BITS) & 1).repeat(WIDTH // BITS)
    return np.broadcast_to(bits[:, None] * np.uint8(colour), (HEIGHT, WIDTH, 3)).astype(np.uint8)


def number_of(frame):
    """The number in a frame (H, W, 3) or in what a crop has left of it."""
    bits = frame.mean((0, 2)).reshape(BITS, -1).mean(1) > frame.max() / 4
    return int((bits << np.arange(BITS)).sum())


def encode(num_frames=40, codec='libx264', container='mp4', key_distance=250, times=None, colour=(255, 255, 255),
           **options):
    """A file's bytes; `times` (num_frames,) of the frames are in 1/90 s, otherwise 30 a second."""
    file = io.BytesIO()
    with av.open(file, 'w', format=container) as output:
        stream = output.add_stream(codec, rate=30, width=WIDTH, height=HEIGHT, pix_fmt='yuv420p',
                                   time_base=Fraction(1, 90), options={
                                       key.replace('_', '-'): str(value) for key, value in options.items()})
        stream.codec_context.gop_size = key_distance
        output.start_encoding()
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, colour), format='rgb24')
            frame.pts, frame.time_base = (3 * index if times is None else times[index]), Fraction(1, 90)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def write_audio():
    """A file with sound only."""
    file = io.BytesIO()
    with av.open(file, 'w', format='mp4') as output:
        stream = output.add_stream('aac', rate=8000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def write_frames(folder: Path, num_frames, colour=(255, 255, 255)):
    """The same frames as JPEGs, numbered from 1 on."""
    folder.mkdir(parents=True)
    for index in range(num_frames):
        Image.fromarray(picture(index, colour)).save(folder / f'img_{index + 1:05}.jpg', quality=95)
