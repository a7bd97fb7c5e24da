"""Images with masks: the trees they lie in, what masks mean, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_trees import save_mask, write_voc
from PIL import Image
from torchvision.datasets import VOCSegmentation

from timm_rs.data.annotated import VOC_CLASSES, Annotation, check_masks, open_annotated, read_depth, read_mask
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.decode import BadImage

LAYOUTS = ('voc', 'ade20k', 'folders')


def opened(root, split, layout='voc'):
    return open_annotated(Recipe(data_dir=str(root), dataset=f'torch/timm_rs/{layout}'), split, LAYOUTS)


def mask_of(samples, index, num_classes=3):
    return read_mask(samples.read(index)[1], num_classes)


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / 'VOCdevkit/VOC2012', num_train=6, num_val=2)


def test_torchvisions_reader_of_voc_and_ours_read_the_tree_alike(voc, tmp_path):
    for split in ('train', 'val'):
        theirs, ours = VOCSegmentation(str(tmp_path), image_set=split), opened(tmp_path, split)
        assert len(theirs) == len(ours) == len(opened(voc, split)) > 1
        for index, (_, mask) in enumerate(theirs):
            assert ours.read(index)[0] == Path(theirs.images[index]).read_bytes()
            assert np.array_equal(mask_of(ours, index), np.array(mask))
            assert ours.name(index) == theirs.images[index]


def test_voc_has_lists_of_any_name_classes_of_ones_own_and_masks_of_sbd(voc):
    assert opened(voc, 'train').classes == dict(ground=0, red=1, green=2)
    (voc / 'classes.txt').unlink()
    assert list(opened(voc, 'train').classes) == list(VOC_CLASSES) and len(VOC_CLASSES) == 21
    (voc / 'SegmentationClassAug').mkdir()
    (voc / 'SegmentationClass/train_001.png').rename(voc / 'SegmentationClassAug/train_001.png')
    lists = voc / 'ImageSets/Segmentation'
    (lists / 'train_aug.txt').write_text('train_001\n\n')
    (lists / 'paths.txt').write_text('/JPEGImages/train_001.jpg /SegmentationClassAug/train_001.png\n')
    masks = [mask_of(opened(voc, split), 0) for split in ('train_aug', 'paths')] + [mask_of(opened(voc, 'train'), 1)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert len(opened(voc, 'validation')) == 2  # as recipes call it


def test_the_longest_side_is_that_of_the_labels_that_can_be_opened(voc):
    assert opened(voc, 'train').longest_side() == 48
    save_mask(np.zeros((3, 99), np.uint8), voc / 'SegmentationClass/train_001.png')
    (voc / 'SegmentationClass/train_002.png').write_bytes(b'')
    (voc / 'SegmentationClass/train_003.png').unlink()
    assert opened(voc, 'train').longest_side() == 99


def write_folders(root, images, annotations):
    for split, folder in (('training', 'training'), ('validation', 'validation')):
        for kind in (images, annotations):
            (root / kind / folder).mkdir(parents=True)
        Image.new('RGB', (3, 2)).save(root / images / folder / 'a.jpg')
        save_mask(np.array([[0, 1, 150], [2, 0, 0]], np.uint8) if split == 'training' else
                  np.array([[0, 0, 1], [1, 0, 255]], np.uint8), root / annotations / folder / 'a.png')
    return root


def test_ade20ks_labels_are_shifted_once_in_both_splits(tmp_path):
    root = write_folders(tmp_path / 'ADEChallengeData2016', 'images', 'annotations')
    training, validation = (opened(tmp_path, split, 'ade20k') for split in ('train', 'validation'))
    assert mask_of(training, 0, 150).tolist() == [[255, 0, 149], [1, 255, 255]]
    with pytest.raises(BadImage, match='has label 255, but the classes are 1 to 150'):
        mask_of(validation, 0, 150)
    assert len(training.classes) == 150 and training.classes['class 1'] == 0
    (root / 'objectInfo150.txt').write_text(
        'Idx\tRatio\tTrain\tVal\tName\n' + ''.join(f'{n}\t0.1\t1\t1\tthing {n}, x\n' for n in range(1, 151)))
    assert opened(tmp_path, 'train', 'ade20k').classes['thing 150, x'] == 149


def test_folders_of_images_and_masks(tmp_path):
    write_folders(tmp_path, 'images', 'masks')
    found = opened(tmp_path, 'validation', 'folders')
    assert mask_of(found, 0, 2).tolist() == [[0, 0, 1], [1, 0, 255]] and found.classes == {}
    Image.new('RGB', (3, 2)).save(tmp_path / 'images/validation/a.png')
    with pytest.raises(UserError, match='has both a.jpg and a.png: which of them is image a'):
        opened(tmp_path, 'validation', 'folders')


@pytest.mark.parametrize(('image', 'words'), [
    (Image.new('RGB', (4, 4)), 'm.png has colours'), (Image.fromarray(np.full((4, 4), 7, np.uint8)), 'label 7, but the '
     'classes are 0 to 2'), (Image.fromarray(np.full((4, 4), 300, np.uint16)), 'label 300'), (None, 'not an image')])
def test_a_mask_that_cannot_be_is_named(tmp_path, image, words):
    path = tmp_path / 'm.png'
    image.save(path) if image else path.write_bytes(b'nothing')
    with pytest.raises(BadImage, match=words):
        read_mask(Annotation(path.read_bytes(), str(path), False), 3)


def test_a_missing_partner_is_a_bad_sample_of_its_image(voc):
    (voc / 'SegmentationClass/train_002.png').unlink()
    with pytest.raises(BadImage, match=r'its annotation .*SegmentationClass/train_002.png: no such file'):
        opened(voc, 'train').read(2)
    (voc / 'JPEGImages/train_003.jpg').unlink()
    with pytest.raises(FileNotFoundError):
        opened(voc, 'train').read(3)


def test_objects_stored_as_void_are_found_before_training(voc):
    samples = opened(voc, 'train')
    check_masks(samples, 3)
    for path in (voc / 'SegmentationClass').glob('*.png'):  # as programs that draw in two colours do
        mask = np.array(Image.open(path))
        save_mask(np.where(mask > 0, 255, 0).astype(np.uint8), path)
    with pytest.raises(UserError, match='no more than one class in the masks of .* only 0 and 255, which is void'):
        check_masks(samples, 3)


@pytest.mark.parametrize(('split', 'layout', 'words'), [
    ('trainn', 'voc', r'has no list trainn.txt; there are train, val: give --train-split'),
    ('train', 'ade20k', 'has no split train: it needs images/train/ and annotations/train/'),
    ('train', 'vocs', r'no layout of this task: take voc, ade20k, folders. Did you mean voc\?')])
def test_a_tree_of_another_kind_is_refused(voc, split, layout, words):
    with pytest.raises(UserError, match=words):
        opened(voc, split, layout)


def test_no_data_is_said_in_words(tmp_path, voc):
    for root, words in ((tmp_path / 'nowhere', 'does not exist'), ('', 'no data: give --data-dir')):
        with pytest.raises(UserError, match=words):
            opened(root, 'train')
    (voc / 'ImageSets/Segmentation/train.txt').write_text('\n')
    with pytest.raises(UserError, match='split train in .* has no images'):
        opened(voc, 'train')
    (voc / 'classes.txt').write_text('a\nb\na\n')
    with pytest.raises(UserError, match='classes.txt names a twice'):
        opened(voc, 'val')


# ---- depth ------------------------------------------------------------------------------------------------------

def depth_of(tmp_path, numbers, suffix='png', **options):
    path = tmp_path / f'd.{suffix}'
    Image.fromarray(numbers).save(path)
    return read_depth(Annotation(path.read_bytes(), str(path), False), **options)


def test_16_bits_are_millimetres_and_fractions_metres(tmp_path):
    numbers = np.array([[0, 1500], [2500, 65535]], np.uint16)
    metres = depth_of(tmp_path, numbers)
    assert metres.dtype is torch.float32
    torch.testing.assert_close(metres, torch.tensor([[0, 1.5], [2.5, 65.535]]))
    fractions = np.array([[np.nan, 1.5], [2.5, np.inf]], np.float32)
    torch.testing.assert_close(depth_of(tmp_path, fractions, 'tiff'), torch.tensor([[0, 1.5], [2.5, 0]]))


@pytest.mark.parametrize(('numbers', 'suffix', 'words'), [
    (np.full((2, 2), 200, np.uint8), 'png', 'has 8 bits: it must be a PNG of 16 bits, in millimetres'),
    (np.full((2, 2, 3), 200, np.uint8), 'png', 'has 8 bits'),
    (np.full((2, 2), 3, np.uint16), 'png', r'has 0.003 m in the middle, not 0.1 to 20'),
    (np.full((2, 2), 2500, np.float32), 'tiff', '2500 m in the middle'),
    (np.zeros((2, 2), np.uint16), 'png', 'was measured nowhere')])
def test_a_depth_that_cannot_be_is_named(tmp_path, numbers, suffix, words):
    with pytest.raises(BadImage, match=words):
        depth_of(tmp_path, numbers, suffix)


def test_a_depth_of_another_size_than_the_crop_needs_is_bad(tmp_path):
    with pytest.raises(BadImage, match='has 3 x 2 pixels, not 640 x 480'):
        depth_of(tmp_path, np.full((2, 3), 2000, np.uint16), size=(480, 640))
