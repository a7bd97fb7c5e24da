"""Packing images into tar shards and reading them back, here, with timm and with webdataset."""

import io
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from timm.data import create_dataset

from timm_rs.data.bad_samples import problem_of
from timm_rs.data.loader import TransformedSamples
from timm_rs.data.mixture import Mixture, PseudoLabel
from timm_rs.data.pool import open_pool
from timm_rs.data.sampler import Ticket
from timm_rs.data.samples import Relabelled, Samples, Subset, TimmSamples
from timm_rs.data.shards import index as index_module
from timm_rs.data.shards import packing as packing_module
from timm_rs.data.shards import reading as reading_module
from timm_rs.data.shards.encoding import FRAMES, IMAGES, OF_IMAGES, RAW, encode, encode_raw
from timm_rs.data.shards.packing import pack, verify
from timm_rs.data.shards.reading import is_packed, open_shards
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.create import create_transform
from timm_rs.transforms.decode import open_picture
from timm_rs.transforms.raw import Stretch

DATA = dict(input_size=(3, 12, 12), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875, crop_mode='center',
            interpolation='bicubic')


class Photos(Samples):
    """`contents` maps names to the bytes of images (or a UserError to raise); two classes in turn."""

    def __init__(self, contents, classes=('cat', 'dog')):
        self.names, self.contents = list(contents), list(contents.values())
        self.classes = {name: index for index, name in enumerate(classes)}

    def __len__(self):
        return len(self.names)

    def read(self, index):
        return self.contents[index], index % 2

    def name(self, index):
        return self.names[index]


def jpeg(number, size=(24, 18), **options):
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(content, 'JPEG', **options)
    return content.getvalue()


def photos(count, **options):
    return Photos({f'/photos/{"dog" if number % 2 else "cat"}/n{number:04}.JPEG': jpeg(number, **options)
                   for number in range(count)})


