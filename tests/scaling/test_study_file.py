import re

import pytest
import yaml

from timm_rs.recipe.declaring import RecipeError
from timm_rs.scaling.study_file import find_study, read_study

STUDY = '''
recipe: rs101
base: {depth: 101, width: 1}
axes: {depth: [200], width: [1.5, 2]}
regimes: {epochs: [10, 350]}
seeds: [1, 2]
rules:
  - {if: {epochs: 10}, set: {aa: null}}
'''


@pytest.fixture
def read(tmp_path):
    def call(text, **overrides):
        path = tmp_path / 'study.yaml'
        path.write_text(text)
        return read_study(path, overrides)
    return call


def test_a_study_is_read_in_the_types_of_a_recipe(read):
    study = read(STUDY, data_dir='photos')
    assert study.base == dict(depth=101, width=1.0, data_dir='photos') and type(study.base['width']) is float
    assert study.axes == dict(depth=[200], width=[1.5, 2.0]) and study.regimes == dict(epochs=[10, 350])
    assert (study.design, study.seeds) == ('series', [1, 2])
    rule, = study.rules
    assert (rule.values, rule.settings) == (dict(epochs=[10]), dict(aa=None))


@pytest.mark.parametrize(('change', 'words'), [
    (dict(axis={}), 'study.yaml: unknown key axis. Did you mean axes?'),
    (dict(recipe=None), 'study.yaml: recipe is empty'),
    (dict(recipe=''), 'study.yaml: recipe is missing; name the recipe that all runs share'),
    (dict(design='cube'), "study.yaml: design must be one of 'series', 'grid', got 'cube'."),
    (dict(base=[]), 'study.yaml: base must be a mapping'),
    (dict(base=dict(depht=1)), 'study.yaml: base: unknown key depht. Did you mean depth?'),
    (dict(base={'img-size': 1}), 'study.yaml: base: unknown key img-size. Did you mean img_size?'),
    (dict(base=dict(width='wide')), "study.yaml: base: width must be a number, got 'wide'"),
    (dict(base=dict(layers=[1, 1, 1])), 'study.yaml: base: layers needs 4 values, got 3'),
    (dict(base=dict(model_kwargs={})), 'study.yaml: base: model_kwargs is not set here; write depth, width or layers'),
    (dict(base=dict(seed=1)), 'study.yaml: base: seed is not set here; write seeds: [42, 43] at the top level'),
    (dict(base=dict(experiment='x')), 'study.yaml: base: experiment is not set here; the study names the folders'),
    (dict(axes=dict(depth=200)), 'study.yaml: axes: depth must be a list of values such as [1, 2], got 200'),
    (dict(axes=dict(depth=[])), 'study.yaml: axes: depth must be a list of values'),
    (dict(axes=dict(depth=[1.5])), 'study.yaml: axes: depth must be a whole number, got 1.5'),
    (dict(axes=dict(width=[0.0])), 'study.yaml: axes: width must be above 0, got 0.0'),
    (dict(axes=dict(width=[1.5, 1.5])), 'study.yaml: axes: width must be a list of different values'),
    (dict(axes=dict(recipe=[3])), 'study.yaml: axes: recipe must be text, got 3'),
    (dict(axes=dict(epochs=[1])), 'study.yaml: epochs is an axis and a regime; delete one of the two'),
    (dict(regimes=dict(epochs=[0])), 'study.yaml: regimes: epochs must be at least 1, got 0'),
    (dict(seeds=[]), 'study.yaml: seeds must be a list of different values, got []'),
    (dict(seeds=[-1]), 'study.yaml: seeds must be between 0 and 4000000000, got -1'),
    (dict(rules={}), 'study.yaml: rules must be a list of lines such as - {if:'),
    (dict(rules=[dict(set=dict(drop=0.0))]), 'study.yaml: rule 1 must be of a list of lines such as - {if:'),
    (dict(rules=[{'if': dict(depht=1), 'set': dict(drop=0.0)}]), 'study.yaml: rule 1: unknown key depht'),
    (dict(rules=[{'if': dict(depth=1), 'set': dict(drop=2.0)}]), 'study.yaml: rule 1: drop must be'),
    (dict(rules=[{'if': dict(depth=1), 'set': dict(epochs=2)}]), 'study.yaml: rule 1 sets epochs, which the axes'),
    (dict(design='grid', axes={f'{name}': [*range(1, 100)] for name in ('depth', 'batch_size', 'workers')}),
     'study.yaml has 3,881,196 runs, and at most 10,000 are allowed'),
], ids=lambda value: re.sub(r'\W+', '-', str(value))[:40] if isinstance(value, dict) else '')
def test_what_is_wrong_is_named_with_file_key_and_remedy(read, change, words):
    with pytest.raises(RecipeError) as error:
        read(yaml.safe_dump(yaml.safe_load(STUDY) | change))
    assert words in str(error.value) and error.value.status == 2


@pytest.mark.parametrize(('text', 'words'), [
    ('recipe: a\nrecipe: b', 'study.yaml:2: recipe is written twice (first in line 1)'),
    ('recipe: !!python/name:os.system x', 'study.yaml:1: a recipe holds text, numbers'),
    ('- a', 'study .* holds no "key: value" lines'), ('a: [', 'study .* is not valid YAML'),
    ('recipe: rs50\nseeds: [010]', '010 is ambiguous')])
def test_yaml_is_as_strict_as_in_recipes(read, text, words):
    with pytest.raises(RecipeError, match=words.replace('(', r'\(').replace(')', r'\)')):
        read(text)


@pytest.mark.parametrize(('value', 'expected'), [
    ('[1, 1, 1, 1]', [[1, 1, 1, 1]]), ('[[1, 1, 1, 1], [2, 1, 1, 1]]', [[1, 1, 1, 1], [2, 1, 1, 1]])])
def test_a_rule_for_layers_takes_one_or_several(read, value, expected):
    study = read(f'recipe: rs50\nrules: [{{if: {{layers: {value}}}, set: {{drop: 0.5}}}}]')
    assert study.rules[0].values == dict(layers=expected)


def test_studies_that_are_shipped_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study('paper') == find_study('studies/paper.yaml') and find_study('paper').is_file()
    with pytest.raises(RecipeError, match='study nowhere.yaml does not exist'):
        read_study(find_study('nowhere.yaml'))
