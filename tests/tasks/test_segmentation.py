"""Segmentation as a task: loss, mIoU, what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from annotated_trees import write_voc

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.tasks.segmentation import MeanIoU
from timm_rs.transforms.joint import OUTSIDE

VOID, CLASSES = 255, 6


def random_case(absent=(), void=0.2):
    """Logits (10, 6, 16, 16) that are half right, and targets; classes `absent` occur in neither."""
    rng = np.random.default_rng(len(absent))
    present = [label for label in range(CLASSES) if label not in absent]
    targets = rng.choice(present, (10, 16, 16))
    said = np.where(rng.random(targets.shape) < 0.5, targets, rng.choice(present, targets.shape))
    targets[rng.random(targets.shape) < void] = VOID
    logits = 5 * F.one_hot(torch.from_numpy(said), CLASSES).permute(0, 3, 1, 2).float()
    return logits + torch.rand(logits.shape), torch.from_numpy(targets).short(), said


def evaluated(logits, targets, batch=4):
    evaluator = MeanIoU(Device('cpu'))
    for some, theirs in zip(logits.split(batch), targets.split(batch), strict=True):
        evaluator.update(some, theirs)
    return evaluator.compute()


@pytest.mark.parametrize('absent', [(), (3,), (0, 5)])
def test_miou_is_scikit_learns_over_the_whole_set(absent):
    from sklearn.metrics import jaccard_score
    logits, targets, said = random_case(absent)
    counts = targets.numpy() != VOID
    expected = 100 * jaccard_score(targets.numpy()[counts], said[counts], average='macro')
    found = evaluated(logits, targets)
    assert found['miou'] == pytest.approx(expected) and found['num_samples'] == 10
    assert found['miou'] == evaluated(logits, targets, batch=1)['miou']


def test_bands_of_rows_give_what_all_rows_give(monkeypatch):
    logits, targets, _ = random_case()
    targets[:, 12:] = OUTSIDE
    whole = evaluated(logits, targets)
    monkeypatch.setattr('timm_rs.tasks.segmentation.LARGEST', 5 * 4 * 16 * CLASSES)  # bands of 5 rows and the rest
    assert evaluated(logits, targets) == pytest.approx(whole)


@pytest.mark.parametrize('absent', [(), (3,), (0, 5)])
def test_miou_is_torchmetrics(absent):
    from torchmetrics.classification import MulticlassJaccardIndex
    logits, targets, said = random_case(absent)
    metric = MulticlassJaccardIndex(CLASSES, ignore_index=VOID)
    expected = metric(torch.from_numpy(said), targets.long())
    assert evaluated(logits, targets)['miou'] == pytest.approx(100 * expected.item())


def test_void_padding_and_blanks_count_neither_in_the_loss_nor_in_the_matrix():
    logits, targets, _ = random_case()
    task = create_task(Recipe(task='segmentation'))
    changed = torch.where((targets == VOID)[:, None], logits.flip(1), logits)  # another answer there
    assert torch.equal(task.loss(changed, targets), task.loss(logits, targets))
    assert evaluated(changed, targets) == evaluated(logits, targets)
    assert task.loss(logits, targets).item() == pytest.approx(
        F.cross_entropy(logits, targets.long(), ignore_index=VOID).item(), rel=1e-5)
    blank = torch.full_like(targets[:3], OUTSIDE)
    more = torch.cat([logits, torch.randn(3, CLASSES, 16, 16)]), torch.cat([targets, blank])
    assert evaluated(*more) == pytest.approx(evaluated(logits, targets))
    only_void = task.loss(logits.requires_grad_(), torch.full_like(targets, VOID))
    only_void.backward()
    assert only_void.item() == 0 and not logits.grad.any()
    with pytest.raises(UserError, match='no image has a pixel whose label counts'):
        evaluated(logits, torch.full_like(targets, OUTSIDE))


def test_half_precision_is_summed_in_float32():
    logits, targets, _ = random_case()
    loss = create_task(Recipe(task='segmentation')).loss(logits.bfloat16(), targets)
    assert loss.dtype is torch.float32


@pytest.mark.parametrize(('knobs', 'words'), [
    (dict(mixup=0.2), 'mixup would change nothing in task segmentation'),
    (dict(aa='rand-m9', reprob=0.5), 'aa, reprob would change nothing'),
    (dict(loader='timm'), 'loader would change nothing'),
    (dict(eval_metric='top5'), "eval_metric must be one of 'miou', 'loss', got 'top5'"),
    (dict(task_knobs=dict(segmentation=dict(decoder='unet'))), 'decoder must be one of'),
    (dict(task_knobs=dict(segmentation=dict(scale_jitter=[2.0, 0.5]))), 'scale_jitter must be a range'),
    (dict(task_knobs=dict(segmentation=dict(eval_at='network'))), 'eval_at network .* give --img-size')])
def test_what_it_does_not_have_is_refused(knobs, words):
    with pytest.raises(UserError, match=words):
        create_task(Recipe(task='segmentation', **knobs))


def test_a_number_at_the_networks_size_is_named_so():
    at = dict(task='segmentation', img_size=48, task_knobs=dict(segmentation=dict(eval_at='network')))
    task = create_task(Recipe(**at))
    assert task.metrics[0].name == task.best_by.name == 'miou@48'
    assert task.evaluator(Device('cpu')).name == 'miou@48'
    assert create_task(Recipe(**at, eval_metric='loss')).best_by.name == 'loss'


@pytest.mark.parametrize(('knobs', 'side'), [({}, 48), (dict(label_size=60), 60), (dict(eval_at='network'), 32)])
def test_targets_of_evaluation_are_as_large_as_labels_need(tmp_path, knobs, side):
    recipe = Recipe(task='segmentation', data_dir=str(write_voc(tmp_path / 'voc', 2, 2)), img_size=32,
                    task_knobs=dict(segmentation=knobs))
    task = create_task(recipe)
    task.create_datasets(recipe)
    config = dict(input_size=(3, 32, 32), mean=(0.5,) * 3)
    assert task.create_transform(recipe, config, is_training=False).blank().shape == (side, side)
    assert task.create_transform(recipe, config, is_training=True).blank().shape == (32, 32)


@pytest.mark.parametrize(('change', 'words'), [
    (lambda root: dict(num_classes=5), 'num_classes is 5, but the data has 3 classes'),
    (lambda root: dict(train_split='val'), '5 images are in both splits, val and validation, such as .*val_000.jpg'),
    (lambda root: dict(train_split='train-minival'), 'minival is drawn by classes of images'),
    (lambda root: (root / 'classes.txt').write_text('\n'.join(map(str, range(256)))) and {}, '256 classes do not fit')])
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, change, words):
    root = write_voc(tmp_path / 'voc')
    recipe = Recipe(task='segmentation', data_dir=str(root), **change(root))
    with pytest.raises(UserError, match=words):
        create_task(recipe).create_datasets(recipe)


def test_evaluation_wants_the_classes_of_the_checkpoint(tmp_path):
    recipe = Recipe(task='segmentation', data_dir=str(write_voc(tmp_path / 'voc')))
    task = create_task(recipe)
    known = dict(ground=0, red=1, green=2)
    assert task.create_datasets(recipe, need_training=False, known=known, source='X')[2] == 3
    with pytest.raises(UserError, match='not in the order of X: green was class 1 and is 2'):
        task.create_datasets(recipe, need_training=False, known=dict(ground=0, green=1, red=2), source='X')