def files(folder):
    """Names and bytes, but for the index, which has the shards' times in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != '.npz'}


def stems(samples):
    return [Path(samples.name(index)).stem for index in range(len(samples))]


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def foreign(root, shards=2, count=3, **info):
    """Shards such as others make, with members in between that are not ours to read."""
    names = [f'toy-{shard:02}.tar' for shard in range(shards)]
    for shard, name in enumerate(names):
        write_tar(root / name, [
            (f'part/{shard}_{number}.{extension}', content) for number in range(count) for extension, content in (
                ('cls', str(number).encode()), ('json', b'{"label": %d}' % (10 + number)), ('txt', b'a cat'),
                ('JPG', jpeg(10 * shard + number)))])
    (root / '_info.json').write_text(json.dumps(dict(splits=dict(train=dict(
        name='train', num_samples=shards * count, filenames=names, shard_lengths=[count] * shards, **info)))))
    return root


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    """The 24 and 15 images of a folder with three classes, which repeats the names of files, packed as they are."""
    root = tmp_path_factory.mktemp('packed')
    sources = {}
    for split, count in (('train', 8), ('validation', 5)):
        write_images(root / 'images' / split, dict.fromkeys(('cat', 'dog', 'eel'), count), suffix='jpg', seed=count)
        sources[split] = TimmSamples(create_dataset('', root=str(root / 'images' / split)))
        pack(sources[split], root / 'shards', split, short_side=0, num_shards=4)
    return root / 'shards', sources


# Round trips --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('split', ['train', 'validation'])
def test_packed_folder_has_the_images_labels_and_names_of_the_folder(packed, split):
    root, sources = packed
    samples = open_shards(root, split)
    assert is_packed(root) and samples.classes == sources[split].classes == {'cat': 0, 'dog': 1, 'eel': 2}
    theirs, ours = ([(Path(data.name(index)).stem, *data.read(index)) for index in range(len(data))]
                    for data in (sources[split], samples))
    assert sorted(ours) == sorted(theirs)
    assert samples.targets() == [target for _, _, target in ours]
    assert ours != theirs  # mixed, not class after class
    assert samples.name(0).startswith(f'{split}-000000.tar/')


def test_systems_without_locks_and_positioned_reads_pack_and_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    monkeypatch.delattr(os, 'pread')
    source = photos(9)
    pack(source, tmp_path, 'train', short_side=0, num_shards=2)
    (tmp_path / 'train-index.npz').unlink()  # so that headers are read, too
    samples = open_shards(tmp_path, 'train')
    assert sorted(samples.read(index)[0] for index in reversed(range(9))) == sorted(source.contents)


def test_timms_reader_reads_every_sample(packed):
    root, _ = packed
    for split, training in (('train', True), ('validation', False)):
        samples = open_shards(root, split)
        dataset = create_dataset('wds/toy', root=str(root), split=split, is_training=training, batch_size=1)
        ours = [(Image.open(io.BytesIO(content)).tobytes(), target) for content, target in map(
            samples.read, range(len(samples)))]
        assert len(dataset) == len(samples)
        assert sorted((image.tobytes(), target) for image, target in dataset) == sorted(ours)


def test_webdataset_reads_every_sample_under_its_key(packed):
    import webdataset
    root, _ = packed
    samples = open_shards(root, 'train')
    stream = webdataset.WebDataset([str(path) for path in sorted(root.glob('train-*.tar'))], shardshuffle=False)
    assert [(f'{sample["__key__"]}.jpg', sample['jpg'], int(sample['cls'])) for sample in stream] == [
        (samples.name(index).partition('/')[2], *samples.read(index)) for index in range(len(samples))]


def test_stems_survive_dots_percents_and_long_names(tmp_path):
    names = ['n01440764_10026', 'a.b', 'a%2Eb', 'a%b', 'ü', '.hidden', 'x' * 150]
    pack(Photos({f'/photos/{name}.JPEG': jpeg(number) for number, name in enumerate(names)}), tmp_path, 'train')
    samples = open_shards(tmp_path, 'train')
    assert sorted(stems(samples)) == sorted(names)
    dataset = create_dataset('wds/toy', root=str(tmp_path), split='train')
    assert sorted(target for _, target in dataset) == sorted(samples.targets())


def test_names_that_repeat_keep_their_stem_behind_a_number(packed):
    samples = open_shards(packed[0], 'train')
    assert sorted(set(stems(samples))) == [str(number) for number in range(8)]
    assert len({samples.name(index) for index in range(24)}) == 24


def test_samples_survive_fork_and_pickling(packed):
    samples = open_shards(packed[0], 'train')
    expected = [samples.read(index) for index in range(len(samples))]  # opens all files before the fork
    with multiprocessing.get_context('fork').Pool(2) as pool:
        assert pool.map(samples.read, range(len(samples))) == expected  # and pickles the samples on the way
    copy = pickle.loads(pickle.dumps(samples))
    assert [copy.read(index) for index in range(len(copy))] == expected
    assert copy.name(3) == samples.name(3)


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='counts open files as Linux shows them')
def test_more_shards_than_files_may_be_open(packed, monkeypatch):
    monkeypatch.setattr(reading_module, 'OPEN_SHARDS', 1)
    samples = open_shards(packed[0], 'train')
    before = len(os.listdir('/proc/self/fd'))
    for index in samples.epoch_order(np.random.default_rng(0)):
        samples.read(index)
    assert len(os.listdir('/proc/self/fd')) == before + 1


# What is stored -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('size', 'expected'), [
    ((60, 40), (36, 24)), ((40, 60), (24, 36)), ((500, 24), (500, 24)), ((20, 10), (20, 10)), ((25, 25), (24, 24))])
def test_the_short_side_shrinks_and_never_grows(size, expected):
    content, extension = encode(Image.new('RGB', size), 24, 90)
    assert Image.open(io.BytesIO(content)).size == expected and extension == 'jpg'


def test_shrunk_image_is_pils_bicubic_at_the_quality_asked_for():
    source = jpeg(1, (64, 48), quality=95)
    content, _ = encode(source, 24, 80)
    expected = io.BytesIO()
    Image.open(io.BytesIO(source)).resize((32, 24), Image.Resampling.BICUBIC).save(expected, 'JPEG', quality=80)
    assert content == expected.getvalue()


def test_small_baseline_jpegs_keep_their_bytes_and_others_become_one():
    assert encode(jpeg(0), 18, 90) == (jpeg(0), 'jpg')
    progressive = jpeg(0, progressive=True)
    for image, options in ((Image.open(io.BytesIO(progressive)), dict(format='JPEG', progressive=True)),
                           (Image.new('CMYK', (20, 20)), dict(format='JPEG')),
                           (Image.new('RGBA', (20, 20)), dict(format='PNG'))):
        source = io.BytesIO()
        image.save(source, **options)
        content, extension = encode(source.getvalue(), 30, 90)
        stored = Image.open(io.BytesIO(content))
        assert (stored.format, stored.mode, extension) == ('JPEG', 'RGB', 'jpg') and content != source.getvalue()
        assert not stored.info.get('progressive')


@pytest.mark.parametrize(('kind', 'extension'), [('JPEG', 'jpg'), ('PNG', 'png'), ('WEBP', 'webp'), ('BMP', 'png')])
def test_short_side_zero_keeps_bytes_or_at_least_pixels(kind, extension):
    source = io.BytesIO()
    image = Image.open(io.BytesIO(jpeg(0, (300, 400))))
    image.save(source, kind)
    content, stored = encode(source.getvalue(), 0, 90)
    assert stored == extension and (content == source.getvalue()) == (kind != 'BMP')
    if kind == 'BMP':
        assert Image.open(io.BytesIO(content)).tobytes() == image.tobytes()


def test_bad_images_are_left_out_and_listed_with_the_reason(tmp_path):
    good = photos(6)
    contents = dict(zip(good.names, good.contents, strict=True))
    bad = {'/photos/short.jpg': jpeg(0)[:-200], '/photos/empty.jpg': b'', '/photos/text.jpg': b'not an image'}
    source = Photos(contents | bad)
    result = pack(source, tmp_path, 'train', num_shards=2)
    assert (result.num_samples, result.num_bad) == (6, 3)
    header, *rows = (tmp_path / 'bad_samples.csv').read_text().splitlines()
    assert header == 'name,reason' and {row.partition(',')[0] for row in rows} == set(bad)
    assert '/photos/short.jpg,OSError: Truncated File Read' in rows
    assert '/photos/text.jpg,"not an image, or of an unknown kind"' in rows
    assert sorted(stems(open_shards(tmp_path, 'train'))) == sorted(Path(name).stem for name in good.names)
    pack(photos(4), tmp_path, 'validation')  # does not forget the others
    assert len((tmp_path / 'bad_samples.csv').read_text().splitlines()) == 4


def test_source_that_went_away_stops_the_packing(tmp_path):
    source = photos(40)
    source.contents[19:] = [b''] * 21
    with pytest.raises(UserError, match=r'21 of the 40 images for train-000000.tar cannot be read.*still there'):
        pack(source, tmp_path, 'train', num_shards=1)
    assert sorted(files(tmp_path)) == ['train-manifest.json']


def test_labels_that_are_not_one_number_are_refused(tmp_path):
    source = photos(2)
    source.read = lambda index: (jpeg(index), [0, 1])
    with pytest.raises(UserError, match=r'n000.\.JPEG has the label \[0, 1\]'):
        pack(source, tmp_path, 'train')


# Raw pixels ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """Eight photos and a grey one as raw pixels, their short side 12."""
    source = photos(8)
    source.names.append('/photos/cat/grey.png')
    source.contents.append(png(Image.open(io.BytesIO(jpeg(8))).convert('L')))
    pack(source, (root := tmp_path_factory.mktemp('raw')), 'train', short_side=12, num_shards=2, kind=RAW)
    return root, dict(zip([Path(name).stem for name in source.names], source.contents, strict=True))


def png(image):
    content = io.BytesIO()
    image.save(content, 'PNG')
    return content.getvalue()


def shrunk(content):
    return np.asarray(Image.open(io.BytesIO(content)).resize((16, 12), Image.Resampling.BICUBIC).convert('RGB'))


def test_raw_pixels_are_those_of_the_shrunk_image(raw):
    samples = open_shards(raw[0], 'train')
    assert sorted(stems(samples)) == sorted(raw[1])
    for index, stem in enumerate(stems(samples)):
        source, target = samples.open(index)
        assert isinstance(source, Stretch) and target == samples.read(index)[1] == samples.targets()[index]
        np.testing.assert_array_equal(open_picture(source).pixels(), shrunk(raw[1][stem]))
        assert Image.open(io.BytesIO(samples.read(index)[0])).mode == ('L' if stem == 'grey' else 'RGB')


def test_short_side_zero_shrinks_no_raw_pixels():
    assert Image.open(io.BytesIO(encode_raw(jpeg(0), 0)[0])).tobytes() == Image.open(io.BytesIO(jpeg(0))).tobytes()


@pytest.mark.parametrize('image', [
    Image.new('RGBA', (5, 4), (250, 9, 3, 100)), Image.new('I;16', (5, 4), 40_000), Image.new('P', (5, 4), 7)])
def test_other_modes_are_the_pixels_that_training_sees(image):
    content, _ = encode_raw(png(image), 12)
    np.testing.assert_array_equal(open_picture(content).pixels(), open_picture(png(image)).pixels())


def test_timm_and_webdataset_read_raw_pixels(raw):
    import webdataset
    samples = open_shards(raw[0], 'train')
    ours = [(open_picture(samples.open(index)[0]).pixels().tobytes(), target)
            for index, target in enumerate(samples.targets())]
    timms = create_dataset('wds/toy', root=str(raw[0]), split='train', is_training=False, input_key='jpg;ppm')
    assert [(image.convert('RGB').tobytes(), target) for image, target in timms] == ours
    stream = webdataset.WebDataset([str(path) for path in sorted(raw[0].glob('*.tar'))], shardshuffle=False)
    assert [(sample['ppm'], int(sample['cls'])) for sample in stream] == [*map(samples.read, range(9))]


def test_what_holds_other_samples_opens_raw_pixels_as_they_do(raw):
    samples = open_shards(raw[0], 'train')
    mixture = Mixture(samples, open_pool(str(raw[0])), np.arange(9), np.zeros((9, 1), int), np.ones((9, 1)), 1)
    for around, index in ((Subset(samples, [3, 5]), 1), (Relabelled(samples, {'dog': 0, 'cat': 1}), 5), (mixture, 5),
                          (mixture, 9 + 5)):
        source, label = around.open(index)
        assert isinstance(source, Stretch) and source.read(0, source.length).tobytes() == around.read(index)[0]
        assert label == around.read(index)[1] or isinstance(label, PseudoLabel)
    assert Relabelled(samples, {'dog': 0, 'cat': 1}).open(5)[1] != samples.open(5)[1]


def test_raw_pixels_are_packed_again_as_jpegs(raw, tmp_path):
    pack(open_shards(raw[0], 'train'), tmp_path, 'train', short_side=12, num_shards=2)
    samples = open_shards(tmp_path, 'train')
    assert sorted(stems(samples)) == sorted(raw[1])
    index = stems(samples).index('n0003')
    expected = io.BytesIO()
    Image.fromarray(shrunk(raw[1]['n0003'])).save(expected, 'JPEG', quality=90)
    assert samples.read(index)[0] == expected.getvalue()


@pytest.mark.parametrize(('damage', 'reason'), [
    (lambda content: content.replace(b'16 12', b'96 12'), 'truncated'),
    (lambda content: content.replace(b'255', b'999'), 'not enough image data'),
    (lambda content: b'JP' + content[2:], 'not an image')])
def test_raw_headers_that_lie_are_named_and_replaced(raw, tmp_path, damage, reason):
    samples = open_shards(shutil.copytree(raw[0], tmp_path / 'raw'), 'train')
    path, start = samples.root / samples.name(2).partition('/')[0], int(samples.index.offsets[2])
    content = path.read_bytes()
    path.write_bytes(content[:start] + damage(content[start:start + 20]) + content[start + 20:])
    assert problem_of(samples, 2) == problem_in_training(samples, 2) == reason


def test_a_raw_shard_that_shrinks_while_training_is_named(raw, tmp_path):
    samples = open_shards(shutil.copytree(raw[0], tmp_path / 'raw'), 'train')
    start, length = int(samples.index.offsets[0]), int(samples.index.lengths[0])
    os.truncate(samples.root / 'train-000000.tar', start + 100)
    assert problem_in_training(samples, 0) == f"the shard ends after 100 of the image's {length} bytes"
    os.truncate(samples.root / 'train-000000.tar', start)
    assert problem_in_training(samples, 0).startswith('the shard ends after 0 ')


def problem_in_training(samples, index):
    """What the loader says of an image, in place of which it takes the next one."""
    transform = create_transform(Recipe(no_aug=True), DATA, is_training=True)
    dataset = TransformedSamples(samples, transform, int, ((12, 12, 3), -1), replace=True)
    image, target, ((name, reason), *_) = dataset[Ticket(index, 0)]
    assert name == samples.name(index) and image.any() and target >= 0
    return reason


# Order --------------------------------------------------------------------------------------------------------------

def made_up(counts, buffer=reading_module.SHUFFLE_BUFFER):
    """Samples that are only an index."""
    total, zeros = sum(counts), np.zeros(len(counts), int)
    return reading_module.ShardSamples(Path(), index_module.Index(
        np.array([f'{number}.tar' for number in range(len(counts))]), zeros, zeros, np.array(counts), zeros,
        *np.zeros((4, total), int), np.zeros(0, np.uint8)), buffer=buffer)


def test_an_epoch_has_every_sample_once_and_differs_from_the_next():
    samples = made_up([50, 0, 70, 30])
    first, again, second = (samples.epoch_order(np.random.default_rng([7, epoch])) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(np.sort(first), np.arange(150))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


def test_no_sample_moves_further_than_the_buffer():
    samples = made_up([300] * 10, buffer=64)
    order = samples.epoch_order(np.random.default_rng(3))
    shards_in_order = np.random.default_rng(3).permutation(10)
    sequence = np.concatenate([np.arange(300 * shard, 300 * shard + 300) for shard in shards_in_order])
    moves = np.abs(np.argsort(order)[sequence] - np.arange(3000))
    assert 32 < moves.max() < 64
    assert np.mean(moves == 0) < 0.1
    assert shards_in_order.tolist() != sorted(shards_in_order)


def test_part_of_the_shards_is_read_in_their_order():
    samples = made_up([100] * 5, buffer=1)
    subset = Subset(samples, range(0, 500, 2))
    order = subset.epoch_order(np.random.default_rng(0))
    np.testing.assert_array_equal(order * 2, [index for index in samples.epoch_order(np.random.default_rng(0))
                                              if index % 2 == 0])


def test_labels_are_mixed_over_the_shards(tmp_path):
    source = photos(64)
    source.read = lambda index: (source.contents[index], index // 32)
    pack(source, tmp_path, 'train', num_shards=4)
    per_shard = np.reshape(open_shards(tmp_path, 'train').targets(), (4, 16)).sum(1)
    assert per_shard.sum() == 32 and per_shard.min() > 0 and per_shard.max() < 16


# Stopping and continuing --------------------------------------------------------------------------------------------

class Dying(Photos):
    """Photos whose reader is killed at the image number `last`."""

    def read(self, index):
        self.last -= 1
        if self.last < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.mark.parametrize(('kind', 'deaths'), [  # images, which come READ_AHEAD at a time or singly, 6 in a shard
    (IMAGES, ((14, 0), (30 - 2, 2))), (RAW, ((4, 0), (14, 2)))])
def test_packing_goes_on_after_sigkill_to_the_same_bytes(tmp_path, kind, deaths):
    source, settings = photos(30), dict(short_side=12, num_shards=5, kind=kind)
    source.contents[4] = b'bad'
    pack(source, tmp_path / 'whole', 'train', **settings)
    dying = Dying(dict(zip(source.names, source.contents, strict=True)))
    for last, finished in deaths:
        dying.last = last
        process = multiprocessing.get_context('fork').Process(
            target=pack, args=(dying, tmp_path / 'killed', 'train'), kwargs=settings)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(list((tmp_path / 'killed').glob('*.tar'))) == finished
        with pytest.raises(UserError, match=f'{5 - finished} shards are missing; run the same'):
            open_shards(tmp_path / 'killed', 'train')
    calls = []
    source.read = lambda index: calls.append(index) or Photos.read(source, index)
    pack(source, tmp_path / 'killed', 'train', **settings)
    assert len(calls) == 18
    assert files(tmp_path / 'killed') == files(tmp_path / 'whole')
    assert open_shards(tmp_path / 'killed', 'train').targets() == open_shards(tmp_path / 'whole', 'train').targets()


@pytest.mark.parametrize('kind', OF_IMAGES)
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, kind):
    for workers in (0, 1):
        pack(photos(40), tmp_path / str(workers), 'train', short_side=12, num_shards=3, workers=workers, kind=kind)
    assert files(tmp_path / '0') == files(tmp_path / '1')


def test_packing_again_writes_nothing(packed):
    root, sources = packed
    before = {path.name: path.stat().st_mtime_ns for path in root.glob('*.[tn][ap][rz]')}
    result = pack(sources['train'], root, 'train', short_side=0, num_shards=4)
    assert {path.name: path.stat().st_mtime_ns for path in root.glob('*.[tn][ap][rz]')} == before
    assert len(before) == 10 and result.num_samples == 24


def test_shard_that_was_removed_is_packed_again(tmp_path):
    pack(photos(20), tmp_path, 'train', num_shards=4)
    before = files(tmp_path)
    (tmp_path / 'train-000002.tar').unlink()
    with pytest.raises(UserError, match=r'train-000002.tar cannot be read: No such file'):
        open_shards(tmp_path, 'train')
    pack(photos(20), tmp_path, 'train', num_shards=4)
    assert files(tmp_path) == before


@pytest.mark.parametrize(('change', 'message'), [
    (dict(short_side=20), 'short_side 20 instead of 24'), (dict(quality=80), 'quality 80 instead of 90'),
    (dict(kind=RAW), 'kind raw instead of images'),
    (dict(num_shards=3), 'num_shards 3 instead of 2'), (dict(seed=1), 'seed 1 instead of 0'),
    (dict(samples=photos(9)), 'num_samples 9 instead of 8, other images'),
    (dict(samples=Photos(dict(zip(photos(8).names, photos(8).contents, strict=True)), ('dog', 'cat'))),
     'other classes')])
def test_other_settings_need_another_folder(tmp_path, change, message):
    settings = dict(samples=photos(8), destination=tmp_path, split='train', short_side=24, num_shards=2)
    pack(**settings)
    before = files(tmp_path)
    with pytest.raises(UserError, match=f'{message}.*choose another folder'):
        pack(**(settings | change))
    assert files(tmp_path) == before


@pytest.mark.parametrize('kind', [RAW, FRAMES])
def test_other_kinds_are_not_continued_as_images(tmp_path, kind):
    pack(photos(8), tmp_path, 'train', num_shards=2)
    change(tmp_path / 'train-manifest.json', 'settings', 'kind', value=kind)
    with pytest.raises(UserError, match=f'other settings .kind images instead of {kind}'):
        pack(photos(8), tmp_path, 'train', num_shards=2)


def test_splits_of_one_folder_have_one_numbering_of_classes(tmp_path):
    pack(photos(8), tmp_path, 'train')
    fewer = photos(8)
    fewer.classes = {'dog': 0}
    with pytest.raises(UserError, match='classes of validation are not those of train'):
        pack(fewer, tmp_path, 'validation')


def test_foreign_shards_are_not_overwritten(tmp_path):
    foreign(tmp_path)
    with pytest.raises(UserError, match='has other shards called train'):
        pack(photos(8), tmp_path, 'train')
    pack(photos(8), tmp_path, 'validation')
    assert json.loads((tmp_path / '_info.json').read_text())['splits'].keys() == {'train', 'validation'}
    assert len(open_shards(tmp_path, 'train')) == 6


def test_two_processes_do_not_pack_into_one_folder(tmp_path):
    with packing_module._one_packer(tmp_path), multiprocessing.get_context('fork').Pool(1) as pool, pytest.raises(
            UserError, match='another process is packing'):
        pool.apply(pack, (photos(8), tmp_path, 'train'))
    pack(photos(8), tmp_path, 'train')


class Slow(Photos):
    """Photos that say which process reads them, and that take their time."""

    def read(self, index):
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.01)
        return super().read(index)


def is_running(process):
    stat = Path(f'/proc/{process}/stat')
    return stat.exists() and stat.read_text().rpartition(')')[2].split()[0] not in 'ZX'


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks for processes as Linux shows them')
def test_workers_end_with_a_killed_packer_and_do_not_hold_the_folder(tmp_path):
    slow = Slow(dict(zip(map(str, range(400)), [jpeg(0, (400, 300), quality=100)] * 400, strict=True)))
    slow.folder = tmp_path / 'readers'
    slow.folder.mkdir()
    process = multiprocessing.get_context('fork').Process(
        target=pack, args=(slow, tmp_path / 'packed', 'train', 0), kwargs=dict(workers=1, num_shards=8))
    process.start()
    while not list(tmp_path.glob('packed/*.tar')):
        time.sleep(0.01)
    process.kill()
    process.join()
    workers = [int(path.name) for path in slow.folder.iterdir()]
    assert workers and process.pid not in workers
    with packing_module._one_packer(tmp_path / 'packed'):  # free at once
        pass
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def test_a_full_disk_is_one_message_and_finished_shards_stay(tmp_path, monkeypatch):
    write = packing_module._TarWriter.add

    def full(self, name, content):
        if 'train-000001' in self.file.name:
            raise OSError(28, 'No space left on device')
        return write(self, name, content)
    monkeypatch.setattr(packing_module._TarWriter, 'add', full)
    with pytest.raises(UserError, match='No space left on device; shards that are finished stay'):
        pack(photos(20), tmp_path, 'train', num_shards=2)
    assert sorted(files(tmp_path)) == ['train-000000.tar', 'train-manifest.json']


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match='file/packed cannot be written: Not a directory'):
        pack(photos(2), tmp_path / 'file/packed', 'train')


@pytest.mark.parametrize(('change', 'message'), [
    (dict(samples=photos(0)), 'no images to pack'), (dict(split='start'), 'cannot name shards'),
    (dict(split='train[:1%]'), 'cannot name shards'), (dict(short_side=-1), 'give pixels, or 0'),
    (dict(quality=0), 'give 1 to 100'), (dict(num_shards=5), '5 shards for 4 images'),
    (dict(num_shards=0), '0 shards')])
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        pack(**(dict(samples=photos(4), destination=tmp_path / 'new', split='train') | change))
    assert not (tmp_path / 'new').exists()


# Damage -------------------------------------------------------------------------------------------------------------

def test_verify_names_the_shard_in_which_one_byte_changed(tmp_path):
    pack(photos(20), tmp_path, 'train', num_shards=4)
    assert verify(tmp_path) == (4, sum(path.stat().st_size for path in tmp_path.glob('*.tar')))
    path = tmp_path / 'train-000001.tar'
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'1 of 4 shards .* damaged: train-000001.tar; copy'):
        verify(tmp_path)
    assert len(open_shards(tmp_path, 'train')) == 20  # its size is right
    with pytest.raises(UserError, match='no shards with a manifest'):
        verify(tmp_path / 'missing')


def test_shard_of_another_size_than_the_manifests_is_named(tmp_path):
    pack(photos(8), tmp_path, 'train', num_shards=2)
    with open(tmp_path / 'train-000001.tar', 'ab') as file:
        file.write(b'more')
    with pytest.raises(UserError, match=r'train-000001.tar has .* bytes, but .* by its manifest; copy'):
        open_shards(tmp_path, 'train')


def test_shard_that_shrinks_while_training_is_an_error_of_the_image(tmp_path):
    pack(photos(8), tmp_path, 'train', num_shards=1)
    samples = open_shards(tmp_path, 'train')
    os.truncate(tmp_path / 'train-000000.tar', int(samples.index.offsets[7]) + 10)
    with pytest.raises(OSError, match=r"train-000000.tar/n000\d.jpg: the shard ends after 10 of the image's"):
        samples.read(7)
    samples.read(0)
    (tmp_path / 'train-000000.tar').unlink()
    with pytest.raises(FileNotFoundError, match=r'train-000000\.tar'):
        pickle.loads(pickle.dumps(samples)).read(0)


@pytest.mark.parametrize('damage', ['missing', 'empty', 'garbage', 'inconsistent'])
def test_index_that_is_lost_is_made_again_from_the_shards(tmp_path, damage):
    pack(Photos({f'/photos/{number}.x.jpg': jpeg(number) for number in range(9)}), tmp_path, 'train', num_shards=2)
    samples, path = open_shards(tmp_path, 'train'), tmp_path / 'train-index.npz'
    if damage == 'missing':
        path.unlink()
    elif damage == 'inconsistent':
        index_module.save_index(path, samples.index._replace(offsets=samples.index.offsets[1:]))
    else:
        path.write_bytes(b'' if damage == 'empty' else path.read_bytes()[:-100])
    again = open_shards(tmp_path, 'train')
    for column, expected in zip(again.index, samples.index, strict=True):
        np.testing.assert_array_equal(column, expected)
    assert stems(again) == stems(samples) and stems(samples)[0].endswith('.x')
    assert index_module.load_index(path) is not None


def test_a_manifest_of_something_else_is_named(tmp_path):
    for content, message in (('{"shards": 1}', 'is not a manifest'), ('{', 'cannot be read'), ('[]', 'is not a JSON')):
        (tmp_path / 'train-manifest.json').write_text(content)
        with pytest.raises(UserError, match=f'train-manifest.json {message}'):
            open_shards(tmp_path, 'train')


def change(path, *keys, value):
    """Put `value` into the JSON at `path`, where `keys` lead to."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


