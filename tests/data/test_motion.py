"""Digits that move: each kind does what it is called, and its file holds what was drawn."""

import numpy as np
import pytest

from timm_rs.data import builtin
from timm_rs.data.builtin import Images, write_builtin
from timm_rs.data.motion import KINDS, NUM_FRAMES, SIZE, moving
from timm_rs.data.videos import open_folder
from timm_rs.transforms.frames import open_video, write_video

DIGITS = np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8)


@pytest.mark.parametrize('kind', KINDS)
def test_a_digit_moves_as_its_class_says(kind):
    down, right, turn = KINDS[kind]
    speeds = set()
    for seed in range(12):
        clip = moving(DIGITS[3], kind, np.random.default_rng(seed))
        assert clip.shape == (NUM_FRAMES, SIZE, SIZE, 3) and clip.dtype == np.uint8
        shifts = [speed for speed in (1, 2, 3) if all(
            (np.roll(first, (down * speed, right * speed), (0, 1)) == second).all()
            for first, second in zip(clip, clip[1:], strict=False))]
        assert bool(shifts) == (not turn)
        speeds |= set(shifts)
    assert speeds == (set() if turn else {1, 2, 3})


def test_turning_goes_either_way_about_one_place():
    clips = [moving(DIGITS[4], kind, np.random.default_rng(5)).astype(int)
             for kind in ('clockwise', 'counterclockwise')]
    np.testing.assert_array_equal(clips[0][0], clips[1][0])
    assert all((first != second).any() for first, second in zip(clips[0][1:], clips[1][1:], strict=True))
    assert len({frame.sum() // 2000 for frame in clips[0]}) < 4  # as bright everywhere: nothing leaves


def test_the_folder_holds_what_was_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, 'load_digits', lambda: Images(DIGITS, np.arange(8), np.arange(8) >= 6))
    monkeypatch.setitem(builtin.MADE, 'motion', (builtin.MADE['motion'][0], 16, '.mp4'))
    folder = write_builtin('motion', tmp_path / 'motion')
    train, validation = (open_folder(str(folder / split)) for split in ('train', 'validation'))
    assert (len(train), len(validation)) == (12, 4)
    source, _ = train.read(0)
    video = open_video(source)
    assert (video.num_frames, video.height, video.width) == (NUM_FRAMES, SIZE, SIZE)
    frames = video.frames(range(NUM_FRAMES)).astype(int)
    assert np.abs(frames - frames[..., :1]).max() <= 1  # grey
    stamp = folder.stat().st_mtime_ns
    assert write_builtin('motion', folder).stat().st_mtime_ns == stamp
    next(folder.rglob('*.mp4')).unlink()
    write_builtin('motion', folder)
    assert len(open_folder(str(folder / 'train'))) + len(open_folder(str(folder / 'validation'))) == 16


def test_videos_are_written_without_loss(tmp_path):
    clip = moving(DIGITS[2], 'left', np.random.default_rng(1))
    write_video(tmp_path / 'clip.mp4', clip)
    found = open_video((tmp_path / 'clip.mp4').read_bytes()).frames(range(NUM_FRAMES))
    assert np.abs(found.astype(int) - clip).max() <= 2  # of 256 levels of grey a video has 219
