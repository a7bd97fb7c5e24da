"""Weights bring weights: what their recipe names is neither imported, opened nor fetched."""

import shutil
import sys

import pytest
import torch
import yaml
from conftest import load_tool

from timm_rs.errors import UserError
from timm_rs.inference.source import open_model
from timm_rs.recipe.knobs import FIELDS
from timm_rs.training.trained import is_taken, read_run, taken_recipe

FILES = ('pretrained_path', 'initial_checkpoint', 'resume', 'class_map', 'output', 'experiment', 'compile_cache',
         'pseudo_dir', 'pseudo_pool')


@pytest.fixture
def tampered(tiny_run, tmp_path):
    """A function: a run with other values in its recipe, in the checkpoint or in the args.yaml beside bare weights."""
    def make(where, **changes):
        content = torch.load(tiny_run / 'model_best.pth.tar', weights_only=True)
        values = content['args'] | changes
        path = tmp_path / 'run/model_best.pth.tar'
        path.parent.mkdir()
        if where == 'args':
            torch.save(content | dict(args=values), path)
        else:
            torch.save(content['state_dict'], path)
            own = {name: values.pop(name) for name in list(values) if name in FIELDS and FIELDS[name].metadata['block']}
            values.pop('task_knobs')
            path.with_name('args.yaml').write_text(yaml.safe_dump(values | dict(timm_rs=own)))
        return path
    return make


@pytest.fixture
def evil(tmp_path, monkeypatch):
    (tmp_path / 'evil_module.py').write_text('class Evil: pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield 'evil_module'
    sys.modules.pop('evil_module', None)


@pytest.mark.parametrize('where', ['args', 'yaml'])
def test_modules_and_files_that_weights_name_are_left_alone(where, tampered, evil, tmp_path):
    path = tampered(where, device_modules=[evil, 'timm_rs'], dataset_trust_remote_code=True, pretrained=True,
                    **dict.fromkeys(FILES, str(tmp_path / 'secret')))
    recipe = open_model(str(path)).recipe
    assert evil not in sys.modules and recipe.device_modules == ['timm_rs'] and not recipe.dataset_trust_remote_code
    assert not any(getattr(recipe, name) for name in FILES)
    assert read_run(path, trusted=True).recipe.device_modules == [evil, 'timm_rs'] and evil in sys.modules


@pytest.mark.parametrize('where', ['args', 'yaml'])
@pytest.mark.parametrize(('changes', 'words'), [
    (dict(task='evil_module:Evil'), 'is of the task evil_module:Evil'),
    (dict(model='hf-hub:org/name'), 'is of the model hf-hub:org/name'),
    (dict(model='hf_hub:org/name'), 'is of the model hf_hub:org/name'),
    (dict(model='local-dir:/etc'), 'is of the model local-dir:/etc'),
    (dict(model='not_of_timm', device_modules=['evil_module']), 'is of the model not_of_timm, made by evil_module')])
@pytest.mark.parametrize('tool', ['predict', 'export', 'push_to_hub'])
def test_what_is_nothing_without_code_or_network_is_refused(tool, where, changes, words, tampered, evil, tmp_path,
                                                            capsys):
    more = dict(predict=[str(tmp_path / 'a.png')],
                export=['--format', 'torch_export', '--output', str(tmp_path / 'a.pt2')],
                push_to_hub=['--repo-id', 'org/name', '--dry-run'])[tool]
    (tmp_path / 'a.png').touch()
    with pytest.raises(SystemExit, match='2'):
        load_tool(tool).main([str(tampered(where, **changes)), *more])
    err = capsys.readouterr().err
    assert words in err and '--trust' in err and err.count('\n') == 1 and evil not in sys.modules


def test_arguments_of_timm_that_name_files_do_not_reach_the_model(tampered, tmp_path):
    kwargs = dict(layers=(1, 1, 1, 1), width=0.125)
    path = tampered('args', model_kwargs=kwargs | dict(checkpoint_path=str(tmp_path / 'secret'), cache_dir='/'))
    assert open_model(str(path)).recipe.model_kwargs == kwargs


@pytest.mark.parametrize('changes', [
    dict(img_size='large'), dict(num_classes=-1), dict(model=None), dict(model_kwargs=[]), dict(mean='x'),
    dict(model_kwargs={'layers': torch.zeros(1)}), dict(task_knobs=[1]), dict(preprocessing='x'), dict(crop_pct={})])
def test_values_that_no_recipe_has_are_one_line(changes, tampered):
    with pytest.raises(UserError, match='model_best'):
        read_run(tampered('args', **changes))


@pytest.mark.parametrize('facts', [
    dict(epoch='x'), dict(arch=[1]), dict(data=[]), dict(args=[]), dict(data={'classes': ['cat']}),
    dict(data={'classes': {'cat': 1 << 60}}), dict(data={'classes': {'cat': -1}})])
def test_facts_of_another_kind_end_in_a_line_or_are_not_taken(facts, tiny_run, tmp_path):
    content = torch.load(tiny_run / 'model_best.pth.tar', weights_only=True)
    shutil.copy(tiny_run / 'args.yaml', tmp_path)
    torch.save(content | facts, tmp_path / 'model_best.pth.tar')
    if 'classes' in str(facts):
        with pytest.raises(UserError, match='its classes are not names with an index each'):
            read_run(tmp_path)
    else:
        assert read_run(tmp_path).epochs in (2, 1, None)


def test_numbers_and_words_are_taken_and_names_of_files_are_not():
    texts = {name for name, field in FIELDS.items() if 'str' in str(field.type) and not field.metadata['choices']}
    assert {name for name in texts if not is_taken(name)} == {
        *FILES, 'device', 'wandb_project', 'wandb_resume_id', 'wandb_tags'}
    assert not is_taken('dataset_trust_remote_code') and is_taken('lr') and is_taken('preprocessing')


def test_a_run_of_ones_own_comes_whole(tiny_run):
    content = torch.load(tiny_run / 'model_best.pth.tar', weights_only=True)
    assert taken_recipe(content['args'], tiny_run, trusted=True).experiment == content['args']['experiment']
    different = {name for name, value in vars(taken_recipe(content['args'], tiny_run, False)).items()
                 if value != content['args'][name]}
    assert all(FIELDS[name].metadata['private'] for name in different)
