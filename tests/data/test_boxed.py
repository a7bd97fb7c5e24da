"""Images with boxes: what VOC's XML and COCO's JSON mean, and what is wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_trees import write_voc_boxes
from PIL import Image
from torchvision.datasets import VOCDetection

from timm_rs.data.annotated import VOC_CLASSES, annotation_problem, open_annotated
from timm_rs.data.boxed import check_boxes, read_voc_boxes
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.boxes import CROWD, DIFFICULT
from timm_rs.transforms.decode import BadImage

CLASSES = dict(red=0, green=1)
OBJECT = ('<object><name>green</name><bndbox><ymax>8</ymax><xmin>1</xmin><xmax>6</xmax><ymin>3</ymin></bndbox>'
          '<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part></object>')


def opened(root, split, layout='voc_boxes'):
    return open_annotated(Recipe(data_dir=str(root), dataset=f'torch/timm_rs/{layout}'), split, ('voc_boxes', 'coco'))


def read(objects, size=''):
    return read_voc_boxes(f'<annotation>{size}{objects}</annotation>'.encode(), 'a.xml', CLASSES)


# ---- VOC --------------------------------------------------------------------------------------------------------

def test_pixels_are_counted_from_1_with_both_ends_and_corners_come_in_any_order():
    assert read(OBJECT).rows.tolist() == [[0, 2, 6, 8, 1, 0]]  # 6 x 6 pixels, from (0, 2)
    assert read('').rows.shape == (0, 6)


@pytest.mark.parametrize(('text', 'flag'), [('0', 0), ('1', DIFFICULT), ('', 0), (' 1\n', DIFFICULT)])
def test_difficult_objects_are_marked(text, flag):
    marked = OBJECT.replace('<name>green', f'<difficult>{text}</difficult><name>green')
    assert read(marked).rows[0].tolist()[4:] == [1, flag]


@pytest.mark.parametrize(('size', 'expected'), [
    ('', None), ('<size><width>7</width><height>9</height></size>', (7, 9)),
    ('<size><width>0</width><height>0</height></size>', None)])
def test_the_size_is_kept_where_there_is_one(size, expected):
    assert read(OBJECT, size).size == expected


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'is no XML'), (b'<annotation><object>', 'is no XML'), (b'\xff\xfe\x00', 'is no XML'),
    (b'<?xml version="1.0" encoding="nonsense"?><annotation/>', 'is no XML'),
    (b'<html/>', 'no annotation of VOC, but <html>'),
    (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', 'declares entities'),
    (OBJECT.replace('green', 'blue').encode(), "has an object 'blue', which is no class"),
    (OBJECT.replace('<name>green</name>', '').encode(), "has an object '', which is no class"),
    (OBJECT.replace('>6<', '>six<').encode(), 'the box of green needs numbers as xmin, ymin, xmax, ymax'),
    (OBJECT.replace('>6<', '>nan<').encode(), 'needs numbers'),
    (OBJECT.replace('<xmax>6</xmax>', '').encode(), 'has 1, 3, None, 8'),
    (b'<object><name>red</name></object>', 'the box of red needs numbers')])
def test_an_annotation_that_cannot_be_is_named(content, words):
    if content.startswith(b'<object'):
        content = b'<annotation>' + content + b'</annotation>'
    with pytest.raises(BadImage, match='its annotation a.xml') as error:
        read_voc_boxes(content, 'a.xml', CLASSES)
    assert words in str(error.value)


def test_torchvisions_reader_of_voc_and_ours_read_the_tree_alike(tmp_path):
    root = write_voc_boxes(tmp_path / 'VOCdevkit/VOC2012', 5, 3)
    for split in ('train', 'val'):
        theirs, ours = VOCDetection(str(tmp_path), image_set=split), opened(tmp_path, split)
        assert len(theirs) == len(ours) == len(opened(root, split)) > 1
        for index, (_, annotation) in enumerate(theirs):
            things = annotation['annotation'].get('object', [])
            boxes = [[int(thing['bndbox'][side]) - (side < 'xm' or side.endswith('min')) for side in (
                'xmin', 'ymin', 'xmax', 'ymax')] for thing in things]
            content, (rows, size) = ours.read(index)
            assert content == Path(theirs.images[index]).read_bytes() and size == Image.open(ours.name(index)).size
            assert rows[:, :4].tolist() == boxes
            assert [list(CLASSES)[int(row[4])] for row in rows] == [thing['name'] for thing in things]


def test_splits_of_several_years_are_joined(tmp_path):
    for year, counts in ((2007, (3, 2)), (2012, (4, 1))):
        write_voc_boxes(tmp_path / f'VOCdevkit/VOC{year}', *counts)
    both = opened(tmp_path, '2007_train+2012_train')
    assert len(both) == 7 and 'VOC2007' in both.name(2) and 'VOC2012' in both.name(3)
    assert len(opened(tmp_path, 'VOC2007_val')) == 2 and len(opened(tmp_path / 'VOCdevkit', '2007_val')) == 2
    assert both.classes == CLASSES
    for year in (2007, 2012):
        (tmp_path / f'VOCdevkit/VOC{year}/classes.txt').unlink()
    assert list(opened(tmp_path, '2007_train').classes) == list(VOC_CLASSES[1:])
    with pytest.raises(UserError, match='has no folder VOC2010 for split 2010_train'):
        opened(tmp_path, '2010_train')
    with pytest.raises(UserError, match=r'has no list test.txt; there are train, val: .*2007_trainval\+2012_trainval'):
        opened(tmp_path, '2007_test')


def test_background_of_masks_is_no_class_of_boxes(tmp_path):
    root = write_voc_boxes(tmp_path, 1, 1)
    (root / 'classes.txt').write_text('background\nred\ngreen\n')
    assert opened(root, 'train').classes == CLASSES


# ---- COCO -------------------------------------------------------------------------------------------------------

def coco():
    return dict(
        images=[dict(id=7, file_name='a.png', width=20, height=10), dict(id=3, file_name='b.png')],
        annotations=[dict(id=1, image_id=3, category_id=90, bbox=[1, 2, 3.5, 4], iscrowd=1),
                     dict(id=2, image_id=3, category_id=2, bbox=[0, 0, 5, 5])],
        categories=[dict(id=90, name='tooth'), dict(id=2, name='bicycle')])


def write_coco(root, content, place='annotations/instances_train.json', folder='train'):
    for path in (root / place, root / folder / 'x'):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(content if isinstance(content, str) else json.dumps(content))
    for name in ('a.png', 'b.png'):
        Image.new('RGB', (20, 10)).save(root / folder / name)


@pytest.mark.parametrize(('place', 'folder'), [
    ('annotations/instances_train.json', 'train'), ('annotations/train.json', 'images/train'), ('train.json', 'images'),
    ('train/_annotations.coco.json', 'train'), ('annotations/instances_training.json', 'training'), ('train.json', '')])
def test_json_of_coco_is_read_wherever_it_is_usual(tmp_path, place, folder):
    write_coco(tmp_path, coco(), place, folder)
    samples = opened(tmp_path, 'train', 'coco')
    assert samples.classes == dict(bicycle=0, tooth=1) and len(samples) == 2
    (content, first), (_, second) = samples.read(0), samples.read(1)
    assert content == (tmp_path / folder / 'a.png').read_bytes() and first.size == (20, 10) and second.size is None
    assert first.rows.shape == (0, 6)
    assert second.rows.tolist() == [[1, 2, 4.5, 6, 1, CROWD], [0, 0, 5, 5, 0, 0]]


def changed(**changes):
    content = coco()
    for key, change in changes.items():
        content[key][0] |= change
    return content


@pytest.mark.parametrize(('content', 'words'), [
    ('{', 'train.json is no JSON'), ('[' * 100_000, 'is no JSON'), ([], 'is not as COCO has it'),
    (dict(images=[]), "is not as COCO has it.*'categories'"),
    (changed(annotations=dict(bbox=None)), 'is not as COCO has it'),
    (changed(annotations=dict(bbox=[1, 2, 3])), 'annotation 1 needs a bbox of four numbers'),
    (changed(annotations=dict(bbox=[1, 2, 3, float('inf')])), 'annotation 1 needs a bbox of four numbers'),
    (changed(annotations=dict(image_id=5)), 'annotation 1 is of image 5, which is none of its images'),
    (changed(annotations=dict(category_id=5)), 'annotation 1 is of category 5, which is none'),
    (changed(categories=dict(name='bicycle')), 'categories need ids and names of their own'),
    (changed(images=dict(id=3)), 'images need ids of their own'),
    (changed(images=dict(file_name='../a.png')), 'image ../a.png is not within the folder'),
    (changed(images=dict(file_name='/a.png')), 'image /a.png is not within the folder')])
def test_json_that_cannot_be_is_refused(tmp_path, content, words):
    write_coco(tmp_path, content)
    with pytest.raises(UserError, match=words):
        opened(tmp_path, 'train', 'coco')


def test_no_json_is_said_in_words(tmp_path):
    with pytest.raises(UserError, match='no boxes for split train: it needs annotations/instances_train.json, or'):
        opened(tmp_path, 'train', 'coco')


# ---- both -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('box', 'words'), [
    ((1, 1, 48, 40), None), ((0, 1, 48, 40), 'its box [-1.0, 0.0, 48.0, 40.0] reaches out of its 48 x 40 pixels'),
    ((1, 1, 49, 40), 'reaches out of'), ((10, 10, 9, 20), 'has no area in'), ((60, 1, 70, 9), 'has no area in')])
def test_boxes_that_training_would_cut_or_drop_are_found_beforehand(tmp_path, box, words):
    root = write_voc_boxes(tmp_path, 1, 1)
    corners = ''.join(f'<{side}>{number}</{side}>' for side, number in zip(
        ('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
    (root / 'Annotations/train_000.xml').write_text(
        f'<annotation><object><name>red</name><bndbox>{corners}</bndbox></object></annotation>')
    problem = annotation_problem(opened(root, 'train'), 0)
    assert problem is None if words is None else words in problem


def test_a_turned_image_and_a_missing_annotation_are_bad(tmp_path):
    root = write_voc_boxes(tmp_path, 3, 1)
    samples = opened(root, 'train')
    Image.fromarray(np.zeros((48, 40, 3), np.uint8)).save(root / 'JPEGImages/train_000.jpg')
    assert annotation_problem(samples, 0) == (
        'it has 40 x 48 pixels, and its boxes are for 48 x 40: is one of them turned?')
    (root / 'Annotations/train_001.xml').unlink()
    with pytest.raises(BadImage, match=r'its annotation .*train_001.xml: no such file'):
        samples.read(1)
    (root / 'JPEGImages/train_002.jpg').unlink()
    with pytest.raises(FileNotFoundError):
        samples.read(2)


def test_data_without_any_box_is_found_before_training(tmp_path):
    root = write_voc_boxes(tmp_path, 3, 1)
    check_boxes(opened(root, 'train'))
    for path in (root / 'Annotations').iterdir():
        path.write_text('<annotation/>')
    with pytest.raises(UserError, match='there is no box in the annotations of .*train_000.jpg'):
        check_boxes(opened(root, 'train'))
    (root / 'Annotations/train_001.xml').write_text('')
    check_boxes(opened(root, 'train'))  # which training says itself


def test_workers_share_what_a_json_file_says(tmp_path):
    write_coco(tmp_path, coco())
    samples = opened(tmp_path, 'train', 'coco')
    assert samples.boxes(1).rows.untyped_storage().data_ptr() == samples.rows.untyped_storage().data_ptr()
    assert torch.equal(samples.boxes(1).rows, samples.rows)
