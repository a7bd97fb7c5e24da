"""Depth as a task: loss, errors, what counts."""

import numpy as np
import pytest
import torch
from annotated_trees import write_depth

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.transforms.joint import OUTSIDE


def task_with(**knobs):
    return create_task(Recipe(task='depth', task_knobs=dict(depth=knobs)))


def random_case(shape=(5, 24, 32)):
    """Logarithms (5, 1, H, W) that are about right, and metres, some not measured and some beyond 10."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.5, 12, shape).astype(np.float32)
    said = true * np.exp(rng.normal(0, 0.2, shape)).astype(np.float32)
    true[rng.random(shape) < 0.3] = 0
    return torch.from_numpy(said).log()[:, None], torch.from_numpy(true)


def numpys(outputs, targets, region=np.s_[:, :]):
    """By the definitions, image by image."""
    rows = []
    for logs, true in zip(outputs[:, 0].numpy(), targets.numpy(), strict=True):
        logs, true = logs[region], true[region]
        counts = (true > 1e-3) & (true < 10)
        said, true = np.clip(np.exp(logs[counts]), 1e-3, 10), true[counts]
        rows.append([100 * (np.maximum(said / true, true / said) < 1.25).mean(), (np.abs(said - true) / true).mean(),
                     np.sqrt(((said - true) ** 2).mean()), np.abs(np.log10(said) - np.log10(true)).mean()])
    return dict(zip(('delta1', 'abs_rel', 'rmse', 'log10'), np.mean(rows, 0), strict=True))


def evaluated(task, outputs, targets):
    evaluator = task.evaluator(Device('cpu'))
    for some, theirs in zip(outputs.split(2), targets.split(2), strict=True):
        evaluator.update(some, theirs)
    return evaluator.compute()


def test_errors_are_numpys():
    outputs, targets = random_case()
    found = evaluated(task_with(), outputs, targets)
    expected = numpys(outputs, targets)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert 50 < found['delta1'] < 90 and found['num_samples'] == 5


def test_the_eigen_crop_is_a_part_of_nyus_images():
    outputs, targets = random_case((2, 480, 640))
    inside = torch.zeros(480, 640, dtype=torch.bool)
    inside[45:471, 41:601] = True
    outputs = torch.where(inside, outputs, outputs + 3)  # one row more would show
    canvas = torch.full((2, 640, 640), float(OUTSIDE))
    canvas[:, :480] = targets
    found = evaluated(task_with(eval_crop='eigen'), outputs, canvas)
    expected = numpys(outputs, targets, np.s_[45:471, 41:601])
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found['delta1'] != pytest.approx(numpys(outputs, targets)['delta1'], rel=1e-4)


def test_what_was_not_measured_or_is_too_far_counts_nowhere():
    outputs, targets = random_case()
    task = task_with()
    out = (targets == 0) | (targets > 10)
    changed = torch.where(out[:, None], outputs + 5, outputs)
    assert torch.equal(task.loss(changed, targets), task.loss(outputs, targets))
    assert evaluated(task, changed, targets) == evaluated(task, outputs, targets)
    errors = (outputs[:, 0] - targets.log()).abs()[~out]
    assert task.loss(outputs, targets).item() == pytest.approx(errors.mean().item(), rel=1e-5)
    blanks = torch.cat([targets, torch.full_like(targets[:3], OUTSIDE), torch.zeros_like(targets[:1])])
    more = torch.cat([outputs, torch.randn(4, *outputs.shape[1:])])
    assert evaluated(task, more, blanks) == pytest.approx(evaluated(task, outputs, targets))
    nothing = task.loss(outputs.requires_grad_(), torch.zeros_like(targets))
    nothing.backward()
    assert nothing.item() == 0 and not outputs.grad.any()
    assert task.loss(outputs.bfloat16(), targets).dtype is torch.float32


@pytest.mark.parametrize(('knobs', 'words'), [
    (dict(min_depth=3.0, max_depth=2.0), 'no depth is between'),
    (dict(eval_crop='eigen', eval_at='network'), 'eval_crop eigen'),
    (dict(eval_crop='eigen', label_size=512), 'give eval_at label, and no label_size')])
def test_what_cannot_be_is_refused(knobs, words):
    with pytest.raises(UserError, match=words):
        create_task(Recipe(task='depth', img_size=64, task_knobs=dict(depth=knobs)))


def test_depth_is_one_number(tmp_path):
    recipe = Recipe(task='depth', dataset='depth_folders', data_dir=str(write_depth(tmp_path / 'd', 2, 1)))
    assert create_task(recipe).create_datasets(recipe)[2] == 1
    recipe.num_classes = 3
    with pytest.raises(UserError, match='num_classes is 3, and depth is one number'):
        create_task(recipe).create_datasets(recipe)