SHARD = 'train-000000.tar'


@pytest.mark.parametrize(('keys', 'values'), [
    (['settings'], [None, [], 3]), (['classes'], [[], 'cat', None]), (['shards'], [[SHARD], None]),
    (['settings', 'num_shards'], [-1, 0, 1.0, '1', None, True, 10**30]), (['shards', SHARD], [None, [], 1]),
    (['classes', 'cat'], [-1, 0.5, '0', 10**7, None]), (['shards', '../' + SHARD], [{}]),
    (['shards', SHARD, 'samples'], [-1, 5.0, '6', 10**40]),
    (['shards', SHARD, 'bytes'], [-1, 0, None, 1.5]), (['shards', SHARD, 'sha256'], [None, 3]),
    (['shards', SHARD, 'bad'], [None, 'abc', ['ab'], [['a']], [[1, 2]]])])
def test_hostile_fields_of_a_manifest_are_one_line(tmp_path, keys, values):
    pack(photos(6), tmp_path, 'train', num_shards=1)
    path = tmp_path / 'train-manifest.json'
    whole = path.read_text()
    for value in values:
        path.write_text(whole)
        change(path, *keys, value=value)
        with pytest.raises(UserError, match='manifest|shards are missing|by its manifest'):
            open_shards(tmp_path, 'train')


