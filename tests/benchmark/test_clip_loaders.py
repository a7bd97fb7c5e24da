"""The same videos from every source, and videos that are made the same every time."""

import numpy as np
import pytest
from videos import encode

from timm_rs.benchmark.clip_loaders import BASE, create_sources, panned, size_of, write_videos
from timm_rs.data.videos import open_folder
from timm_rs.transforms.frames import open_video


@pytest.fixture
def samples(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        (tmp_path / 'train' / name / 'clip.mp4').write_bytes(encode(6))
    return open_folder(str(tmp_path / 'train'))


def test_sources_hold_the_same_videos(samples, tmp_path):
    sources = create_sources(samples, tmp_path / 'scratch')
    assert list(sources) == [BASE, 'files, packed', 'JPEG frames, packed', 'JPEG frames in folders']
    wanted = open_video(samples.read(0)[0]).frames(range(6)).astype(int)
    for name, (found, num_bytes) in sources.items():
        assert sorted(found.targets()) == [0, 1] and num_bytes >= sum(size_of(found.read(index)[0]) for index in (0, 1))
        for index in (0, 1):  # one looks like the other
            frames = open_video(found.read(index)[0]).frames(range(6))
            assert np.abs(frames - wanted).mean() < (6 if 'JPEG' in name else 1e-9), name
    packed, folders = (open_video(sources[name][0].read(0)[0]).frames([3]) for name in list(sources)[2:])
    np.testing.assert_array_equal(packed, folders)


def test_videos_are_made_once_and_move(tmp_path):
    folder = write_videos(2, tmp_path / 'videos', num_frames=3)
    video = open_video(next(folder.glob('train/0/00001.mp4')).read_bytes())
    assert (video.num_frames, video.height, video.width) == (3, 240, 320)
    clip = panned(np.random.default_rng(1), 3)
    assert np.abs(video.frames([0, 1, 2]) - clip.astype(int)).mean() < 8
    assert np.abs(clip[0].astype(int) - clip[2]).mean() > 10
    stamp = folder.stat().st_mtime_ns
    assert write_videos(2, folder).stat().st_mtime_ns == stamp
