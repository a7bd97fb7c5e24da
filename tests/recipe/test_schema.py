"""Recipes as a JSON Schema, against a validator of somebody else's."""

import json

import jsonschema
import pytest
import yaml

from timm_rs.files import RECIPES
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import to_yaml
from timm_rs.recipe.schema import FILE

SCHEMA = json.loads((RECIPES / FILE).read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize('path', sorted(RECIPES.rglob('*.yaml')), ids=lambda path: path.stem)
def test_recipes_name_it_in_their_first_line_and_fit_it(path):
    name = path.read_text().splitlines()[0].removeprefix('# yaml-language-server: $schema=')
    assert (path.parent / name).resolve() == (RECIPES / FILE).resolve()
    VALIDATOR.validate(yaml.safe_load(path.read_text()))


def test_what_train_py_shows_fits_it():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(yaml.safe_load(to_yaml(Recipe())))
    assert SCHEMA['properties']['timm_rs']['properties']['detection']['properties']['detector']['description']


@pytest.mark.parametrize('text', [
    'epoch: 3', 'epochs: three', 'epochs: 0', 'epochs: 1.5', 'smoothing: 1.0', 'scale: [0.1]', 'amp_dtype: half',
    'amp: 1', 'ema_ramp: tf', 'timm_rs: {epochs: 3}', 'timm_rs: {ema_ramp: thin}',
    'timm_rs: {detection: {detektor: x}}', 'model_kwargs: [1]', 'timm_rs: {log_to: [paper]}'])
def test_what_no_recipe_may_say_is_marked(text):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(yaml.safe_load(text))
