"""A listing of before is used where listing anew would give the same, and nowhere else."""

import os
import pickle
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images

from timm_rs.data import listing_cache
from timm_rs.data.datasets import create_datasets, open_split
from timm_rs.data.listing import EMPTY, OF_SYSTEM, Seen, list_archive, list_folder
from timm_rs.data.listing_cache import cached_listing
from timm_rs.data.pool import open_pool
from timm_rs.device.torch_device import Device
from timm_rs.files import atomic_write
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.training.build import build_data

A_TICK = 0.02  # seconds; the clocks of file systems stand still for 10 ms


@pytest.fixture
def small(monkeypatch):
    """Few images are many, and folders of just now old enough."""
    monkeypatch.setattr(listing_cache, 'FEWEST', 2)
    monkeypatch.setattr(listing_cache, 'STANDSTILL_NS', -10**9)


@pytest.fixture
def root(tmp_path, small):
    """Folders in all that a listing knows: below each other, empty, called like an image, linked, in a circle."""
    root = tmp_path / 'data/train'
    for name in ('cat/1.jpg', 'cat/10.jpg', 'cat/9.jpg', 'cat/more/été.jpg', 'cat/notes.txt', 'dog/1.jpg',
                 'dog/.hidden.jpg', 'dog/2.jpg/readme', '../store/eels/1.jpg', '../other/2.jpg'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / os.fsdecode(b'dog/\xff.jpg')).touch()
    (root / 'empty').mkdir()
    (root / 'eel').symlink_to('../store/eels')
    (root / 'cat/around').symlink_to(root)
    (root / 'dog/link.jpg').symlink_to('1.jpg')
    (root / 'later').symlink_to('../later')
    time.sleep(A_TICK)
    return root


def plain(listing):
    return [list(part) if part is not listing.spans else part.tolist() for part in listing]


def is_cached(root, *suffixes):
    """Whether the listing comes from the cache; it must be what listing anew gives, in any case."""
    listing, sentence = cached_listing(str(root), *suffixes)
    assert plain(listing) == plain(list_folder(str(root), *suffixes))
    return bool(sentence)


def place_of(root):
    return root.with_name(f'.{root.name}-listing.npz')


def test_a_listing_is_kept_whole(root):
    assert [is_cached(root) for _ in range(3)] == [False, True, True]
    listing, sentence = cached_listing(str(root))
    assert len(listing.names) == 8 and sentence == (
        f'8 images in {root} as listed on {time.strftime("%Y-%m-%d")}; delete {place_of(root)} to list again')
    assert sorted(os.listdir(root.parent)) == ['.train-listing.npz', 'other', 'store', 'train']
    place_of(root).unlink()
    assert not is_cached(root)
    os.chdir(root.parent)
    assert is_cached('train') and is_cached('train/') and is_cached('./train')


def swap(one, other):
    one.rename(one.with_name('between'))
    other.rename(one)
    one.with_name('between').rename(other)


def point_elsewhere(root):
    (root / 'new').symlink_to('../other')
    (root / 'new').replace(root / 'eel')


