"""Detection as a task: targets, evaluation, what it refuses, pictures."""

import numpy as np
import pytest
import torch
from annotated_trees import write_voc_boxes
from PIL import Image

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.models.dense_network import create_dense_network
from timm_rs.models.resnet_rs import ResNetRS
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.tasks.detection import Detections, checked, trained_on
from timm_rs.transforms.boxes import AREA, BLANK, CROWD, DIFFICULT, NO_BOX, Boxes, rows_of

BOXES = [[0, 0, 10, 10, 0, 0], [20, 0, 30, 10, 1, DIFFICULT], [0, 20, 40, 40, 1, CROWD], [40, 40, 60, 60, 1, 0]]


def target(rows, most=6, width=64, height=64):
    return rows_of([*rows, *[[NO_BOX] * 6] * (most - len(rows)), [0, 0, width, height, AREA, AREA]])


def found(rows, scores):
    rows = rows_of(rows)
    return dict(boxes=rows[:, :4], labels=rows[:, 4].long(), scores=torch.tensor(scores))


def evaluated(outputs, targets, device=None):
    evaluator = Detections(device or Device('cpu'))
    for output, rows in zip(outputs, targets, strict=True):
        evaluator.update([output], rows[None])
    return evaluator.compute()


def test_difficult_boxes_are_trained_on_crowds_and_padding_are_not():
    boxes = trained_on(target(BOXES))
    assert boxes['boxes'].tolist() == [row[:4] for row in BOXES if row[5] != CROWD]
    assert boxes['labels'].tolist() == [0, 1, 1] and boxes['labels'].dtype is torch.int64
    assert trained_on(target([]))['boxes'].shape == (0, 4)
    assert trained_on(torch.full((6, 6), float(BLANK)))['boxes'].shape == (0, 4)


def test_in_evaluation_difficult_boxes_and_crowds_are_set_aside():
    output = found(BOXES, [0.6, 0.9, 0.8, 0.7])
    perfect = dict.fromkeys(('ap', 'ap50', 'ap75', 'ap50_voc07'), pytest.approx(100)) | dict(num_samples=1)
    assert evaluated([output], [target(BOXES)]) == perfect
    missed = {key: value[[0, 3]] for key, value in output.items()}
    assert evaluated([missed], [target(BOXES)]) == perfect
    half = evaluated([{key: value[[0]] for key, value in output.items()}], [target(BOXES)])
    assert half['ap50'] == half['ap50_voc07'] == pytest.approx(50)


def test_blanks_do_not_count_and_images_without_boxes_do():
    output, nothing = found(BOXES[:1], [0.6]), found([], [])
    blank = torch.full((6, 6), float(BLANK))
    alone = evaluated([output], [target(BOXES[:1])])
    assert evaluated([output, output], [target(BOXES[:1]), blank]) == alone
    with_error = evaluated([output, found(BOXES[:1], [0.9])], [target(BOXES[:1]), target([])])
    assert with_error['num_samples'] == 2 and with_error['ap50_voc07'] == pytest.approx(50)
    with pytest.raises(UserError, match='gave no samples'):
        evaluated([output], [blank])
    with pytest.raises(UserError, match='no image of the validation set has a box that counts'):
        evaluated([output, nothing], [target([]), target(BOXES[1:3])])


def test_boxes_end_where_the_image_does():
    truth = target([[0, 0, 20, 30, 0, 0], [30, 0, 60, 30, 1, 0]], width=60, height=30)
    beyond = found([[0, 0, 20, 64, 0, 0], [30, 0, 64, 64, 1, 0], [0, 31, 64, 64, 0, 0]], [0.7, 0.8, 0.9])
    assert evaluated([beyond], [truth]) == dict.fromkeys(
        ('ap', 'ap50', 'ap75', 'ap50_voc07'), pytest.approx(100)) | dict(num_samples=1)


def test_all_processes_boxes_are_judged_by_one_and_one_without_any_is_no_harm():
    class OfTwo(Device):
        """The first of two processes, whose other has `theirs`."""
        def gather(self, items):
            return [*items, *self.theirs]

        def on_primary(self, function):
            self.asked = self.asked + 1
            return function()
    device, other = OfTwo('cpu'), Detections(Device('cpu'))
    device.asked = 0
    other.update([found(BOXES[3:], [0.9])], target(BOXES[3:])[None])
    device.theirs = other.images
    both = evaluated([found([], [])], [target(BOXES[:1])], device)
    assert device.asked == 1 and both['num_samples'] == 2 and both['ap50'] == pytest.approx(50)
    device.theirs = []
    assert evaluated([found([], [])], [target(BOXES[:1])], device)['ap75'] == 0


def test_the_loss_is_the_sum_of_the_networks_own_in_float32():
    loss = create_task(Recipe(task='detection')).loss(
        dict(a=torch.tensor(1.5, dtype=torch.bfloat16), b=torch.tensor(2.0)), torch.zeros(1))
    assert loss.item() == 3.5 and loss.dtype is torch.float32


def test_labels_beyond_the_network_are_refused():
    boxes = Boxes(rows_of(BOXES))
    assert checked(boxes, 2) is boxes and checked(Boxes(rows_of([])), 1)
    with pytest.raises(UserError, match='label 1, but the model has 1 classes'):
        checked(boxes, 1)


