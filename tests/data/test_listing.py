"""What counts as an image and as a class: alike in folders and archives, in every process, nothing without a word."""

import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from timm.data import create_dataset

from timm_rs.data.datasets import create_datasets, open_split
from timm_rs.data.listing import (
    EMPTY,
    IMAGE_SUFFIXES,
    LOOP,
    NO_IMAGE,
    OF_SYSTEM,
    class_of,
    in_class_order,
    is_of_system,
    list_archive,
    list_folder,
    natural_key,
    natural_keys,
    read_class_map,
    summary,
)
from timm_rs.data.samples import Relabelled
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe


def packed(folder, path):
    with tarfile.open(path, 'w') as tar:
        tar.add(folder, '.')
    return path


@pytest.fixture(params=['folder', 'tar', 'tar with a folder around'])
def opened(request, tmp_path):
    """A function that opens a folder of images as each kind of reader would."""
    def open_it(folder, **recipe):
        path = folder
        if request.param != 'folder':
            path = tmp_path / 'train.tar'
            with tarfile.open(path, 'w') as tar:
                tar.add(folder, '.' if request.param == 'tar' else 'train')
        return open_split(Recipe(data_dir=str(path), val_split='', **recipe), 'train', is_training=True)
    return open_it


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')


CLEAN = ('cat', 'dog10', 'dog9', 'Eel', 'b_2', '007', '12 monkeys', 'zebra crossing', 'été')


def test_clean_data_has_timms_classes_order_and_bytes(tmp_path, opened):
    for index, name in enumerate(CLEAN):
        for number in (1, 10, 2):
            touch(tmp_path / 'D' / name / f'{name} {number}.{("jpg", "PNG", "jpeg")[index % 3]}')
    theirs = create_dataset('', root=str(tmp_path / 'D'), search_split=False).reader
    ours = opened(tmp_path / 'D')
    assert ours.classes == theirs.class_to_idx and list(ours.classes) == list(theirs.class_to_idx)
    assert ours.targets() == [target for _, target in theirs.samples]
    assert [os.path.basename(ours.name(index)) for index in range(len(ours))] == [
        os.path.basename(path) for path, _ in theirs.samples]
    assert ours.left_out == []


def test_an_archive_gives_the_files_bytes_also_from_archives_within(tmp_path):
    write_images(tmp_path / 'D', {'cat': 3, 'dog': 2})
    packed(tmp_path / 'D/cat', tmp_path / 'cat.tar')
    with tarfile.open(tmp_path / 'all.tar', 'w') as tar:
        tar.add(tmp_path / 'cat.tar', 'cat.tar')
        tar.add(tmp_path / 'D/dog', 'dog')
    samples = open_split(Recipe(data_dir=str(tmp_path / 'all.tar'), val_split=''), 'train', is_training=True)
    assert samples.classes == {'cat': 0, 'dog': 1} and samples.targets() == [0, 0, 0, 1, 1]
    for index in range(5):
        assert samples.read(index)[0] == (tmp_path / 'D' / samples.name(index)).read_bytes()


def test_names_that_are_equal_in_natural_order_go_by_the_name_itself_in_every_process(tmp_path):
    names = ['A', 'a', 'B', 'b', 'img1', 'img01', 'img001', 'ß', 'SS', '²', 'x²']
    for name in names:
        touch(tmp_path / name / 'x.jpg')
    program = ('import sys; from timm_rs.data.listed_images import open_images; '
               'print(ascii(list(open_images(sys.argv[1]).class_to_idx)))')
    answers = {subprocess.run([sys.executable, '-c', program, tmp_path], capture_output=True, text=True, check=True,
                              env=os.environ | dict(PYTHONHASHSEED=seed)).stdout for seed in ('1', '3')}
    assert answers == {ascii(sorted(sorted(names), key=natural_key)) + '\n'}
    assert list(in_class_order(reversed(names))) == list(in_class_order(names))
    assert list(in_class_order(['10' * 5000, '9', 'b'])) == ['9', '10' * 5000, 'b']  # too many digits for int()


# Of what names are made: what sorts around digits and slashes, digits of all kinds, letters whose case depends on their
# neighbours.
PIECES = ['a', 'A', 'b', ' ', '-', '!', '~', '0', '1', '9', '10', '007', '12345678901234567890', '²', '٣', '１', 'ß',
          'İ', 'Σ', 'ς', 'é', 'e\u0301', '日', '\udcff', '\x01', '\n', '.', "'", 'ſ', '\U0001d7d8', '\U0001f600']


