"""Clips are the authors': frames, crops, resizing and views as TensorFlow's; each a function of its seed."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import EXPECTED
from PIL import Image
from scipy.stats import ks_2samp
from torch.utils.data import DataLoader, Dataset
from videos import HEIGHT, WIDTH, encode, number_of, picture, write_frames

from timm_rs.data.shards.encoding import encode as encode_image
from timm_rs.transforms.clips import (
    EvalClips,
    TrainClip,
    random_frames,
    resize_bilinear,
    spread_crops,
    spread_frames,
)
from timm_rs.transforms.decode import BadImage, Limits
from timm_rs.transforms.frames import Frames, join_frames

GOLDENS = np.load(EXPECTED / 'clips.npz')


def cases(kind):
    found = [tuple(map(int, re.findall(r'\d+', key))) for key in GOLDENS if key.startswith(f'{kind}/')]
    assert found
    return sorted(found)


@pytest.mark.parametrize('length', [length for length, in cases('starts')])
def test_frames_are_the_authors(length):
    np.testing.assert_array_equal(spread_frames(length, 32, 2, 10), GOLDENS[f'spread/{length}'])
    np.testing.assert_array_equal(spread_frames(length, 32, 2, 1)[0], GOLDENS[f'middle/{length}'])
    rng = np.random.default_rng(0)
    clips = np.array([random_frames(length, 32, 2, rng) for _ in range(2000)])
    theirs = GOLDENS[f'starts/{length}']
    assert (clips == (clips[:, :1] + 2 * np.arange(32)) % length).all()
    room = length - 62 if length > 62 else length
    assert set(clips[:, 0]) == set(range(room)) and theirs.max() < room
    assert len(set(theirs)) == room or ks_2samp(clips[:, 0], theirs).pvalue > 1e-3


@pytest.mark.parametrize(('height', 'width'), cases('resize'))
def test_resizing_is_tensorflows(height, width):
    np.testing.assert_array_equal(
        resize_bilinear(GOLDENS['image'], height, width), GOLDENS[f'resize/{height}/{width}'])


@pytest.mark.parametrize(('side', 'num_crops'), cases('crops'))
def test_crops_for_evaluation_are_the_authors(side, num_crops):
    image = GOLDENS[f'short/{side}']
    height, width = image.shape[:2]
    assert height == side
    found = np.stack([image[:, left:left + side] for left in spread_crops(width, side, num_crops)])
    np.testing.assert_array_equal(found, GOLDENS[f'crops/{side}/{num_crops}'])
    assert spread_crops(side, side, num_crops) == [0] * num_crops


@pytest.mark.parametrize(('height', 'width'), cases('boxes'))
def test_crops_for_training_follow_the_authors_law(height, width):
    theirs = GOLDENS[f'boxes/{height}/{width}'].astype(int)
    rng, crop = np.random.default_rng(2), TrainClip(8, 1, 1)
    ours = np.array([crop.box(height, width, rng) for _ in range(4000)])
    for measure in (lambda box: box[:, 0], lambda box: box[:, 1], lambda box: box[:, 2], lambda box: box[:, 3],
                    lambda box: box[:, 2] * box[:, 3]):
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


def test_views_are_all_clips_of_each_crop(tmp_path):
    """Left, middle and right third of frames whose number is in their brightness."""
    for index in range(20):
        frame = np.full((24, 72, 3), 10 * index, np.uint8)
        frame[:, :24, 0], frame[:, 24:48, 1], frame[:, 48:, 2] = 255, 255, 255
        Image.fromarray(frame).save(tmp_path / f'{index:02}.png')
    source = Frames(sorted(tmp_path.iterdir()))
    views = EvalClips(24, 4, 2, num_clips=2, num_crops=3)(source, 0)
    assert views.shape == (6, 4, 24, 24, 3) and views.dtype == np.uint8
    starts = [0, 12]
    for view, (crop, clip) in zip(views, [(crop, clip) for crop in range(3) for clip in range(2)], strict=True):
        assert (view[..., crop] == 255).all()
        numbers = view[..., (crop + 1) % 3].mean((1, 2)) / 10
        np.testing.assert_array_equal(numbers, starts[clip] + 2 * np.arange(4))
    one = EvalClips(24, 4, 2)(source, 0)
    assert one.shape == (4, 24, 24, 3) and (one[..., 1] == 255).all() and one[0, 0, 0, 0] == 60


def test_a_clip_is_a_function_of_its_seed(tmp_path):
    data, make = encode(90), TrainClip(32, 8, 3, scale=(0.3, 1))
    clips = [make(data, seed) for seed in range(12)]
    for seed, clip in enumerate(clips):
        assert clip.shape == (8, 32, 32, 3) and clip.dtype == np.uint8 and clip.flags.c_contiguous
        np.testing.assert_array_equal(clip, make(data, seed))
    assert len({clip.tobytes() for clip in clips}) == 12
    # What is drawn, and in which order, belongs to a run that is resumed.
    for index in range(30):
        Image.fromarray(picture(index)).save(tmp_path / f'{index:02}.png')
    clip = make(Frames(sorted(tmp_path.iterdir())), 3)
    assert hashlib.sha256(clip.tobytes()).hexdigest()[:12] == '74db3436e889'


def test_frames_flips_and_loops(tmp_path):
    write_frames(tmp_path / 'clip', 5)
    source = Frames(sorted((tmp_path / 'clip').iterdir()))
    whole = dict(scale=(1, 1), ratio=(WIDTH / HEIGHT, WIDTH / HEIGHT))
    clips = [TrainClip(48, 4, 2, hflip=flip, **whole)(source, 7) for flip in (0, 1)]
    np.testing.assert_array_equal(clips[0][:, :, ::-1], clips[1])
    wide = [frame.repeat(4, 1) for frame in clips[0]]  # 192 columns: 8 bars of 24
    numbers = [number_of(frame) for frame in wide]
    assert all((second - first) % 5 == 2 for first, second in zip(numbers, numbers[1:], strict=False))
    flipped = sum((TrainClip(48, 1, 1, **whole)(source, seed)[:, :, ::-1] ==
                   TrainClip(48, 1, 1, hflip=0, **whole)(source, seed)).all() for seed in range(40))
    assert 8 < flipped < 40


def test_limits_hold():
    with pytest.raises(BadImage, match='64 x 48 pixels, more than the 100 allowed'):
        TrainClip(8, 2, 1, limits=Limits(pixels=100))(encode(3), 0)


class MemoryOfAWorker(Dataset):
    """Makes a clip, of each kind of video in turn, and gives the bytes that its process has in memory."""

    def __init__(self, length):
        pictures = [encode_image(Image.fromarray(picture(index)), 48, 90)[0] for index in range(40)]
        self.sources = [encode(60, bf=2), encode(60, codec='libvpx-vp9', container='webm'), join_frames(pictures),
                        encode()[:1500]]
        self.length, self.make = length, TrainClip(96, 8, 2)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with contextlib.suppress(BadImage):
            self.make(self.sources[index % len(self.sources)], index)
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is counted as Linux says it')
@pytest.mark.parametrize('num_clips', [240, pytest.param(2000, marks=pytest.mark.stress)])
def test_memory_of_a_worker_stays_flat(num_clips):
    memory = list(DataLoader(MemoryOfAWorker(num_clips), batch_size=None, num_workers=1))
    growth = max(memory[-40:]) - max(memory[:num_clips // 4])
    print(f'{growth / 1e6:.2f} MB more after {num_clips} clips, of {memory[-1] / 1e6:.0f} MB')
    assert growth < 3e6  # the last 135 good clips are 30 MB


@pytest.mark.parametrize('settings', [dict(scale=(0, 1)), dict(scale=(0.5, 2)), dict(ratio=(2, 1))])
def test_ranges_are_checked(settings):
    with pytest.raises(ValueError, match='scale must be a range within 0..1'):
        TrainClip(8, 2, 1, **settings)
