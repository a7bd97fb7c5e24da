"""Any number of classes per image: targets, losses, mean average precision."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from tagged_data import write_tagged
from timm.loss import AsymmetricLossMultiLabel

from timm_rs.data.loader import create_eval_loader, create_train_loader
from timm_rs.data.mixing import SoftMixup
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.tasks.multilabel import as_target, average_precisions

CONFIG = dict(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bilinear', crop_pct=1.0,
              crop_mode='center')


def recipe_of(**values):
    knobs = dict(multilabel=values.pop('knobs', {}))
    return Recipe(task='multilabel', task_knobs=knobs, workers=0, batch_size=4, **values)


def random_answers(num_images=200, num_classes=7, levels=5):
    """Logits of few `levels`, so with ties, and truths; the last class is nowhere."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-levels, levels, (num_images, num_classes), generator=generator) / 3
    truth = (torch.rand(num_images, num_classes, generator=generator) < torch.linspace(0.6, 0, num_classes)).float()
    return logits, truth


@pytest.mark.parametrize('levels', [1, 5, 10 ** 6], ids=['two values', 'ties', 'all apart'])
def test_average_precision_is_scikit_learns(levels):
    logits, truth = random_answers(levels=levels)
    found = average_precisions(logits.numpy(), truth.numpy() > 0)
    assert np.isnan(found[-1]) and not np.isnan(found[:-1]).any()
    wanted = [average_precision_score(truth[:, index], logits[:, index]) for index in range(6)]
    assert found[:-1] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_metrics_are_scikit_learns_for_any_number_of_processes(processes, monkeypatch):
    logits, truth = random_answers()
    targets = truth.clone()
    targets[::9] = -1  # padding, or what could not be read
    shares = []
    for rank in range(processes):
        device = Device('cpu')
        evaluator = create_task(recipe_of()).evaluator(device)
        for batch in torch.arange(rank, 200, processes).split(8):
            evaluator.update(logits[batch], targets[batch])
        shares.append(torch.cat(evaluator.batches, 1).numpy())
    monkeypatch.setattr(Device, 'num_summed', processes)
    device.gather = lambda own: shares if (own[0] == shares[-1]).all() else []
    found = evaluator.compute()
    kept = targets[:, 0] >= 0
    precisions = [average_precision_score(truth[kept, index], logits[kept, index]) for index in range(6)]
    assert found.pop('map') == pytest.approx(100 * np.mean(precisions), abs=1e-9)  # without the class that is nowhere
    assert found.pop('f1') == pytest.approx(
        100 * f1_score(truth[kept], logits[kept] >= 0, average='micro', zero_division=0), abs=1e-9)
    loss = F.binary_cross_entropy_with_logits(logits[kept].double(), truth[kept].double())
    assert found == dict(loss=pytest.approx(loss.item()), num_samples=int(kept.sum()))


@pytest.mark.parametrize(('value', 'words'), [(-1.0, 'gave no samples'), (0.0, 'no image .* has a tag')])
def test_nothing_to_measure_is_one_line(value, words):
    evaluator = create_task(recipe_of()).evaluator(Device('cpu'))
    evaluator.update(torch.zeros(2, 3), torch.full((2, 3), value))
    with pytest.raises(UserError, match=words):
        evaluator.compute()


@pytest.mark.parametrize(('labels', 'target'), [((), [0, 0, 0]), ((0, 2), [1, 0, 1]), (0, [1, 0, 0])])
def test_tags_become_ones(labels, target):
    assert torch.equal(as_target(labels, 3), torch.tensor(target, dtype=torch.float32))


def test_a_tag_without_an_output_is_refused():
    with pytest.raises(UserError, match='label 3, but the model has 3 classes'):
        as_target((1, 3), 3)


LOGITS, TARGETS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
LOSSES = {
    'bce': (dict(), lambda: F.binary_cross_entropy_with_logits(LOGITS, 0.9 * TARGETS + 0.05)),
    'plain': (dict(smoothing=0.0), lambda: F.binary_cross_entropy_with_logits(LOGITS, TARGETS)),
    'sum': (dict(smoothing=0.0, bce_sum=True), lambda: 3 * F.binary_cross_entropy_with_logits(LOGITS, TARGETS)),
    'positive': (dict(smoothing=0.0, bce_pos_weight=4.0), lambda: F.binary_cross_entropy_with_logits(
        LOGITS, TARGETS, pos_weight=torch.tensor(4.0))),
    'asymmetric': (dict(smoothing=0.0, knobs=dict(loss='asymmetric')),
                   lambda: AsymmetricLossMultiLabel(reduction='sum')(LOGITS, TARGETS) / 6),
}


@pytest.mark.parametrize('name', LOSSES)
def test_losses_are_means_over_images_and_classes(name):
    values, wanted = LOSSES[name]
    assert create_task(recipe_of(**values)).loss(LOGITS, TARGETS) == pytest.approx(wanted().item())