def walked(folder, prefix=''):
    """What is below a folder by the simplest means: images, what is left out, folders that are called like an image."""
    names, left_out, directories = [], [], []
    for name in os.listdir(folder):
        path = f'{folder}/{name}'
        if is_of_system(name):
            left_out.append((prefix + name, OF_SYSTEM))
        elif not os.path.isdir(path):
            names.append(prefix + name) if name.endswith('.jpg') else left_out.append((prefix + name, NO_IMAGE))
        else:
            inner = walked(path, f'{prefix}{name}/')
            for ours, theirs in zip((names, left_out, directories), inner, strict=True):
                ours += theirs
            if not inner[0] and name.endswith('.jpg'):
                directories.append(prefix + name)
            elif not inner[0]:
                left_out.append((prefix + name, EMPTY))
    return names, left_out, directories


@pytest.mark.parametrize('seed', range(8))
def test_any_tree_is_listed_in_natural_order_of_whole_names(tmp_path, seed):
    rng = np.random.default_rng(seed)

    def random_name():
        return ''.join(rng.choice(PIECES, rng.integers(1, 4)))
    folders = [tmp_path]
    for _ in range(120):
        path = folders[rng.integers(len(folders))] / (random_name() + str(rng.choice(['', '', '.jpg', '.txt'])))
        if path.exists() or path.name in ('.', '..'):
            continue
        if rng.random() < 0.2:
            path.mkdir()
            folders.append(path)
        else:
            path.touch()
    names, left_out, directories = walked(str(tmp_path))
    listing = list_folder(str(tmp_path), ['.jpg'])
    assert len(names) > 10 and listing.names == sorted(sorted(names), key=natural_key)
    assert listing.left_out == sorted(left_out) and listing.directories == sorted(directories)
    for leaf in (False, True):
        labels = listing.labels(leaf)
        assert [labels[place] for place in listing.places] == [class_of(name, leaf) for name in listing.names]


def test_names_sort_as_timms_lists_of_digits_and_text():
    rng = np.random.default_rng(0)
    plain = [piece for piece in PIECES if piece.isascii()]
    numbers = {digit * length for digit in '012' for length in (99, 100, 101, 4000, 4001, 5000)}
    names = sorted(numbers | {
        ''.join(rng.choice(pieces, rng.integers(0, 6))) for pieces in (PIECES, plain) for _ in range(3000)})
    for at_once in (1, 7, 10_000):
        keys = dict(zip(names, natural_keys(names, at_once), strict=True))
        assert sorted(names, key=keys.__getitem__) == sorted(names, key=natural_key)


@pytest.mark.parametrize('leaf', [False, True])
def test_the_class_is_the_folder_below_the_split_or_timms_by_an_option(tmp_path, opened, leaf):
    for name in ('cat/day1/x.jpg', 'dog/day1/y.jpg', 'dog/day2/deep/z.jpg', 'eel/w.jpg'):
        touch(tmp_path / 'D' / name)
    samples = opened(tmp_path / 'D', class_folder='leaf' if leaf else 'top')
    assert list(samples.classes) == (['day1', 'deep', 'eel'] if leaf else ['cat', 'dog', 'eel'])


@pytest.mark.parametrize('name', [
    '.ipynb_checkpoints', '.git', '@eaDir', '__MACOSX', '$RECYCLE.BIN', '#recycle', '~snapshot', '__pycache__',
    'lost+found', 'System Volume Information'])
def test_folders_of_systems_and_tools_are_no_classes_wherever_they_are(tmp_path, opened, name):
    write_images(tmp_path / 'D', {'cat': 1, 'dog': 1})
    for place in ('', 'cat/', 'dog/deeper/'):
        touch(tmp_path / 'D' / place / name / 'x.jpg')
    touch(tmp_path / 'D/cat/._0.jpg')  # what macOS keeps of a file on other file systems
    samples = opened(tmp_path / 'D')
    assert list(samples.classes) == ['cat', 'dog'] and len(samples) == 2
    assert {reason for _, reason in samples.left_out} - {EMPTY} == {OF_SYSTEM}
    assert '4 hidden, or of a system or tool' in summary(samples.left_out)


