"""Tags in tables and in texts beside images; what may be read in two ways is refused, what is missed is named."""

import pytest
from PIL import Image
from tagged_data import write_tagged

from timm_rs.data.annotated import open_layout
from timm_rs.data.bad_samples import problem_of
from timm_rs.data.listing import MISSING, NO_TAGS, ONLY_TAGS, summary
from timm_rs.data.samples import Relabelled
from timm_rs.data.tagged import open_tags
from timm_rs.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """a.jpg, b.jpg and sub/c.jpg in train/."""
    for name in ('a.jpg', 'b.jpg', 'sub/c.jpg'):
        path = tmp_path / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(path)
    return tmp_path


@pytest.mark.parametrize('form', ['tags', 'marks', 'texts'])
def test_three_forms_of_the_same_tags_are_the_same(form, tmp_path):
    samples = open_layout('tags', str(write_tagged(tmp_path, form)), 'train')
    reference = open_tags(write_tagged(tmp_path / 'other'), 'train')
    assert samples.classes == dict(blue=0, green=1, red=2) == reference.classes
    by_name = {name.rpartition('/')[2]: label for name, label in zip(
        map(reference.name, range(16)), reference.targets(), strict=True)}
    assert {samples.name(index).rpartition('/')[2]: samples.read(index)[1] for index in range(16)} == by_name
    assert () in by_name.values() and (2,) in by_name.values() and not samples.left_out
    assert problem_of(samples, 0) is None


TABLES = {  # what a table may look like, and the tags of a.jpg and b.jpg
    'file,tags\na.jpg,wet;old dog\nb.jpg,\n': [('old dog', 'wet'), ()],
    '\ufefffile,tags\r\ntrain/a.jpg, wet ;; old  dog;wet\r\n\r\nb.jpg,wet\r\n': [('old dog', 'wet'), ('wet',)],
    'file,tags\na.jpg,old dog;\nb.jpg,wet\n': [('old dog',), ('wet',)],
    'file,tags\n"a.jpg","a, b;c"\nb.jpg,c\n': [('a, b', 'c'), ('c',)],
    'file,tags\na.jpg,wet\nb.jpg,dry\n': [('wet',), ('dry',)],
    'Path,wet,old dog,never\na.jpg,1,1.0,0\nb.jpg,0.0,False,0\n': [('old dog', 'wet'), ()],
    'image_name,tags,wet\na.jpg,1,0\nb.jpg,0,1\n': [('tags',), ('wet',)],
}


@pytest.mark.parametrize('table', TABLES)
def test_tables_say_what_they_say(table, photos):
    (photos / 'train.csv').write_text(table)
    samples = open_tags(photos, 'train')
    names = list(samples.classes)
    assert [tuple(names[index] for index in tags) for tags in samples.targets()] == TABLES[table]
    assert samples.left_out == [(str(photos / 'train/sub/c.jpg'), NO_TAGS)]


def test_a_column_of_a_tag_that_no_image_has_is_a_class(photos):
    (photos / 'train.csv').write_text('file,b10,b9\na.jpg,0,1\n')
    assert open_tags(photos, 'train').classes == dict(b9=0, b10=1)  # in natural order


BAD_TABLES = {
    'file,tags\na.jpg,old dog\n': "line 2: 'old dog' may be one tag or several: put a ; between tags",
    'file,tags\n"a.jpg","wet,dry"\n': "line 2: 'wet,dry' may be one tag or several",
    'a.jpg,wet\nb.jpg,dry\n': 'needs a first line "file,tags"',
    'file;tags\na.jpg;wet\n': 'needs a first line "file,tags"',
    'file,a,\na.jpg,1,1\n': 'needs a first line "file,tags"',
    '': 'needs a first line "file,tags"',
    'file,tags\n': 'none of the 0 images that',
    'file,tags\ngone.jpg,wet\n': 'none of the 1 images that .* names is there: gone.jpg; paths are from',
    'file,wet,wet\na.jpg,1,0\n': 'has two columns wet: leave one out',
    'file,wet,sex\na.jpg,1,male\n': "line 2, column sex: 0 or 1 is wanted, got 'male'; a column of anything else",
    'file,wet\na.jpg,-1\n': "line 2, column wet: 0 or 1 is wanted, got '-1'",
    'file,wet\na.jpg,\n': "line 2, column wet: 0 or 1 is wanted, got ''",
    'file,wet,dry\na.jpg,1\n': "line 2: a file and 2 more are wanted, got 'a.jpg,1'",
    'file,tags\na.jpg,wet,dry\n': "line 2: a file and 1 more are wanted, got 'a.jpg,wet,dry'; quote what has a comma",
    'file,tags\n,wet\n': 'line 2: a file and 1 more are wanted',
    'file,tags\na.jpg,wet\nb.jpg,wet\ntrain/a.jpg,dry\n': 'names train/a.jpg twice, in lines 2 and 4',
    'file,tags\ngone.jpg,wet\ngone.jpg,wet\na.jpg,wet\n': 'names gone.jpg twice, in lines 2 and 3',
    'file,tags\n../train/a.jpg,wet\n': 'line 2: ../train/a.jpg is not within .*: give its path from there on',
    'file,tags\n/etc/passwd,wet\n': 'line 2: /etc/passwd is not within',
    'file,we;t\na.jpg,1\n': 'we;t has a ; in its name',
    'file,tags\na.jpg,"' + 200_000 * 'x' + '"\n': 'cannot be read: field larger than field limit',
}


