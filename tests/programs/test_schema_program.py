"""The program that prints the schema of recipes."""

import json

from timm_rs.files import RECIPES
from timm_rs.programs import schema
from timm_rs.recipe.schema import FILE


def test_the_schema_beside_the_recipes_is_that_of_the_knobs(capsys):
    schema.main([])
    assert json.loads(capsys.readouterr().out) == json.loads((RECIPES / FILE).read_text()), (
        'run python tools/schema.py --write')
