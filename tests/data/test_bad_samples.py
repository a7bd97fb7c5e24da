import concurrent.futures
import shutil
import signal
import struct
import subprocess
import tarfile
import time
import zlib

import pytest
from conftest import write_images
from PIL import Image
from timm.data import create_dataset

from timm_rs.data.bad_samples import (
    BadSamples,
    default_limit,
    problem_of,
    unlisted,
    unreadable_rest,
)
from timm_rs.data.datasets import open_split
from timm_rs.data.loader import create_eval_loader
from timm_rs.data.samples import as_samples
from timm_rs.data.shards.packing import pack
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.predict import FileSamples
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.classification import Classification
from timm_rs.transforms.decode import BadImage, Limits

DATA = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, crop_mode='center',
            interpolation='bicubic')
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ } loop\n'


def png_bomb(side=20_000):
    """A well-formed PNG header that promises `side` x `side` pixels."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


def spoil(folder):
    """Put one file of each bad kind beside the images of class folder `folder`; what is wrong with them, by name."""
    good = next(folder.glob('*.jpg')).read_bytes()
    for name, content in {'empty': b'', 'text': b'not an image\n', 'cut': good[:len(good) // 2],
                          'bomb': png_bomb()}.items():
        (folder / f'{name}.{"png" if name == "bomb" else "jpg"}').write_bytes(content)
    return {'bomb.png': 'pixels', 'cut.jpg': 'truncated', 'empty.jpg': 'empty file', 'text.jpg': 'not an image'}


def problems(root):
    samples = as_samples(create_dataset('', root=str(root), search_split=False))
    found = {samples.name(index): problem_of(samples, index) for index in range(len(samples))}
    return {name.rpartition('/')[2]: problem for name, problem in found.items() if problem}


def assert_named(found, expected):
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found[name], (name, found[name])


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / 'D', {'cat': 3, 'dog': 3}, suffix='jpg')
    return tmp_path / 'D'


def test_good_images_have_no_problem(images):
    assert problems(images) == {}


def test_each_kind_of_bad_file_has_its_reason(images):
    expected = spoil(images / 'cat')
    (images / 'dog/link.jpg').symlink_to('nowhere')
    assert_named(problems(images), {**expected, 'link.jpg': 'no such file'})


def test_bad_members_of_a_tar_have_the_same_reasons(images, tmp_path):
    expected = spoil(images / 'cat')
    with tarfile.open(tmp_path / 'D.tar', 'w') as archive:
        archive.add(images, arcname='.')
    assert unreadable_rest(tmp_path / 'D.tar') is None
    assert_named(problems(tmp_path / 'D.tar'), expected)


def test_files_that_vanish_or_turn_into_directories_after_listing_are_named(images):
    samples = as_samples(create_dataset('', root=str(images), search_split=False))
    (images / 'cat/1.jpg').unlink()
    (images / 'dog/0.jpg').unlink()
    (images / 'dog/0.jpg').mkdir()
    assert [problem_of(samples, index) for index in range(6)] == [
        None, 'no such file', None, 'a directory, not a file', None, None]


def scans(path):
    data = path.read_bytes()
    path.write_bytes(data[:-2] + data[data.rindex(b'\xff\xda'):-2] * 40 + data[-2:])


HOSTILE = {
    'postscript': (lambda path: path.write_bytes(EPS), ('not an image',)),
    'pixels': (lambda path: path.write_bytes(png_bomb()), ('pixels',)),
    'scans': (lambda path: Image.open(path).save(path, progressive=True) or scans(path), ('scans, more than the 32',))}


def by_fast_loader(root, **limits):
    recipe = Recipe(data_dir=str(root), val_split='', img_size=32, workers=0, batch_size=6, **limits)
    samples = open_split(recipe, 'train', is_training=False)
    loader = create_eval_loader(samples, recipe, DATA, Classification(recipe), 2, Device('cpu'))
    return [targets.tolist() for _, targets in loader], loader.take_problems()


def by_timm_loader(root, caplog, **limits):
    recipe = Recipe(data_dir=str(root), val_split='', img_size=32, workers=0, batch_size=6, loader='timm', **limits)
    samples = open_split(recipe, 'train', is_training=False)
    loader = create_eval_loader(samples, recipe, DATA, Classification(recipe), 2, Device('cpu'))
    return [targets.tolist() for _, targets in loader], caplog.messages


@pytest.mark.parametrize(('spoiled', 'parts'), HOSTILE.values(), ids=HOSTILE)
def test_hostile_images_are_bad_samples_by_every_entry(images, tmp_path, spoiled, parts, caplog, monkeypatch):
    monkeypatch.setattr(subprocess, 'Popen', lambda *arguments, **options: pytest.fail('a program was started'))
    spoiled(images / 'cat/1.jpg')
    expected = {'1.jpg': parts[0]}
    assert_named(problems(images), expected)
    labels, found = by_fast_loader(images)
    assert labels == [[0, -1, 0, 1, 1, 1]] and len(found) == 1 and parts[0] in found[0][1]
    labels, messages = by_timm_loader(images, caplog)
    assert labels == [[0, 0, 0, 1, 1, 1]] and any('cat/1.jpg' in line and parts[0] in line for line in messages)
    pack(open_split(Recipe(data_dir=str(images), val_split=''), 'train', False), tmp_path / 'packed', 'train', 32)
    assert 'cat/1.jpg' in (tmp_path / 'packed/bad_samples.csv').read_text()
    assert FileSamples([str(images / 'cat/1.jpg')]) and problem_of(FileSamples([str(images / 'cat/1.jpg')]), 0)


def test_the_limits_of_the_recipe_hold_for_either_loader(images, caplog):
    Image.new('RGB', (30, 30)).save(images / 'cat/1.jpg', progressive=True)
    for limits, reason in ((dict(max_image_pixels=400), '30 x 30 pixels'), (dict(max_image_scans=9), '10 scans')):
        labels, found = by_fast_loader(images, **limits)
        assert labels == [[0, -1, 0, 1, 1, 1]] and reason in found[0][1]
        caplog.clear()
        assert by_timm_loader(images, caplog, **limits)[0] == [[0, 0, 0, 1, 1, 1]] and reason in caplog.text
    assert by_fast_loader(images, max_image_pixels=900, max_image_scans=10) == ([[0, 0, 0, 1, 1, 1]], [])


def test_an_image_that_takes_too_long_is_a_bad_sample_by_every_entry(images, tmp_path, caplog, monkeypatch):
    open_image = Image.open

    def open_slowly(file, **options):
        while file.getvalue() == slow:
            pass
        return open_image(file, **options)
    Image.open(images / 'cat/1.jpg').save(images / 'cat/1.jpg', 'PNG')  # which Pillow decodes
    slow = (images / 'cat/1.jpg').read_bytes()
    monkeypatch.setattr(Image, 'open', open_slowly)
    labels, found = by_fast_loader(images, max_image_seconds=0.05)
    assert labels == [[0, -1, 0, 1, 1, 1]] and 'takes more than 0.05 s to decode' in found[0][1]
    labels, messages = by_timm_loader(images, caplog, max_image_seconds=0.05)
    assert labels == [[0, 0, 0, 1, 1, 1]] and any('takes more than 0.05 s' in line for line in messages)
    sample = FileSamples([str(images / 'cat/1.jpg')])
    assert 'takes more than 0.05 s' in problem_of(sample, 0, limits=Limits(seconds=0.05))
    monkeypatch.setattr('timm_rs.data.shards.encoding.DEFAULT_LIMITS', Limits(seconds=0.05))
    pack(open_split(Recipe(data_dir=str(images), val_split=''), 'train', False), tmp_path / 'packed', 'train', 32)
    assert 'takes more than 0.05 s' in (tmp_path / 'packed/bad_samples.csv').read_text()
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0 and signal.getsignal(signal.SIGPROF) is signal.SIG_DFL


def test_time_is_that_of_the_processor_and_other_threads_have_no_limit():
    with Limits(seconds=0.02).in_time():
        time.sleep(0.1)
    with pytest.raises(BadImage, match='more than 0.02 s'), Limits(seconds=0.02).in_time():
        while True:
            pass
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: Limits(seconds=1e-6).in_time().__enter__()).result()


def write_tar(path, images):
    with tarfile.open(path, 'w') as archive:
        archive.add(images, arcname='.')
    with tarfile.open(path) as archive:
        return [member for member in archive if member.isfile()]


def test_a_tar_cut_off_after_listing_is_a_damaged_archive(images, tmp_path):
    path = tmp_path / 'D.tar'
    members = write_tar(path, images)
    samples = as_samples(create_dataset('', root=str(path), search_split=False))
    last = members[-1].name
    path.write_bytes(path.read_bytes()[:members[-1].offset_data + 100])
    found = {samples.name(index): problem_of(samples, index) for index in range(len(samples))}
    assert 'damaged archive' in found.pop(last)
    assert set(found.values()) == {None}
    assert 'damaged archive' in unreadable_rest(path)


def test_members_hidden_by_a_damaged_header_are_missed(images, tmp_path):
    path = tmp_path / 'D.tar'
    members = write_tar(path, images)
    content = bytearray(path.read_bytes())
    content[members[2].offset:members[2].offset + 512] = b'x' * 512
    path.write_bytes(content)
    assert len(create_dataset('', root=str(path), search_split=False)) == 2  # timm's reader does not notice
    assert members[1].name in unreadable_rest(path)


def test_only_directories_that_pass_for_images_and_hold_none_are_named(images):
    for name in ('cat/a.jpg', 'dog/b.PNG/notes', 'dog/plain', 'dog/class.jpg/deeper'):
        (images / name).mkdir(parents=True)
    shutil.copy(images / 'cat/0.jpg', images / 'dog/class.jpg/deeper')
    samples = open_split(Recipe(data_dir=str(images), val_split=''), 'train', is_training=True)
    assert unlisted(samples) == [(f'{images}/{name}', 'a directory, not a file') for name in ('cat/a.jpg', 'dog/b.PNG')]


def test_a_name_is_new_once_also_in_a_resumed_run(tmp_path):
    path = tmp_path / 'bad_samples.csv'
    bad = BadSamples(path, limit=10, resumed=False)
    assert not path.exists()
    assert bad.add('cat/1.jpg', 'empty file')
    assert not bad.add('cat/1.jpg', 'empty file')
    assert bad.add('cat/2, "x"\udcff.jpg', 'not an image')
    content = path.read_bytes()  # nothing is closed or flushed at the end, so a kill costs nothing
    assert content == b'name,reason\ncat/1.jpg,empty file\n"cat/2, ""x""\xff.jpg",not an image\n'
    resumed = BadSamples(path, limit=10, resumed=True)
    assert len(resumed) == 2 and path.read_bytes() == content
    assert not resumed.add('cat/2, "x"\udcff.jpg', 'not an image')
    assert len(BadSamples(path, limit=10, resumed=False)) == 0 and not path.exists()


def test_half_a_row_of_a_killed_run_is_dropped(tmp_path):
    path = tmp_path / 'bad_samples.csv'
    path.write_text('name,reason\na.jpg,truncated\nb.jp')
    bad = BadSamples(path, limit=10, resumed=True)
    assert bad.add('b.jpg', 'empty file')
    assert path.read_text() == 'name,reason\na.jpg,truncated\nb.jpg,empty file\n'


def test_more_bad_images_than_allowed_stop_with_list_and_remedy(tmp_path):
    path = tmp_path / 'bad_samples.csv'
    bad = BadSamples(path, limit=2, resumed=False)
    for number in range(2):
        bad.add(f'{number}.jpg', 'empty file')
    bad.check()
    bad.add('2.jpg', 'truncated')
    with pytest.raises(UserError) as error:
        bad.check()
    for part in ('3 images', 'the 2 allowed', '2.jpg: truncated', str(path), 'scan_dataset', '--max-bad-samples'):
        assert part in str(error.value)


def test_a_list_that_cannot_be_written_is_one_message(tmp_path):
    bad_samples = BadSamples(tmp_path / 'no/bad_samples.csv', 10, resumed=False)
    (tmp_path / 'no').write_text('in the way')
    with pytest.raises(UserError, match='no/bad_samples.csv cannot be written: File exists'):
        bad_samples.add('a', 'b')


def test_one_in_a_thousand_may_be_bad_and_ten_at_least():
    assert [default_limit(count) for count in (5, 10_000, 11_000, 1_281_167)] == [10, 10, 11, 1281]


def test_images_that_torchvision_decodes_have_reasons_too(images):
    from torchvision.datasets import ImageFolder
    expected = spoil(images / 'cat')
    samples = as_samples(ImageFolder(images))
    samples.files = None  # as its datasets that list no files
    found = [problem_of(samples, index) for index in range(len(samples))]
    assert sum(map(bool, found)) == len(expected)
