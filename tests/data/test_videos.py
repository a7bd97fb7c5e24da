"""Folders, lists and folders of frames as samples; what is listed and not there is named."""

import shutil

import pytest
from videos import encode, write_frames

from timm_rs.data.listing import EMPTY_OF_VIDEOS, MISSING, NO_VIDEO, OF_SYSTEM, summary
from timm_rs.data.samples import Relabelled
from timm_rs.data.videos import frames_in, open_folder, open_list, open_video_split
from timm_rs.errors import UserError
from timm_rs.inference.predict import find_images
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.frames import open_video

VIDEO = encode(4)


@pytest.fixture
def folder(tmp_path):
    """Three classes: two files, a folder of frames, a file two folders deep; and other things."""
    root = tmp_path / 'videos' / 'train'
    for name in ('riding a bike/b10.mp4', 'riding a bike/b9.WEBM', 'dancing/deep/c.mkv', 'empty/notes.txt'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(VIDEO)
    write_frames(root / 'dancing/of frames', 12)
    (root / 'dancing/of frames/img_00003.jpg').rename(root / 'dancing/of frames/img_3.jpg')
    shutil.copy(root / 'dancing/of frames/img_00001.jpg', root / 'dancing/thumbnail.jpg')
    (root / 'dancing/.hidden.mp4').write_bytes(VIDEO)
    return root


def names(samples, root):
    return [samples.name(index).removeprefix(f'{root}/') for index in range(len(samples))]


def test_class_folders(folder):
    samples = open_folder(str(folder))
    assert names(samples, folder) == [
        'dancing/deep/c.mkv', 'dancing/of frames', 'riding a bike/b9.WEBM', 'riding a bike/b10.mp4']
    assert samples.classes == {'dancing': 0, 'riding a bike': 1} and samples.targets() == [0, 0, 1, 1]
    assert samples.read(3) == (VIDEO, 1)
    frames, label = samples.read(1)
    assert label == 0 and open_video(frames).num_frames == 12
    left_out = {name.removeprefix(f'{folder}/'): reason for name, reason in samples.left_out}
    assert left_out == {'dancing/.hidden.mp4': OF_SYSTEM, 'dancing/thumbnail.jpg': NO_VIDEO,
                        'empty/notes.txt': NO_VIDEO, 'empty': EMPTY_OF_VIDEOS}
    assert '2 neither a video nor one of its frames (.txt, .jpg)' in summary(samples.left_out)
    assert open_folder(str(folder), class_is_leaf=True).classes == {'dancing': 0, 'deep': 1, 'riding a bike': 2}


def test_a_folder_with_videos_in_it_is_none_itself(folder):
    shutil.copy(folder / 'dancing/thumbnail.jpg', folder / 'dancing/deep/thumbnail.jpg')
    assert names(open_folder(str(folder)), folder) == [
        'dancing/deep/c.mkv', 'dancing/of frames', 'riding a bike/b9.WEBM', 'riding a bike/b10.mp4']


def test_without_classes_any_folder_of_images_is_a_video(folder):
    shutil.copytree(folder / 'dancing/of frames', folder / 'frames')
    found = [name.removeprefix(f'{folder}/') for name in find_images([str(folder)], of_videos=True)]
    assert found == ['dancing/deep/c.mkv', 'dancing/of frames', 'frames', 'riding a bike/b10.mp4',
                     'riding a bike/b9.WEBM']
    assert find_images([str(folder / 'frames')], of_videos=True) == [str(folder / 'frames')]


def test_frames_are_in_natural_order(tmp_path):
    for name in ('f10.jpg', 'f9.jpg', 'f1.JPG', 'readme.txt'):
        (tmp_path / name).touch()
    assert [path.name for path in frames_in(tmp_path).paths] == ['f1.JPG', 'f9.jpg', 'f10.jpg']


@pytest.mark.parametrize(('lines', 'classes', 'targets'), [
    ('a b.mp4 0\n\n gone.mp4 1\nsub/c.mp4 2\nframes 2\n', {'0': 0, '1': 1, '2': 2}, [0, 2, 2]),
    ('a b.mp4 dance\ngone.mp4 bike\nsub/c.mp4 swim\nframes swim\n', {'bike': 0, 'dance': 1, 'swim': 2}, [1, 2, 2]),
    ('a b.mp4\ttap dance\ngone.mp4\tbike\nsub/c.mp4\tswim\nframes\tswim\n',
     {'bike': 0, 'swim': 1, 'tap dance': 2}, [2, 1, 1]),
])
def test_lists(tmp_path, lines, classes, targets):
    (tmp_path / 'train.txt').write_text(lines)
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'train').mkdir()
    for name in ('train/a b.mp4', 'sub/c.mp4'):
        (tmp_path / name).write_bytes(VIDEO)
    write_frames(tmp_path / 'train/frames', 3)
    samples = open_list(str(tmp_path / 'train.txt'))
    assert names(samples, tmp_path) == ['train/a b.mp4', 'sub/c.mp4', 'train/frames']
    assert samples.classes == classes and samples.targets() == targets
    assert samples.left_out == [('gone.mp4', MISSING)]
    assert summary(samples.left_out) == '1 named by the list, but not there (gone.mp4)'


