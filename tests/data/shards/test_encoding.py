"""Videos packed as they are, or as JPEGs of their frames: the same clips, from one read each."""

import numpy as np
import pytest
from conftest import load_tool, write_images
from videos import encode, number_of, write_frames

from timm_rs.data.shards.reading import ShardSamples
from timm_rs.data.videos import frames_in, open_video_split
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.clips import TrainClip
from timm_rs.transforms.decode import BadImage
from timm_rs.transforms.frames import Frames, join_frames, open_video


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp('videos')
    for split in ('train', 'validation'):
        for label, name in enumerate(('cat', 'dog')):
            (root / split / name).mkdir(parents=True)
            for index in range(3):
                (root / split / name / f'a.{index}.mp4').write_bytes(encode(20 + index + 5 * label))
        write_frames(root / split / 'dog/frames', 7)
        (root / split / 'cat/bad.webm').write_bytes(b'no video')
    return root


@pytest.fixture(scope='module', params=['--videos', '--frames'])
def packed(request, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('packed')
    load_tool('pack_dataset').main([str(source), str(folder), request.param, '--workers', '0', '--shards', '2'])
    return request.param, folder


def by_stem(samples):
    return {samples.name(index).rsplit('/', 1)[-1].removesuffix('.mp4').removesuffix('.frames'): samples.read(index)
            for index in range(len(samples))}


def test_packed_videos_are_those_of_the_folder(packed, source):
    how, folder = packed
    theirs = open_video_split(Recipe(data_dir=str(source)), 'train', True)
    ours = open_video_split(Recipe(data_dir=str(folder)), 'train', True)
    assert isinstance(ours, ShardSamples) and len(ours) == 7 == len(theirs) - 1 and ours.classes == theirs.classes
    found = {}
    for index in range(len(ours)):
        data, label = ours.read(index)
        video = open_video(data)
        frames = video.frames(range(video.num_frames))
        assert [number_of(frame) for frame in frames] == list(range(video.num_frames))
        found.setdefault(label, []).append(video.num_frames)
    assert {label: sorted(lengths) for label, lengths in found.items()} == {0: [20, 21, 22], 1: [7, 25, 26, 27]}
    names = [ours.name(index) for index in range(len(ours))]
    assert sum(name.endswith('.frames') for name in names) == (1 if how == '--videos' else 7)
    assert 'bad.webm' in (folder / 'bad_samples.csv').read_text()


def test_clips_of_packed_frames_are_those_of_the_same_jpegs(packed, source):
    folder = packed[1]
    ours = open_video_split(Recipe(data_dir=str(folder)), 'train', True)
    index = next(index for index in range(len(ours)) if 'frames.' in ours.name(index))
    make = TrainClip(24, 4, 2)
    for seed in range(4):
        np.testing.assert_array_equal(
            make(ours.read(index)[0], seed), make(frames_in(source / 'train/dog/frames'), seed))


def test_images_and_videos_are_not_taken_for_each_other(packed, tmp_path, run):
    result = run('--data-dir', packed[1], '--device', 'cpu')
    assert result.code == 2 and 'has packed videos: give --task video' in result.err
    write_images(tmp_path / 'images/train', {'cat': 3})
    load_tool('pack_dataset').main([str(tmp_path / 'images'), str(tmp_path / 'packed'), '--workers', '0', '--split',
                                    'train'])
    with pytest.raises(UserError, match='has packed images: leave out --task video'):
        open_video_split(Recipe(data_dir=str(tmp_path / 'packed')), 'train', True)


def test_joined_frames_that_are_cut_off_say_so(tmp_path):
    write_frames(tmp_path / 'clip', 3)
    whole = join_frames([path.read_bytes() for path in frames_in(tmp_path / 'clip').paths])
    assert isinstance(frames_in(tmp_path / 'clip'), Frames) and open_video(whole).num_frames == 3
    for cut in (whole[:-1], whole[:20], whole[:17], whole + b'x'):
        with pytest.raises(BadImage, match='truncated'):
            open_video(cut)
    with pytest.raises(BadImage, match='no frames'):
        open_video(join_frames([]))
