"""Recipes as a JSON Schema, by which editors complete keys, check values and show what a knob is for."""

from typing import Any

from timm_rs.recipe.declaring import BLOCK
from timm_rs.recipe.knobs import FIELDS, Recipe, fields_of, value_type
from timm_rs.recipe.reading import DEFAULTS

FILE = 'recipe.schema.json'  # beside the recipes, whose first line names it
_TYPES: dict[Any, str] = {
    int: 'integer', float: 'number', bool: 'boolean', str: 'string', dict: 'object', list: 'array'}
_BOUNDS = dict(low='minimum', high='maximum', above='exclusiveMinimum', below='exclusiveMaximum')


def recipe_schema(tasks: dict[str, type]) -> dict[str, Any]:
    """The schema (draft 2020-12) of recipe files; `tasks` have knobs of their own, which dataclasses declare."""
    top, block = ({name: _knob(name, Recipe, getattr(DEFAULTS, name)) for name, field in FIELDS.items()
                   if field.metadata['block'] == in_block} for in_block in (False, True))
    for task, declared in tasks.items():
        block[task] = dict(_mapping({name: _knob(name, declared, getattr(declared(), name))
                                     for name in fields_of(declared)}), description=f'Knobs of task {task}.')
    # Tasks of other people have blocks of their own.
    own = dict(type='object', properties=block, additionalProperties=dict(type='object'),
               description='What timm has no option for.')
    return {'$schema': 'https://json-schema.org/draft/2020-12/schema', 'title': 'A recipe of timm_rs',
            **_mapping(top | {BLOCK: own})}


def _mapping(properties: dict[str, Any]) -> dict[str, Any]:
    return dict(type='object', properties=properties, additionalProperties=False)


def _knob(name: str, declared: type, default: Any) -> dict[str, Any]:
    metadata, (kind, element, optional) = fields_of(declared)[name].metadata, value_type(name, declared)
    number = {word: metadata[bound] for bound, word in _BOUNDS.items() if metadata[bound] is not None}
    found: dict[str, Any] = dict(type=[_TYPES[kind], 'null'] if optional else _TYPES[kind])
    if kind is list:
        found['items'] = dict(type=_TYPES[element], **number)
        if metadata['nargs']:
            found |= dict(minItems=metadata['nargs'], maxItems=metadata['nargs'])
        if metadata['choices']:
            found['items']['enum'] = [*metadata['choices']]
    else:
        found |= number
        if metadata['choices']:
            found['enum'] = [*metadata['choices'], *([None] if optional else [])]
    return found | dict(default=default, description=metadata['help'][:1].upper() + metadata['help'][1:] + '.')