@pytest.mark.parametrize(('keys', 'values'), [
    (['splits'], [[], 3, None]), (['splits', 'train'], [[], 3]), (['splits', 'train', 'alt_label'], [3, []]),
    (['splits', 'train', 'filenames'], [3, [], [3], ['a\0.tar'], None])])
def test_hostile_fields_of_info_are_one_line(tmp_path, keys, values):
    whole = (foreign(tmp_path) / '_info.json').read_text()
    for value in values:
        (tmp_path / '_info.json').write_text(whole)
        change(tmp_path / '_info.json', *keys, value=value)
        with pytest.raises(UserError, match=r'_info\.json'):
            open_shards(tmp_path, 'train')


@pytest.mark.parametrize('text', ['[' * 100_000, '{"splits": ' + '1' * 5000 + '}', '\udcff'])
def test_json_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / '_info.json').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(UserError, match=r'_info\.json cannot be read'):
        open_shards(tmp_path, 'train')


@pytest.mark.parametrize(('column', 'value'), [
    ('counts', -1), ('counts', 2**62), ('offsets', -512), ('offsets', 2**62), ('lengths', -1), ('lengths', 2**62),
    ('targets', 2), ('targets', 2**31 - 1), ('targets', 2**40), ('name_lengths', -9), ('name_lengths', 2**62)])