def add_and_set_back(root):
    before = os.stat(root / 'dog')
    (root / 'dog/new.jpg').touch()
    os.utime(root / 'dog', ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = dict(
    new_image=lambda root: (root / 'cat/more/2.jpg').touch(),
    new_class=lambda root: (root / 'yak').mkdir(),
    in_an_empty_folder=lambda root: (root / 'empty/1.jpg').touch(),
    image_gone=lambda root: (root / 'dog/1.jpg').unlink(),
    image_renamed=lambda root: (root / 'dog/1.jpg').rename(root / 'dog/3.jpg'),
    image_moved=lambda root: (root / 'dog/1.jpg').rename(root / 'eel/3.jpg'),
    class_gone=lambda root: shutil.rmtree(root / 'dog'),
    class_renamed=lambda root: (root / 'dog').rename(root / 'yak'),
    classes_swapped=lambda root: swap(root / 'dog', root / 'cat'),
    no_image_any_more=lambda root: (root / 'dog/1.jpg').rename(root / 'dog/1.txt'),
    linked_folder=lambda root: (root.parent / 'store/eels/2.jpg').touch(),
    linked_folder_replaced=lambda root: swap(root.parent / 'store/eels', root.parent / 'other'),
    link_elsewhere=point_elsewhere,
    link_to_nothing=lambda root: (root.parent / 'store/eels').rename(root.parent / 'store/gone'),
    nothing_becomes_a_folder=lambda root: (root.parent / 'other').rename(root.parent / 'later'),
    no_circle_any_more=lambda root: (root.rename(root.with_name('elsewhere')), shutil.copytree(
        root.with_name('elsewhere'), root, symlinks=True)),
    time_set_back=add_and_set_back,
    all_gone_and_back=lambda root: (shutil.copytree(root, root.with_name('copy'), symlinks=True), shutil.rmtree(root),
                                    root.with_name('copy').rename(root)))


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_is_seen(root, change):
    is_cached(root)
    assert is_cached(root)
    time.sleep(A_TICK)
    CHANGES[change](root)
    assert not is_cached(root)
    time.sleep(A_TICK)
    assert is_cached(root)


def write(path, content):
    path.write_bytes(content)


SAME = dict(
    content=lambda root: write(root / 'cat/1.jpg', b'other'),
    times_of_files=lambda root: os.utime(root / 'cat/1.jpg'),
    target_of_an_image=lambda root: (root / 'dog/link.jpg').read_bytes(),
    beside_it=lambda root: (root.parent / 'validation').mkdir())


@pytest.mark.parametrize('change', SAME)
def test_what_lists_the_same_lists_nothing_again(root, change):
    is_cached(root)
    time.sleep(A_TICK)
    SAME[change](root)
    assert is_cached(root)


def test_a_file_that_a_link_led_to_is_a_bad_image_as_ever(root):
    (root / 'dog/link.jpg').unlink()
    (root / 'dog/link.jpg').symlink_to('../../other/2.jpg')
    time.sleep(A_TICK)
    is_cached(root)
    (root.parent / 'other/2.jpg').unlink()
    assert is_cached(root) and 'dog/link.jpg' in cached_listing(str(root))[0].names


def test_each_kind_of_name_has_its_own_listing(root):
    for suffixes in (['.jpg'], ['.jpg', '.txt'], ['.jpg']):
        assert [is_cached(root, suffixes), is_cached(root, suffixes)] == [False, True]


# ---- what is not to be relied on -----------------------------------------------------------------------------------

def test_folders_of_just_now_are_listed_again_until_their_time_says_something(root, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(listing_cache, 'FEWEST', 2)
    assert not is_cached(root) and not is_cached(root) and not place_of(root).exists()
    time.sleep(2.1)
    assert not is_cached(root) and is_cached(root)


@pytest.mark.parametrize('name', ['.', 'cat/more'])
def test_a_time_in_the_future_says_nothing(root, name):
    os.utime(root / name, (time.time() + 1000,) * 2)
    assert not is_cached(root) and not is_cached(root) and not place_of(root).exists()


def test_a_file_system_that_keeps_no_times_of_folders_keeps_no_listing(root, monkeypatch):
    @contextmanager
    def without_times(path, mode):
        before = os.stat(path.parent)
        with atomic_write(path, mode) as file:
            os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
            yield file
    monkeypatch.setattr(listing_cache, 'atomic_write', without_times)
    assert not is_cached(root) and not is_cached(root) and not place_of(root).exists()


def test_a_folder_on_another_file_system_keeps_none(root, monkeypatch):
    of_this = Seen.at
    is_cached(root)
    monkeypatch.setattr(Seen, 'at', lambda path, name: of_this(path, name)._replace(
        device=-1 if name == 'eel' else os.stat(path).st_dev))
    assert not is_cached(root)
    place_of(root).unlink()
    assert not is_cached(root) and not place_of(root).exists()


def test_processes_that_list_at_once_keep_one_listing(root):
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            try:
                for _ in range(5):
                    place_of(root).unlink(missing_ok=True)
                    is_cached(root)
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == 3 * [0]
    is_cached(root)
    assert is_cached(root)
    assert sorted(os.listdir(root.parent)) == ['.train-listing.npz', 'other', 'store', 'train']


def test_a_place_that_cannot_be_written_is_none(root):
    (place_of(root) / 'x').mkdir(parents=True)
    assert not is_cached(root) and not is_cached(root)
    assert sorted(os.listdir(root.parent)) == ['.train-listing.npz', 'other', 'store', 'train']


def test_few_images_leave_nothing(root, monkeypatch):
    monkeypatch.setattr(listing_cache, 'FEWEST', 10)
    assert not is_cached(root) and not is_cached(root) and not place_of(root).exists()


# ---- files of others -----------------------------------------------------------------------------------------------

def text(*names):
    return np.frombuffer(b''.join(name + b'\0' for name in names), np.uint8)


HOSTILE = dict(
    outside=lambda arrays: dict(names=text(*8 * [b'../../other/2.jpg'])),
    outside_from_within=lambda arrays: dict(names=text(*8 * [b'cat/../../../other/2.jpg'])),
    from_the_root=lambda arrays: dict(names=text(*8 * [b'/etc/passwd'])),
    the_folder_above=lambda arrays: dict(names=text(*8 * [b'cat/..'])),
    no_name=lambda arrays: dict(names=text(*8 * [b''])),
    other_bytes=lambda arrays: dict(names=text(*8 * [b'\xff\xfe.jpg'])),
    no_bytes=lambda arrays: dict(names=arrays['names'].astype(np.int64)),
    no_end=lambda arrays: dict(names=text(*8 * [b'x.jpg'], b'y')[:-1]),
    more_names=lambda arrays: dict(names=text(*9 * [b'x.jpg'])),
    no_row=lambda arrays: dict(names=text(*8 * [b'x']).reshape(-1, 2)),
    folder_below_none=lambda arrays: dict(places=arrays['places'] - 9),
    folder_beyond_all=lambda arrays: dict(places=arrays['places'] + 9),
    fractions=lambda arrays: dict(places=arrays['places'] / 2),
    reason_beyond_all=lambda arrays: dict(reasons=arrays['reasons'] + np.int8(99)),
    directories_outside=lambda arrays: dict(directories=text(b'../x')),
    links_outside=lambda arrays: dict(links=text(b'../x')),
    folders_outside=lambda arrays: dict(seen=text(b'..')),
    no_folders=lambda arrays: dict(seen=text()),
    objects=lambda arrays: dict(names=np.array([print], object)),
    another_identity=lambda arrays: dict(identity=np.array('0' * 64)))


def restored(root, content):
    """Whether another cache file than ours is ignored, and replaced by ours."""
    write(place_of(root), content)
    return not is_cached(root) and is_cached(root)


@pytest.mark.parametrize('change', HOSTILE)
def test_what_could_not_be_kept_by_us_is_ignored(root, tmp_path, change):
    is_cached(root)
    with np.load(place_of(root)) as kept:
        arrays = dict(kept)
    np.savez(place_of(root), **arrays)
    assert is_cached(root)
    np.savez(tmp_path / 'bad.npz', **arrays | HOSTILE[change](arrays))
    assert restored(root, (tmp_path / 'bad.npz').read_bytes())


def test_damaged_files_and_those_of_others_are_ignored(root, tmp_path):
    is_cached(root)
    content = place_of(root).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        assert restored(root, content[:length])
    with np.load(place_of(root)) as arrays:
        np.savez_compressed(tmp_path / 'small.npz', **arrays)
    for other in ((tmp_path / 'small.npz').read_bytes(), b'{}', pickle.dumps({}), content.replace(b'cat', b'rat')):
        assert restored(root, other)


def test_a_listing_of_another_user_is_ignored(root, monkeypatch):
    is_cached(root)
    by_others, ours = 12_345, os.stat(root).st_uid
    monkeypatch.setattr(os, 'geteuid', lambda: by_others)
    real = Path.stat
    for owner, is_used in ((by_others, True), (by_others + 1, False), (ours, True), (0, True)):
        monkeypatch.setattr(Path, 'stat', lambda path, owner=owner, **options: os.stat_result(
            owner if index == 4 else value for index, value in enumerate(real(path, **options))) if (
                path == place_of(root)) else real(path, **options))
        monkeypatch.setattr(listing_cache, '_save', lambda *arguments: None)
        device = os.stat(root).st_dev
        assert device == real(place_of(root)).st_dev and is_cached(root) == is_used


def test_no_listing_has_a_cache_among_what_it_leaves_out(root, tmp_path):
    is_cached(root)
    (root.parent / '..train-listing.npz.host.1.tmp').touch()
    shutil.make_archive(str(tmp_path / 'data'), 'tar', root.parent)
    (root.parent / 'train/.train-listing.txt').touch()
    for listing, others in ((list_folder(str(root.parent)), 1), (list_archive(str(tmp_path / 'data.tar')), 0)):
        assert sum(reason == OF_SYSTEM for _, reason in listing.left_out) == 1 + others


# ---- where it is used ----------------------------------------------------------------------------------------------

@pytest.fixture
def photos(tmp_path, small):
    for split in ('train', 'validation'):
        write_images(tmp_path / 'photos' / split, dict.fromkeys(('cat', 'dog'), 20))
    (tmp_path / 'photos/train/cat/bad').mkdir()
    time.sleep(A_TICK)
    return tmp_path / 'photos'


def test_no_folder_is_read_twice_and_none_again(photos, monkeypatch):
    real, read = os.scandir, []
    monkeypatch.setattr(os, 'scandir', lambda path: read.append(os.path.relpath(path, photos)) or real(path))
    for expected in (['train', 'train', 'train/cat', 'train/cat/bad', 'train/dog'], ['train']):
        open_split(Recipe(data_dir=str(photos)), 'train', is_training=True)
        assert sorted(name for name in read if name != '.') == expected  # first it is seen whether there is anything
        read.clear()


def test_a_run_says_so_and_has_the_same_images(photos, capsys):
    recipe = Recipe(data_dir=str(photos), train_split='train-minival', val_split='validation', num_classes=2)
    task, device = create_task(recipe), Device('cpu')
    runs = []
    for expected in (0, 2):
        train, validation, _ = build_data(recipe, task, device)
        assert capsys.readouterr().out.count('as listed on') == expected
        runs.append([[(data.name(index), *data.read(index)) for index in range(len(data))] + [
            data.classes, data.targets(), list(data.left_out)] for data in (train, validation)])
    assert runs[0] == runs[1] and runs[0][0][-1] == [(f'{photos}/train/cat/bad', EMPTY)]
    moved = create_datasets(recipe, known=dict(dog=0, cat=1))
    assert all('as listed on' in data.listed for data in moved[:2])


def test_pools_are_listed_in_the_same_way(photos):
    pools = [open_pool(str(photos / 'train/cat')) for _ in range(2)]
    assert pools[1].listed and not pools[0].listed
    for pool in pools:
        assert pool.targets() == 20 * [0] and pool.left_out == [(f'{photos}/train/cat/bad', EMPTY)]
        assert [pool.name(index) for index in range(20)] == [f'{photos}/train/cat/{index}.png' for index in range(20)]