@pytest.mark.parametrize(('knobs', 'words'), [
    (dict(device='xla'), 'does not go with device xla: its boxes make shapes that differ from step to step'),
    (dict(torchcompile='inductor'), 'does not go with torchcompile'),
    (dict(mixup=0.2), 'mixup would change nothing in task detection'),
    (dict(eval_metric='map'), "eval_metric must be one of 'ap50', 'ap', 'ap75', 'ap50_voc07', got 'map'"),
    (dict(task_knobs=dict(detection=dict(detector='yolo'))), 'detector must be one of'),
    (dict(task_knobs=dict(detection=dict(finest=5))), 'finest must be 4, 8, 16, or 0'),
    (dict(task_knobs=dict(detection=dict(scale_jitter=[2.0, 0.5]))), 'scale_jitter must be a range')])
def test_what_it_does_not_have_is_refused(knobs, words):
    with pytest.raises(UserError, match=words):
        create_task(Recipe(task='detection', **knobs))


def test_sizes_at_which_anchors_would_lie_elsewhere_are_refused():
    recipe = Recipe(task='detection')
    config = dict(input_size=(3, 100, 100), mean=(0.5,) * 3)
    with pytest.raises(UserError, match='multiples of 32 pixels, got 100 x 100: give --img-size 96'):
        create_task(recipe).create_transform(recipe, config, is_training=True)


@pytest.mark.parametrize(('change', 'words'), [
    (lambda root, patch: dict(num_classes=5), 'num_classes is 5, but the data has 2 classes'),
    (lambda root, patch: dict(train_split='val'), '2 images are in both splits'),
    (lambda root, patch: dict(train_split='train-minival'), 'minival is drawn by classes of images'),
    (lambda root, patch: dict(dataset='torch/timm_rs/voc'), 'no layout of this task: take voc_boxes, coco'),
    (lambda root, patch: patch.setattr('importlib.util.find_spec', lambda name: None) or {},
     r'takes the package faster-coco-eval: pip install .*timm_rs\[transfer\]')])
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, monkeypatch, change, words):
    root = write_voc_boxes(tmp_path / 'v', 3, 2)
    recipe = Recipe(task='detection', data_dir=str(root), val_split='val')
    for name, value in change(root, monkeypatch).items():
        setattr(recipe, name, value)
    with pytest.raises(UserError, match=words):
        create_task(recipe).create_datasets(recipe)


def test_splits_with_classes_of_their_own_are_refused(tmp_path):
    for year, names in ((2007, 'red\ngreen'), (2012, 'green\nred')):
        (write_voc_boxes(tmp_path / f'VOC{year}', 3, 2) / 'classes.txt').write_text(names)
    recipe = Recipe(task='detection', data_dir=str(tmp_path), train_split='2007_train', val_split='2012_val')
    with pytest.raises(UserError, match='different classes: red, green and green, red'):
        create_task(recipe).create_datasets(recipe)


def test_the_backbone_starts_from_a_classifier_and_from_networks_of_other_tasks():
    tiny = dict(layers=(1, 1, 1, 1), width=0.125)
    task = create_task(Recipe(task='detection', task_knobs=dict(detection=dict(
        pyramid_channels=8, head_channels=8))))
    model, other = (task.create_model(3, model_name='resnetrs', **tiny) for _ in range(2))
    dense = create_dense_network('resnetrs', 3, 'fused', 8, 1, **tiny)
    for start, rest in ((ResNetRS(**tiny), 'fc.'), (dense, 'head.'), (other, 'detector.')):
        part, weights, left_out = task.initial(model, start.state_dict())
        assert part is model.backbone and weights.keys() == part.state_dict().keys()
        part.load_state_dict(weights)
        assert any(name.startswith(rest) for name in left_out)
        assert not any(name.startswith('layer') for name in left_out)


def test_boxes_are_drawn_on_the_objects_at_the_images_own_size():
    task = create_task(Recipe(task='detection'))
    pixels = np.full((100, 200, 3), 90, np.uint8)
    outputs = [found([[8, 8, 24, 24, 1, 0], [32, 10, 70, 33, 0, 0], [0, 0, 9, 9, 0, 0], [0, 33, 9, 60, 0, 0]],
                     [0.934, 0.61, 0.3, 0.99])]
    picture, words = task.picture(outputs, (64, 64), pixels, ['cat', 'dog'])
    assert words == 'dog 93 %, cat 61 %' and picture.shape == pixels.shape
    changed = (picture != pixels).any(2)
    down, across = np.nonzero(changed[:, :90])
    assert changed[25:74, 25].all() and changed[25:74, 74].all() and not changed[40:60, 30:70].any()  # 25 to 75
    assert down.max() == 74 and across.min() == 25 and changed[50, 199:].all()  # the other is cut at the edge
    assert (picture[50, 25] != picture[50, 199]).any()
    assert not changed[:5, :10].any() and not changed[90:, :30].any()  # the last is in the padding
    image, words = task.picture([found([], [])], (64, 64), pixels, None)
    assert (image == pixels).all() and words == 'no box of 50 % or more'
    assert Image.fromarray(picture).size == (200, 100)
