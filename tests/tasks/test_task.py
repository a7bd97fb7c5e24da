"""A task of somebody else's, in a file of its own, goes through the whole program."""

import csv
import json

import pytest
import torch
from conftest import TINY
from forks import check_killed_and_resumed

from timm_rs.data.loader import create_eval_loader
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.publish.card import model_card
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks import create_task
from timm_rs.training.trained import read_run

ARGUMENTS = [*TINY, '--task', 'regression:Regression', '--step', '0.5', '--lr', '0.01', '--recovery-interval', '1',
             '--model-ema', '--model-ema-decay', '0.5']


@pytest.fixture
def data(image_folder):
    (image_folder / 'validation/cat/0.jpg').write_bytes(b'')  # its target is blank
    return ['--data-dir', str(image_folder)]


@pytest.mark.slow
def test_it_trains_is_killed_resumes_to_the_bit_and_evaluates(run, data, tmp_path):
    folder = tmp_path / 'runs'
    whole = run(*ARGUMENTS, *data, '--experiment', 'whole')
    assert whole.code == 0, whole.err
    said = check_killed_and_resumed(run, [*ARGUMENTS, *data], folder / 'whole', folder / 'cut')
    assert 'resuming from checkpoint' in said and 'recovery-1-1' in said

    with open(folder / 'whole/summary.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['epoch', 'train_loss', 'eval_mae', 'eval_loss', 'eval_raw_mae', 'eval_raw_loss', 'lr']
    best = min(rows, key=lambda row: float(row['eval_mae']))
    assert f'best eval_mae {float(best["eval_mae"]):.4g} in epoch {int(best["epoch"]) + 1}' in whole.out
    evaluated = run(*ARGUMENTS, *data, '--eval', folder / 'whole/model_best.pth.tar')
    assert evaluated.code == 0, evaluated.err
    assert f'mean absolute error {float(best["eval_mae"]):.4f} m  squared error ' in evaluated.out
    assert '14 images' in evaluated.out  # all but the bad one
    results = json.loads((folder / 'whole/model_best.eval.json').read_text())
    assert results['mae'] == pytest.approx(float(best['eval_mae'])) and 'top1' not in results

    trained = read_run(folder / 'whole', trusted=True)
    assert trained.metrics == {name: results[name] for name in ('mae', 'loss')} and trained.images == 14
    loader = create_eval_loader(trained.task.create_datasets(trained.recipe)[1], trained.recipe, trained.data_config,
                                trained.task, 1, Device('cpu'))
    with torch.inference_mode():
        errors = torch.cat([trained.model(images)[:, 0] - targets for images, targets in loader])
    assert errors.abs().nanmean() == pytest.approx(results['mae'], rel=1e-5)
    card = model_card(trained, 'ada/heights', 'apache-2.0', 'heights', 'resnetrs', 'timm_rs')
    assert '| mean absolute error (m) | squared error |' in card and 'softmax' not in card
    assert read_file(folder / 'whole/args.yaml')['task_knobs'] == {'regression': {'step': 0.5}}


def test_its_knobs_stand_under_its_name_on_the_command_line_in_help_and_in_the_listing(run, tmp_path):
    recipe = tmp_path / 'my.yaml'
    recipe.write_text('timm_rs:\n  task: regression:Regression\n  regression:\n    step: 0.25\n')
    assert 'step: 0.25                                      # ' + str(recipe) in run('--recipe', recipe, '--show').out
    shown = run('--recipe', recipe, '--step', '2', '--show').out
    assert '\n  regression:\n    step: 2.0    ' in shown and '# command line' in shown
    assert '\n    step: 1.0    ' in run('--task', 'regression:Regression', '--show').out
    assert '--step FLOAT' in run('--recipe', recipe, '--help').out
    assert '--step' not in run('--help').out


@pytest.mark.parametrize(('block', 'words'), [
    ('task: regression:Regression\n  regression: {steps: 1}', 'unknown key steps. Did you mean step?'),
    ('task: regression:Regression\n  regression: {step: -1}', 'step must be at least 0, got -1'),
    ('regression: {step: 1}', 'regression has knobs of another task: this one is classification'),
    ('task: regressoin', 'there is no task regressoin'), ('task: regression:Regressoin', 'there is no task'),
    ('task: ../x', 'there is no task'), ('task: ""', 'there is no task')])
def test_what_it_does_not_have_is_refused_in_a_line(run, tmp_path, block, words):
    (tmp_path / 'my.yaml').write_text(f'timm_rs:\n  {block}\n')
    result = run('--recipe', tmp_path / 'my.yaml', '--data-dir', tmp_path)
    *said, error = result.err.splitlines()
    assert result.code == 2 and words in error, result.err
    assert said == ([f'{tmp_path}/my.yaml imports regression'] if 'regression: {' in block and ':R' in block else [])


def test_metrics_and_mixing_of_another_task_are_refused():
    with pytest.raises(UserError, match="eval_metric must be one of 'mae', 'loss', got 'top5'"):
        create_task(Recipe(task='regression:Regression', eval_metric='top5'))
    task = create_task(Recipe(task='regression:Regression', mixup=0.2))
    with pytest.raises(UserError, match='mixup and cutmix mix classes'):
        task.create_mixing(Recipe(mixup=0.2), 1)


@pytest.mark.parametrize('task', ['regression:Regression', 'segmentation', 'detection'])
@pytest.mark.parametrize('given', [dict(class_weights='auto'), dict(balanced_sampling=True)])
def test_what_is_for_classes_is_refused_where_samples_have_none(task, given):
    with pytest.raises(UserError, match=rf'^{next(iter(given))} is for samples of one class each, which task'):
        create_task(Recipe(task=task, **given))
