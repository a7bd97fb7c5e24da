"""docs/fidelity.md points at tests: they must be there."""

import re

import yaml
from conftest import ROOT

from timm_rs.recipe.knobs import FIELDS

PAGE = (ROOT / 'docs/fidelity.md').read_text()


def test_every_test_that_the_fidelity_page_names_exists():
    named = re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?`', PAGE)
    assert len([name for _, name in named if name]) > 15
    for path, name in named:
        assert (ROOT / path).exists(), path
        assert not name or f'\ndef {name}(' in (ROOT / path).read_text(), f'{path}::{name}'


def test_every_switch_on_the_fidelity_page_is_a_knob_of_that_value():
    switches = re.findall(r'`(\w+): ([\w.]+)`', PAGE)
    assert len(switches) > 10
    for name, value in switches:
        assert name in FIELDS, name
        choices = FIELDS[name].metadata['choices']
        assert choices is None or value in choices, f'{name}: {value}'
        assert type(yaml.safe_load(value)).__name__ in str(FIELDS[name].type), f'{name}: {value}'
