"""A recipe from the Hub imports nothing of others unless somebody says so."""

import shutil

import pytest

from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.foreign import PULLED, named_code
from timm_rs.recipe.reading import read_file

CODE = {'device_modules: [timm_rs, this]': 'this', 'timm_rs: {task: "this:that"}': 'this',
        'dataset_trust_remote_code: true': "the data set's own code"}


def pulled(folder):
    (folder / PULLED).touch()
    return folder / 'deep/recipe.yaml'


def in_the_cache(folder):
    return folder / 'models--org--name/snapshots/0/recipe.yaml'


def published(folder):
    (folder / 'config.json').touch()
    return folder / 'recipe.yaml'


@pytest.mark.parametrize('place', [pulled, in_the_cache, published])
@pytest.mark.parametrize('line', CODE)
def test_code_that_a_fetched_recipe_names_needs_the_word_of_its_user(line, place, tmp_path):
    path, said = place(tmp_path), []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    with pytest.raises(RecipeError, match=f'comes from the Hub and would import {CODE[line]}: .*--trust'):
        read_file(path)
    read_file(path, said.append, trusted=True)
    copy = shutil.copy(path, tmp_path.parent / f'{tmp_path.name}.yaml')
    read_file(copy, said.append)
    assert said == [f'{path} imports {CODE[line]}', f'{copy} imports {CODE[line]}']


def test_what_is_of_timm_rs_is_not_said(tmp_path):
    path, said = pulled(tmp_path), []
    path.parent.mkdir()
    path.write_text('device_modules: [timm_rs, timm_rs.models]\ntimm_rs: {task: classification}')
    read_file(path, said.append)
    assert said == [] and named_code({}) == []


@pytest.mark.parametrize('line', list(CODE)[:2])
def test_train_refuses_before_it_imports(line, run, tmp_path):
    (tmp_path / 'evil_module.py').write_text(f'open({str(tmp_path / "executed")!r}, "w")')
    path = published(tmp_path)
    path.write_text(line.replace('this', 'evil_module'))
    result = run('--recipe', path, '--data-dir', tmp_path)
    assert result.code == 2 and 'would import evil_module' in result.err and result.err.count('\n') == 1
    assert not (tmp_path / 'executed').exists()