def test_kinetics(tmp_path):
    (tmp_path / 'val.csv').write_text(
        'label,youtube_id,time_start,time_end,split\n"riding, a bike",-x_1,5,15,val\ndancing,abc,12.0,22.0,val\n'
        'dancing,gone,0,10,val\nabseiling,def,0,10,val\n')
    for name in ('val/riding, a bike/-x_1_000005_000015.mp4', 'val/abc_000012_000022.webm', 'val/def.mkv'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(VIDEO)
    samples = open_list(str(tmp_path / 'val.csv'))
    assert names(samples, tmp_path / 'val') == [
        'riding, a bike/-x_1_000005_000015.mp4', 'abc_000012_000022.webm', 'def.mkv']
    assert samples.classes == {'abseiling': 0, 'dancing': 1, 'riding, a bike': 2} and samples.targets() == [2, 1, 0]
    assert samples.left_out == [('gone_000000_000010', MISSING)]


def test_a_list_goes_before_a_folder(folder):
    recipe = Recipe(data_dir=str(folder.parent))
    assert len(open_video_split(recipe, 'train', True)) == 4
    (folder.parent / 'train.csv').write_text('dancing/deep/c.mkv 1\n')
    assert open_video_split(recipe, 'train', True).targets() == [1]


def test_a_class_map_numbers_the_classes(folder):
    (folder.parent / 'map.txt').write_text('riding a bike\nswimming\ndancing\n')
    samples = open_video_split(Recipe(data_dir=str(folder.parent), class_map='../map.txt'), 'train', True)
    assert isinstance(samples, Relabelled) and samples.targets() == [2, 2, 0, 0]


@pytest.mark.parametrize(('content', 'message'), [
    ('', 'train.csv names no videos'), ('alone.mp4\n', r'line 1: a path and a class are wanted, got .alone.mp4'),
    ('gone.mp4 1\ntoo.mp4 2\nx.mp4 3\n', 'none of the 3 videos that .*train.csv names is there: gone.mp4, too.mp4, …'),
    ('label,youtube_id,time_start,time_end,split\na,b,c,d,e\n', 'line 2: time_start and time_end are wanted'),
    (b'\xff\xfe\0\0', 'a path and a class|cannot be read'),
])
def test_lists_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / 'train.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        open_video_split(Recipe(data_dir=str(tmp_path)), 'train', True)


@pytest.mark.parametrize(('files', 'recipe', 'message'), [
    (['train/a.mp4'], {}, 'videos lie directly in .*train.* train.csv'),
    (['train/a/b.jpg'], {}, 'there are no videos in .*train; what is there: 1 neither'),
    (['train/a/b.mp4'], dict(dataset='hfds/kinetics'), 'dataset hfds/kinetics has no videos'),
    (['val/a/b.mp4'], {}, r'has no split train \(looked for train.csv, train.txt, train, '),
])
def test_folders_that_cannot_be_used(tmp_path, files, recipe, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(VIDEO)
    with pytest.raises(UserError, match=message):
        open_video_split(Recipe(data_dir=str(tmp_path), **recipe), 'train', True)