def test_all_else_is_counted_by_reason(tmp_path):
    write_images(tmp_path / 'cat', {'.': 2})
    for name in ('cat/notes.txt', 'cat/more/b.json', 'dog/readme', 'cat/4.png/x.md'):
        touch(tmp_path / name)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'cat/around').symlink_to(tmp_path)
    listing = list_folder(str(tmp_path))
    assert listing.names == ['cat/0.png', 'cat/1.png']
    assert dict(listing.left_out) == {
        'cat/notes.txt': NO_IMAGE, 'cat/more/b.json': NO_IMAGE, 'cat/more': EMPTY, 'dog/readme': NO_IMAGE, 'dog': EMPTY,
        'empty': EMPTY, 'cat/around': LOOP, 'cat/4.png/x.md': NO_IMAGE}
    assert summary(listing.left_out) == (
        '4 not an image, by its suffix (.md, .json, .txt, no suffix); 1 a link to a folder around it; '
        '3 a folder without images')
    assert listing.directories == ['cat/4.png']


def test_links_that_do_not_go_in_a_circle_are_followed(tmp_path):
    write_images(tmp_path / 'store', {'cats': 2})
    (tmp_path / 'D').mkdir()
    (tmp_path / 'D/cat').symlink_to(tmp_path / 'store/cats')
    assert list_folder(str(tmp_path / 'D')).names == ['cat/0.png', 'cat/1.png']


def test_what_is_no_plain_file_in_an_archive_is_left_out(tmp_path):
    write_images(tmp_path / 'D', {'cat': 1})
    (tmp_path / 'D/cat/link.png').symlink_to('0.png')
    listing = list_archive(str(packed(tmp_path / 'D', tmp_path / 'D.tar')))
    assert listing.names == ['cat/0.png'] and [name for name, _ in listing.left_out] == ['cat/link.png']


@pytest.mark.parametrize('suffix', IMAGE_SUFFIXES)
def test_every_format_is_read_by_default(tmp_path, opened, suffix):
    path = tmp_path / 'D/cat' / f'a{suffix.upper()}'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(path, 'JPEG' if suffix == '.jfif' else Image.registered_extensions()[suffix])
    samples = opened(tmp_path / 'D')
    assert len(samples) == 1 and samples.left_out == []


def test_a_flat_folder_or_archive_is_refused(tmp_path, opened):
    touch(tmp_path / 'D/x.jpg')
    with pytest.raises(UserError, match='images lie directly in'):
        opened(tmp_path / 'D')


def test_without_images_it_is_said_what_there_is(tmp_path, opened):
    touch(tmp_path / 'D/cat/x.txt')
    with pytest.raises(UserError, match=r'there are no images in .*1 not an image, by its suffix \(.txt\)'):
        opened(tmp_path / 'D')


# ---- class maps -------------------------------------------------------------------------------------------------

@pytest.fixture
def pets(tmp_path):
    for split in ('train', 'validation'):
        write_images(tmp_path / 'pets' / split, dict.fromkeys(('cat', 'dog', 'eel'), 2))
    return tmp_path / 'pets'


def test_a_class_map_numbers_the_classes(pets, tmp_path):
    (tmp_path / 'map.txt').write_text('eel\nyak\ncat\ndog\n\n')
    train, validation, num_classes = create_datasets(Recipe(data_dir=str(pets), class_map=str(tmp_path / 'map.txt')))
    assert num_classes == 4 and train.targets() == validation.targets() == [2, 2, 3, 3, 0, 0]
    assert isinstance(train, Relabelled) and train.read(0)[1] == 2


@pytest.mark.parametrize(('text', 'words'), [
    ('catt\ndog\neel\n', 'has classes that class_map .*map.txt lacks: cat; it has catt, dog, eel'),
    ('cat\n\ndog\neel\n', 'has an empty line, which would count, in line 2'),
    ('cat\ndog\neel\ndog\n', 'has the class dog twice, again in line 4')])
def test_a_class_map_is_complete_or_refused(pets, tmp_path, text, words):
    (tmp_path / 'map.txt').write_text(text)
    with pytest.raises(UserError, match=words):
        create_datasets(Recipe(data_dir=str(pets), class_map=str(tmp_path / 'map.txt')))


def test_a_class_map_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / 'map.pkl').write_bytes(b'no pickle')
    for name, words in (('gone.txt', 'No such file'), ('map.pkl', 'cannot be read')):
        with pytest.raises(UserError, match=words):
            read_class_map(str(tmp_path / name))


def test_a_class_that_validation_lacks_shifts_no_label(pets):
    for path in (pets / 'validation/cat').iterdir():
        path.unlink()
    _, validation, num_classes = create_datasets(Recipe(data_dir=str(pets)))
    assert num_classes == 3 and validation.targets() == [1, 1, 2, 2] and validation.read(0)[1] == 1
    assert list(validation.left_out) == [(f'{pets}/validation/cat', EMPTY)]
