import dataclasses
import shutil

import pytest

from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.scaling import runs
from timm_rs.scaling.points import Point


@pytest.fixture
def study_folder(tiny_run, tmp_path):
    """The folder of a study with one run, of two epochs, which is finished."""
    shutil.copytree(tiny_run, tmp_path / 'runs/one')
    return tmp_path


def point(folder, **changes):
    recipe = Recipe(**read_file(folder / 'runs/one/args.yaml'))
    return Point('one', dataclasses.replace(recipe, num_classes=None, **changes), 'depth', '', {})


def test_a_run_is_finished_with_its_last_epoch_and_checkpoint(study_folder):
    folder = study_folder / 'runs/one'
    assert float(runs.last_row(folder, 2)['eval_top1']) >= 0 and runs.place(folder) == (2, 0)
    assert not runs.is_finished(folder, 3) and not runs.is_finished(study_folder / 'runs/two', 2)
    (folder / 'last.pth.tar').unlink()
    assert not runs.is_finished(folder, 2)


@pytest.mark.parametrize('damage', [b'', b'epoch\n', b'\xff', b'epoch,eval_top1,train_loss,eval_loss\n1,80,nan,1\n',
                                    b'epoch,eval_top1,train_loss,eval_loss\n1,80,,1\n', b'epoch\n1\n', b'a\n1,2\n'])
def test_a_damaged_summary_or_a_loss_that_is_no_number_is_not_finished(study_folder, damage):
    (study_folder / 'runs/one/summary.csv').write_bytes(damage)
    assert not runs.is_finished(study_folder / 'runs/one', 2)


def test_a_run_that_has_not_begun_is_nowhere(tmp_path):
    assert runs.place(tmp_path) is None


def test_a_run_of_another_recipe_is_reported(study_folder):
    assert runs.problem_of(study_folder, point(study_folder)) == ''
    assert runs.problem_of(study_folder, point(study_folder, workers=3, data_dir='elsewhere')) == ''  # changes nothing
    problem = runs.problem_of(study_folder, point(study_folder, lr=0.3, smoothing=0.2))
    for part in (f'{study_folder}/runs/one was trained by another recipe', 'lr None -> 0.3', 'smoothing 0.1 -> 0.2',
                 'move the folder away to train the point anew'):
        assert part in problem
    assert runs.problem_of(study_folder, point(study_folder)._replace(name='new')) == ''


def test_a_damaged_recipe_of_a_run_is_reported(study_folder):
    wanted = point(study_folder)
    (study_folder / 'runs/one/args.yaml').write_text('epochs: many')
    assert 'epochs must be a whole number' in runs.problem_of(study_folder, wanted)


def test_runs_of_no_point_are_named(study_folder):
    assert runs.strangers(study_folder, [point(study_folder)]) == []
    assert runs.strangers(study_folder, []) == ['one']


@pytest.mark.parametrize(('there', 'expected'), [
    ('train.py', ['CHECKOUT/train.py']), ('timm-rs', ['bin/timm-rs', 'train'])])
def test_the_program_is_that_of_the_checkout_or_the_installed_one(tmp_path, monkeypatch, there, expected):
    for name in ('CHECKOUT', 'bin'):
        (tmp_path / name).mkdir()
    path = tmp_path / ('bin' if there == 'timm-rs' else 'CHECKOUT') / there
    path.touch(mode=0o755)
    monkeypatch.setattr(runs, 'CHECKOUT', tmp_path / 'CHECKOUT')
    monkeypatch.setattr(runs.sys, 'executable', str(tmp_path / 'bin/python'))
    first, *rest = expected
    assert runs.train_program() == [str(tmp_path / first), *rest]
    path.unlink()
    with pytest.raises(runs.UserError, match='there is no timm-rs beside .*python: install'):
        runs.train_program()