@pytest.mark.parametrize('table', BAD_TABLES, ids=lambda table: table[:40])
def test_bad_tables_are_one_sentence(table, photos):
    (photos / 'train.csv').write_text(table)
    with pytest.raises(UserError, match=BAD_TABLES[table]) as raised:
        open_tags(photos, 'train')
    assert str(photos / 'train.csv') in str(raised.value) and '\n' not in str(raised.value)


def test_what_a_table_misses_is_named(photos):
    (photos / 'train.csv').write_text('file,tags\na.jpg,wet\ngone.jpg,dry\n')
    samples = open_tags(photos, 'train')
    assert len(samples) == 1 and samples.classes == dict(dry=0, wet=1)  # a missing image does not number the classes
    assert samples.left_out == [('gone.jpg', MISSING), *(
        (str(photos / 'train' / name), NO_TAGS) for name in ('b.jpg', 'sub/c.jpg'))]
    assert '1 named by the list, but not there (gone.jpg); 2 without a row' in summary(samples.left_out)


def test_images_may_lie_beside_the_table_or_in_images(photos):
    (photos / 'train').rename(photos / 'images')
    (photos / 'images/a.jpg').rename(photos / 'a.jpg')
    (photos / 'val.csv').write_text('file,tags\na.jpg,wet\nsub/c.jpg,dry\n')
    samples = open_tags(photos, 'validation')
    assert [samples.name(index) for index in (0, 1)] == [str(photos / 'a.jpg'), str(photos / 'images/sub/c.jpg')]


def test_texts_have_a_tag_on_each_line_or_between_commas_and_what_misses_its_half_is_named(photos):
    (photos / 'train/a.txt').write_text('\ufeffwet, old  dog\n\ndry,\n')
    (photos / 'train/sub/c.txt').write_text('')
    (photos / 'train/d.txt').write_text('lost')
    samples = open_tags(photos, 'train')
    assert samples.classes == {'dry': 0, 'old dog': 1, 'wet': 2} and samples.targets() == [(0, 1, 2), ()]
    assert samples.left_out == [(str(photos / 'train/b.jpg'), NO_TAGS), (str(photos / 'train/d.txt'), ONLY_TAGS)]


def test_bad_texts_are_one_sentence(photos):
    with pytest.raises(UserError, match=r'has no image with a text of tags beside it, as a\.txt would be'):
        open_tags(photos, 'train')
    (photos / 'train/a.txt').write_text('wet; dry')
    with pytest.raises(UserError, match='wet; dry has a ; in its name: .* a text beside an image has commas'):
        open_tags(photos, 'train')
    (photos / 'train/a.txt').write_text('wet')
    Image.new('RGB', (4, 4)).save(photos / 'train/a.png')
    with pytest.raises(UserError, match=r'has both a\.jpg and a\.png: of which of them is a\.txt\?'):
        open_tags(photos, 'train')
    with pytest.raises(UserError, match=r'has no split validation: it needs a table validation\.csv'):
        open_tags(photos, 'validation')


def test_classes_txt_says_which_tags_there_are_and_in_which_order(photos):
    (photos / 'train.csv').write_text('file,tags\na.jpg,wet;dry\nb.jpg,dry\nsub/c.jpg,\n')
    (photos / 'classes.txt').write_text('wet\nnever\ndry\n')
    samples = open_tags(photos, 'train')
    assert samples.classes == dict(wet=0, never=1, dry=2) and samples.targets() == [(0, 2), (2,), ()]
    (photos / 'classes.txt').write_text('wet\n')
    with pytest.raises(UserError, match=r'train\.csv has classes that .*classes\.txt lacks: dry; it has wet'):
        open_tags(photos, 'train')


def test_tags_follow_the_classes_of_others(tmp_path):
    samples = open_tags(write_tagged(tmp_path), 'train')
    again = Relabelled(samples, dict(red=0, white=1, green=2, blue=3))
    moved = {0: 3, 1: 2, 2: 0}
    assert again.targets() == [tuple(sorted(moved[tag] for tag in tags)) for tags in samples.targets()]
    assert again.read(3)[1] == again.targets()[3]
    assert [again.open(index) for index in range(len(again))] == [again.read(index) for index in range(len(again))]
