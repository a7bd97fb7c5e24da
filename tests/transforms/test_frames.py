"""Every frame by its number, from every kind of file; and files that are none."""

import builtins

import numpy as np
import pytest
from videos import HEIGHT, WIDTH, encode, number_of, picture, write_audio, write_frames

from timm_rs.errors import UserError
from timm_rs.transforms.decode import BadImage, Limits
from timm_rs.transforms.frames import Frames, open_video

NUM_FRAMES = 150
IRREGULAR = np.cumsum(np.random.default_rng(0).integers(1, 9, NUM_FRAMES)).tolist()
KINDS = {
    'h264, keys 250 apart': dict(bf=2),
    'h264, keys 60 apart': dict(key_distance=60, bf=3),
    'h264, open groups': dict(key_distance=20, bf=3, x264opts='open-gop=1'),
    'h264, no key but the first': dict(x264opts='intra-refresh=1'),
    'h264, irregular times': dict(key_distance=30, times=IRREGULAR),
    'h264 in mkv': dict(container='matroska', key_distance=60),
    'h264 in avi, B-frames': dict(container='avi', key_distance=60, bf=2),
    'mpeg4 in avi, B-frames': dict(codec='mpeg4', container='avi', key_distance=12, bf=2),
    'vp9': dict(codec='libvpx-vp9', container='webm', lag_in_frames=16),
    'vp9, irregular times': dict(codec='libvpx-vp9', container='webm', times=IRREGULAR, key_distance=60),
    'vp8, hidden frames': dict(codec='libvpx', container='webm', auto_alt_ref=1, lag_in_frames=16),
}


@pytest.fixture(scope='module')
def files():
    return {kind: encode(NUM_FRAMES, **settings) for kind, settings in KINDS.items()}


@pytest.mark.parametrize('kind', KINDS)
def test_frames_are_those_that_were_asked_for(files, kind):
    video = open_video(files[kind])
    assert (video.num_frames, video.height, video.width) == (NUM_FRAMES, HEIGHT, WIDTH)
    rng = np.random.default_rng(1)
    for wanted in (range(NUM_FRAMES), [0], [NUM_FRAMES - 1], [70, 3, 70, 149, 0],
                   *(rng.integers(NUM_FRAMES - 63) + np.arange(0, 64, 2) for _ in range(4))):
        frames = open_video(files[kind]).frames(wanted)
        assert frames.shape == (len(wanted), HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
        assert [number_of(frame) for frame in frames] == list(wanted)


@pytest.fixture
def torchcodec():
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as error:  # it needs libraries of FFmpeg, which its wheel has not
        pytest.skip(f'torchcodec: {str(error).splitlines()[0]}')
    return decoders


@pytest.mark.parametrize('kind', [kind for kind in KINDS if 'avi' not in kind and 'open groups' not in kind])
def test_torchcodec_gives_the_same_frames(files, torchcodec, kind):
    """Where it gives what was asked for: results/LOG.md says what it makes of the others."""
    theirs = torchcodec.VideoDecoder(files[kind], dimension_order='NHWC', num_ffmpeg_threads=1, seek_mode='exact')
    wanted = [70, 3, 70, 149, 0]
    np.testing.assert_array_equal(theirs.get_frames_at(wanted).data.numpy(), open_video(files[kind]).frames(wanted))


def test_colours_and_boxes(files):
    data = encode(4, colour=(250, 30, 120), crf=1)
    whole = open_video(data).frames([3, 1])
    assert abs(whole[0][:, 2:6].astype(int) - (250, 30, 120)).max() < 12
    np.testing.assert_array_equal(open_video(data).frames([3, 1], (5, 6, 7, 9)), whole[:, 5:12, 6:15])


def test_only_wanted_frames_are_converted(files, monkeypatch):
    converted = []
    monkeypatch.setattr('timm_rs.transforms.frames.to_pixels',
                        lambda frame, *size: converted.append(frame.pts) or np.zeros((*size[:2], 3), np.uint8))
    open_video(files['h264, keys 60 apart']).frames([104, 100, 102, 100])
    assert len(converted) == len(set(converted)) == 3


def test_folders_of_frames(tmp_path):
    write_frames(tmp_path / 'clip', 12)
    video = open_video(Frames(sorted((tmp_path / 'clip').iterdir())))
    assert (video.num_frames, video.height, video.width) == (12, HEIGHT, WIDTH)
    frames = video.frames([11, 0, 5, 0], (4, 0, 20, WIDTH))
    assert frames.shape == (4, 20, WIDTH, 3) and [number_of(frame) for frame in frames] == [11, 0, 5, 0]
    assert abs(frames[0].astype(int) - picture(11)[4:24]).max() < 30


def zeroed(data):
    return data[:len(data) // 8] + bytes(len(data) // 8) + data[len(data) // 4:]


BAD = {
    'empty': (lambda: b'', 'empty file'),
    'text': (lambda: b'no such video, sorry\n' * 50, 'not a video'),
    'a playlist': (lambda: b'#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n', 'not a video'),
    'a list of files': (lambda: b"ffconcat version 1.0\nfile '/etc/passwd'\n", 'not a video'),
    'sound only': (write_audio, 'no video stream'),
    'mp4 without frames': (lambda: encode(0), 'no video stream'),
    'mkv without frames': (lambda: encode(0, container='matroska'), 'no frames'),
    'mp4 cut off': (lambda: encode()[:1500], 'truncated'),
    'mp4 cut off, index first': (lambda: encode(100, movflags='faststart', crf=5)[:-1500], 'truncated'),
    'mkv cut off': (lambda: encode(container='matroska')[:-600], 'truncated'),
    'webm cut off': (lambda: encode(codec='libvpx-vp9', container='webm')[:-600], 'truncated'),
    'avi cut off': (lambda: encode(container='avi')[:-600], 'truncated'),
    'middle zeroed': (lambda: zeroed(encode(100, key_distance=10, crf=5)), 'damaged'),
    'too large': (encode, '64 x 48 pixels, more than the 3000 allowed'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_files_say_why(kind):
    make, reason = BAD[kind]
    with pytest.raises(BadImage, match=reason):
        video = open_video(make(), Limits(pixels=3000) if kind == 'too large' else Limits())
        video.frames(range(video.num_frames))


def test_bad_folders_of_frames_say_why(tmp_path):
    with pytest.raises(BadImage, match='no frames'):
        open_video(Frames([]))
    write_frames(tmp_path / 'clip', 3)
    paths = sorted((tmp_path / 'clip').iterdir())
    paths[1].write_bytes(b'')
    with pytest.raises(BadImage, match='empty file'):
        open_video(Frames(paths)).frames([0, 1])
    paths[1].unlink()
    with pytest.raises(FileNotFoundError):
        open_video(Frames(paths)).frames([1])


def test_without_pyav_one_sentence_says_what_to_install(monkeypatch):
    import_module = builtins.__import__

    def refuse(name, *arguments):
        if name == 'av':
            raise ImportError(name)
        return import_module(name, *arguments)
    data = encode(2)
    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(UserError, match=r'pip install .*timm_rs\[video\]'):
        open_video(data)