@pytest.mark.parametrize(('values', 'words'), [
    (dict(class_weights='auto'), 'class_weights is for samples of one class each'),
    (dict(balanced_sampling=True), 'balanced_sampling is for samples of one class each'),
    (dict(class_map='a.txt', loader='timm'), 'class_map, loader would change nothing'),
    (dict(pseudo_dir='labels'), 'pseudo_dir would change nothing'),
    (dict(knobs=dict(loss='asymmetric'), bce_pos_weight=2.0), 'the asymmetric loss has none of the bce_… knobs'),
    (dict(knobs=dict(loss='focal')), "loss must be one of 'bce', 'asymmetric'"),
    (dict(eval_metric='top5'), "eval_metric must be one of 'map', 'f1', 'loss'")])
def test_recipes_that_cannot_be_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        create_task(recipe_of(**values))


def edited(root, name, old, new):
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(('change', 'values', 'words'), [
    (lambda root: edited(root, 'validation.csv', 'green', 'white'), {}, 'validation has classes that training lacks: '
                                                                       'white'),
    (lambda root: edited(root, 'validation.csv', '0.png', '../train/0.png'), {}, 'is not within'),
    (lambda root: edited(root, 'validation.csv', '\n0.png', '\ntrain/0.png'), {}, '1 images are in both splits, train '
                                                                                'and validation, such as'),
    (lambda root: (root / 'train.csv').write_text('file,tags\n0.png,\n'), {}, 'no image of the split train has a tag'),
    (lambda root: (root / 'validation.csv').write_text('file,tags\n0.png,\n'), {},
     'no image of the split validation has a tag'),
    (None, dict(val_split='minival'), 'minival is drawn by classes of images, which task multilabel does not have'),
    (None, dict(dataset='hfds/cats'), 'dataset hfds/cats is no layout of this task: take tags'),
    (None, dict(num_classes=4), 'num_classes is 4, but the data has 3 classes'),
    (None, dict(mixup=0.2, batch_size=3), 'an even batch_size')])
def test_data_that_cannot_be_is_refused(change, values, words, tmp_path):
    root = write_tagged(tmp_path / 'data')
    if change:
        change(root)
    recipe = dataclasses.replace(recipe_of(data_dir=str(root)), **values)
    task = create_task(recipe)
    with pytest.raises(UserError, match=words):
        train, _, number = task.create_datasets(recipe)
        create_train_loader(train, recipe, CONFIG, task, number, Device('cpu'))


def test_counts_and_classes_without_a_validation_image_are_told(tmp_path):
    root = write_tagged(tmp_path / 'data')
    (root / 'classes.txt').write_text('red\nviolet\ngreen\nblue\n')
    edited(root, 'validation.csv', 'red', '')
    recipe = recipe_of(data_dir=str(root))
    task = create_task(recipe)
    train, _, number = task.create_datasets(recipe)
    counts, absent, unseen = task.describe(train, number)
    without = sum(not tags for tags in train.targets())
    assert without and counts.startswith(
        f'16 training images of 4 classes, {without} of them of none: from 0 of violet')
    assert absent == 'warning: no training image is of class violet: the model cannot learn it'
    assert unseen == 'no validation image is of class red, violet: left out of the mAP'
    assert task.results(dict(map=1.0, f1=2.0, loss=3.0))['classes_without_images'] == ['red', 'violet']


def test_batches_have_targets_of_all_classes_and_blanks_where_an_image_is_bad(tmp_path):
    root = write_tagged(tmp_path / 'data')
    (root / 'validation/2.png').write_bytes(b'')
    recipe = recipe_of(data_dir=str(root), hflip=0.0)
    task, device = create_task(recipe), Device('cpu')
    _, validation, number = task.create_datasets(recipe)
    loader = create_eval_loader(validation, recipe, CONFIG, task, number, device)
    targets = torch.cat([targets for _, targets in loader])
    assert targets.shape == (7, 3) and targets.dtype == torch.float32 and (targets[2] == -1).all()
    for target, tags in zip(targets[3:].tolist(), validation.targets()[3:], strict=True):
        assert [index for index, value in enumerate(target) if value] == list(tags)
    assert task.caption(targets[0], ['blue', 'green', 'red']) == 'red'
    assert task.caption(torch.zeros(3), ['blue', 'green', 'red']) == 'no tag'


def test_mixed_images_have_the_tags_of_both_in_their_shares(tmp_path):
    recipe = recipe_of(data_dir=str(write_tagged(tmp_path / 'data')), mixup=1.0, no_aug=True)
    task, device = create_task(recipe), Device('cpu')
    train, _, number = task.create_datasets(recipe)
    batches = []
    for values in ({}, dict(mixup=0.0)):
        torch.manual_seed(0)
        loader = create_train_loader(train, dataclasses.replace(recipe, **values), CONFIG, task, number, device)
        np.random.seed(0)
        batches.append(next(iter(loader)))
    assert isinstance(create_train_loader(train, recipe, CONFIG, task, number, device).mix, SoftMixup)
    (images, mixed), (plain, targets) = batches
    # The share that images have kept is that of their tags.
    share = ((images - plain.flip(0)) / (plain - plain.flip(0))).nanmedian()
    assert 0.01 < share < 0.99 and torch.allclose(mixed, share * targets + (1 - share) * targets.flip(0), atol=1e-4)
