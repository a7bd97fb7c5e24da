"""Classification as a task: its losses, labels and metrics."""

import pytest
import torch
import torch.nn.functional as F

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import find_task
from timm_rs.tasks.classification import Classification, LabelCheck, TopK, WeightedCrossEntropy


def test_the_default_task_has_no_options_of_its_own():
    assert find_task(Recipe.task) is Classification and Classification.Knobs is None  # add_task_arguments relies on it


def test_a_label_out_of_range_is_one_line():
    assert [LabelCheck(3)(label) for label in (0, 2)] == [0, 2]
    for label in (3, -1):
        with pytest.raises(UserError, match=rf'label {label}, but the model has 3 classes \(0 to 2\)'):
            LabelCheck(3)(label)


@pytest.mark.parametrize('recipe', [
    Recipe(smoothing=0.0), Recipe(smoothing=0.1), Recipe(mixup=0.2, smoothing=0.1), Recipe(bce_loss=True),
    Recipe(bce_loss=True, bce_sum=True, bce_pos_weight=2.0, smoothing=0.0), Recipe(bce_target_thresh=0.2),
    Recipe(bce_loss=True, mixup=0.2, bce_target_thresh=0.2)], ids=range(7))
def test_losses_are_those_of_the_recipe_in_float32(recipe):
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    one_hot = F.one_hot(labels, 3).float()
    smooth = one_hot * (1 - recipe.smoothing) + recipe.smoothing / 3
    if recipe.mixes_images:
        targets = wanted = 0.7 * one_hot + 0.3 * one_hot.flip(0)  # smoothed already
    else:
        targets, wanted = labels, smooth
    if recipe.bce_loss:
        if recipe.bce_target_thresh is not None:
            wanted = (wanted > recipe.bce_target_thresh).float()
        weight = None if recipe.bce_pos_weight is None else torch.tensor(recipe.bce_pos_weight)
        losses = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction='none')
        expected = losses.sum(1).mean() if recipe.bce_sum else losses.mean()
    else:
        expected = -(wanted * logits.log_softmax(1)).sum(1).mean()
    task = Classification(recipe)
    torch.testing.assert_close(task.loss(logits, targets), expected)
    half = task.loss(logits.bfloat16(), targets)
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.02)


WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_an_image_counts_by_the_weight_of_its_class_and_one_of_two_by_both(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    criterion = WeightedCrossEntropy(WEIGHTS, smoothing)

    def each(classes):
        return WEIGHTS[classes] * F.cross_entropy(logits, classes, label_smoothing=smoothing, reduction='none')
    torch.testing.assert_close(criterion(logits, labels), each(labels).mean())  # over images, not over weights
    one_hot = F.one_hot(labels, 3).float()
    torch.testing.assert_close(criterion(logits, one_hot), criterion(logits, labels))
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    torch.testing.assert_close(criterion(logits, mixed), (0.7 * each(labels) + 0.3 * each(labels.flip(0))).mean())
    soft = torch.randn(4, 3).softmax(1)
    if not smoothing:
        torch.testing.assert_close(criterion(logits, soft), -(WEIGHTS * soft * logits.log_softmax(1)).sum(1).mean())
    halves = [criterion(logits[part], labels[part]) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, criterion(logits, labels))  # as any number of processes has it


def test_smoothing_draws_no_image_to_a_rare_class():
    logits = torch.zeros(1, 2, requires_grad=True)
    WeightedCrossEntropy(torch.tensor([0.505, 50.0]), 0.1)(logits, torch.tensor([0])).backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]  # one update makes class 0 likelier


def test_metrics_count_every_label_once_and_blanks_never():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 12), torch.randint(12, (50,))
    labels[::7] = Classification.blank
    evaluator = TopK(Device('cpu'), ['top1', 'top5', 'loss'])
    for part, targets in zip(logits.split(8), labels.split(8), strict=True):
        evaluator.update(part, targets)
    kept = labels >= 0
    ranks = (logits > logits.gather(1, labels.clamp(min=0)[:, None])).sum(1)[kept]
    assert evaluator.compute() == pytest.approx(dict(
        loss=F.cross_entropy(logits[kept], labels[kept]).item(), top1=100 * (ranks < 1).float().mean().item(),
        top5=100 * (ranks < 5).float().mean().item(), num_samples=int(kept.sum())))
    with pytest.raises(UserError, match='no samples'):
        TopK(Device('cpu'), []).compute()


def test_top5_is_left_out_where_it_is_always_100():
    assert [[metric.name for metric in Classification(Recipe(num_classes=number)).metrics]
            for number in (None, 1, 5, 6)] == [['top1', 'top5', 'loss'], ['top1', 'loss'], ['top1', 'loss'],
                                               ['top1', 'top5', 'loss']]
    evaluator = Classification(Recipe(num_classes=5)).evaluator(Device('cpu'))
    evaluator.update(torch.eye(5), torch.arange(5))
    assert evaluator.compute().keys() == {'loss', 'top1', 'num_samples'}