def test_an_index_that_cannot_be_true_is_made_again(tmp_path, column, value):
    pack(photos(6), tmp_path, 'train', num_shards=2)
    samples, path = open_shards(tmp_path, 'train'), tmp_path / 'train-index.npz'
    changed = {name: part.copy() for name, part in samples.index._asdict().items()}
    changed[column] = changed[column].astype(np.int64)
    changed[column][0] = value
    np.savez(path, **changed)
    again = open_shards(tmp_path, 'train')
    for found, expected in zip(again.index, samples.index, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('change', [
    lambda index: dict(offsets=index.offsets.astype(float)), lambda index: dict(offsets=index.offsets[None]),
    lambda index: dict(names=index.names.astype(np.int64)), lambda index: dict(shards=index.shards.astype('S'))])
def test_an_index_of_other_types_is_made_again(tmp_path, change):
    pack(photos(6), tmp_path, 'train', num_shards=2)
    samples, path = open_shards(tmp_path, 'train'), tmp_path / 'train-index.npz'
    np.savez(path, **samples.index._replace(**change(samples.index))._asdict())
    assert index_module.load_index(path) is None and stems(open_shards(tmp_path, 'train')) == stems(samples)


def test_an_index_is_not_inflated(tmp_path):
    pack(photos(6), tmp_path, 'train', num_shards=2)
    path = tmp_path / 'train-index.npz'
    np.savez_compressed(path, **open_shards(tmp_path, 'train').index._asdict())
    assert index_module.load_index(path) is None


@pytest.mark.parametrize(('keys', 'value'), [(['shards', SHARD, 'samples'], 5), (['classes', 'dog'], 0)])
def test_shards_with_other_images_or_labels_than_the_manifest_says_are_named(tmp_path, keys, value):
    pack(photos(6), tmp_path, 'train', num_shards=1)
    change(tmp_path / 'train-manifest.json', *keys, value=value)
    with pytest.raises(UserError, match='do not hold as many images, or other labels, than train-manifest.json'):
        open_shards(tmp_path, 'train')


@pytest.mark.parametrize('label', [b'9' * 30, b'10000000', b'-10000000', b'9' * 5000, b'1' + b' ' * (1 << 20)])
def test_labels_beyond_all_classes_are_none(tmp_path, label):
    write_tar(tmp_path / 'a.tar', [('1.jpg', jpeg(1)), ('1.cls', b'3'), ('2.jpg', jpeg(2)), ('2.cls', label)])
    samples = open_shards(tmp_path, 'a.tar')
    assert samples.targets() == [3] and samples.skipped == 1


@pytest.mark.parametrize('label', ['1e400', '"x"', '{}', '1' * 100])
def test_json_labels_that_are_no_numbers_are_none(tmp_path, label):
    write_tar(tmp_path / 'a.tar', [('1.jpg', jpeg(1)), ('1.json', b'{"label": 3}'), ('2.jpg', jpeg(2)),
                                   ('2.json', f'{{"label": {label}}}'.encode())])
    assert open_shards(tmp_path, 'a.tar', target_key='label').targets() == [3]


@pytest.mark.parametrize('text', ['[' * 50_000, '{"label": ' + '1' * 5000 + '}'])
def test_json_of_a_sample_that_is_none_is_one_line(tmp_path, text):
    write_tar(tmp_path / 'a.tar', [('1.jpg', jpeg(1)), ('1.json', text.encode())])
    with pytest.raises(UserError, match='has no label under the key label'):
        open_shards(tmp_path, 'a.tar', target_key='label')


@pytest.mark.parametrize('end', [100, 512 * 3 + 5, 512 * 6, -1024 - 300])
def test_truncated_tar_is_named(tmp_path, end):
    path = foreign(tmp_path) / 'toy-01.tar'
    if end < 0:  # within the last image: the padding of the whole archive aside
        end += len(path.read_bytes().rstrip(b'\0')) + 1024
    os.truncate(path, end)
    with pytest.raises(UserError, match=r'toy-01.tar is damaged \(.*copy or pack it again'):
        open_shards(tmp_path, 'train')


def test_a_header_that_is_not_one_is_no_end_of_the_shard(tmp_path):
    path = foreign(tmp_path) / 'toy-00.tar'
    content = bytearray(path.read_bytes())
    content[1024:1536] = b'x' * 512
    path.write_bytes(content)
    with pytest.raises(UserError, match='toy-00.tar is damaged'):
        open_shards(tmp_path, 'train')


# The shards of others -----------------------------------------------------------------------------------------------

def test_foreign_shards_read_as_timm_reads_them(tmp_path):
    samples = open_shards(foreign(tmp_path), 'train')
    assert samples.targets() == [0, 1, 2, 0, 1, 2] and samples.classes == {} and samples.skipped == 0
    assert samples.name(4) == 'toy-01.tar/part/1_1.JPG'
    assert samples.read(4) == (jpeg(11), 1)
    theirs = create_dataset('wds/toy', root=str(tmp_path), split='train', is_training=False)
    for (image, target), index in zip(theirs, range(6), strict=True):
        assert (image.tobytes(), target) == (Image.open(io.BytesIO(samples.read(index)[0])).tobytes(),
                                             samples.targets()[index])


@pytest.mark.parametrize('split', ['toy-{00..01}.tar', 'toy-{00..01}.tar|6', 'toy-0{0,1}.tar'])
def test_shards_named_by_a_pattern_need_no_info(tmp_path, split):
    (foreign(tmp_path) / '_info.json').unlink()
    assert len(open_shards(tmp_path, split)) == 6


def test_labels_may_be_in_json(tmp_path):
    foreign(tmp_path)
    assert open_shards(tmp_path, 'train', target_key='label').targets() == [10, 11, 12] * 2
    assert open_shards(foreign(tmp_path / 'alt', alt_label='label'), 'train').targets() == [10, 11, 12] * 2
    with pytest.raises(UserError, match=r'toy-00.tar: part/0_0.cls has no label under the key other'):
        open_shards(tmp_path, 'train', target_key='other')


def test_samples_without_image_or_label_are_skipped_and_counted(tmp_path):
    write_tar(tmp_path / 'a.tar', [
        ('1.jpg', jpeg(1)), ('1.cls', b'3'), ('2.cls', b'4'), ('3.jpg', jpeg(3)), ('4.jpg', jpeg(4)), ('4.cls', b'cat'),
        ('__meta__', b''), ('no_extension', b''), ('6.png', jpeg(6)), ('6.cls', b'6\n')])
    samples = open_shards(tmp_path, 'a.tar')
    assert (samples.targets(), samples.skipped) == ([3, 6], 3)
    assert open_shards(tmp_path, 'a.tar', input_key='png').targets() == [6]
    with pytest.raises(UserError, match=r'has both an image \(.tif\) and a label'):
        open_shards(tmp_path, 'a.tar', input_key='tif')


def test_the_index_of_foreign_shards_is_kept_until_a_shard_changes(tmp_path, monkeypatch):
    foreign(tmp_path)
    scans = []
    scan = index_module.scan_shard
    monkeypatch.setattr(index_module, 'scan_shard', lambda *args: scans.append(args[1]) or scan(*args))
    for _ in range(2):
        assert len(open_shards(tmp_path, 'train')) == 6
    assert scans == ['toy-00.tar', 'toy-01.tar']
    members = [('9.jpg', jpeg(9)), ('9.cls', b'9')]
    write_tar(tmp_path / 'toy-01.tar', members)
    assert open_shards(tmp_path, 'train').targets() == [0, 1, 2, 9]
    os.utime(tmp_path / 'toy-01.tar', ns=(0, 0))  # same size, other time
    open_shards(tmp_path, 'train')
    assert len(scans) == 6


def test_a_folder_that_cannot_be_written_is_indexed_each_time(tmp_path, monkeypatch):
    foreign(tmp_path)

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(index_module, 'atomic_write', refuse)  # as root, all folders can be written
    assert len(open_shards(tmp_path, 'train')) == 6
    assert not list(tmp_path.glob('*.npz')) and not list(tmp_path.glob('.*'))


@pytest.mark.parametrize(('root', 'split', 'target_key'), [
    ('data', 'pipe:cat {0..1}.tar', None), ('data', 'https://host/{0..1}.tar', None), ('https://host', 'train', None),
    ('data', 'a.tar::b.tar', None), ('data', 'a-{0..1}.tar.gz', None), ('data', 'train', 'cat,dog')])
def test_what_needs_a_stream_is_left_to_timm(root, split, target_key):
    assert open_shards(root, split, target_key=target_key) is None


def test_lists_of_labels_are_left_to_timm(tmp_path):
    write_tar(tmp_path / 'a.tar', [('1.jpg', jpeg(1)), ('1.json', b'{"labels": [1, 2]}')])
    assert open_shards(tmp_path, 'a.tar', target_key='labels') is None


def test_unknown_split_names_those_there_are(tmp_path, packed):
    with pytest.raises(UserError, match='has no split test: there is train, validation'):
        open_shards(packed[0], 'test')
    with pytest.raises(UserError, match=r'no split train: it has no _info.json .*name the shards'):
        open_shards(tmp_path, 'train')
    with pytest.raises(UserError, match=r'shard .*toy-0.tar cannot be read: No such file'):
        open_shards(tmp_path, 'toy-{0..3}.tar')
    assert not is_packed(tmp_path)


def test_a_million_samples_open_and_shuffle_in_seconds(tmp_path):
    count = 157
    samples = made_up([8192] * count)
    lengths = np.full(len(samples), 15)
    index = samples.index._replace(name_lengths=lengths, names=np.full(lengths.sum(), ord('n'), np.uint8))
    start = time.process_time()
    index_module.save_index(tmp_path / 'index.npz', index)
    loaded = index_module.load_index(tmp_path / 'index.npz')
    order = samples.epoch_order(np.random.default_rng(0))
    assert time.process_time() - start < 10  # about one, on a machine that does nothing else
    assert len(order) == len(loaded.offsets) == 8192 * count > 1.28e6
    assert math.isclose(loaded.name_lengths.sum(), 15 * len(order))
