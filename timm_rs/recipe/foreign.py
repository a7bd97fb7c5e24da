"""Which code a recipe names that is not of timm_rs, and whether the recipe was fetched from the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_rs.recipe.declaring import BLOCK, RecipeError

PULLED = '.pulled_from_hub'  # a file in the folders that tools/pull_from_hub.py makes
TRUST_HELP = 'you know whose this is: let it import modules and fetch models that it names'


def named_code(values: Mapping[str, Any]) -> list[str]:
    """What runs, besides timm_rs, where these values of a recipe are used: names of modules, mostly."""
    module, colon, _ = (values.get('task') or '').partition(':')
    modules = [*(values.get('device_modules') or ()), *([module] if colon else ())]
    remote = ["the data set's own code"] if values.get('dataset_trust_remote_code') else []
    return [*dict.fromkeys(name for name in modules if name.partition('.')[0] != BLOCK), *remote]


def is_pulled(path: str | os.PathLike[str]) -> bool:
    """Whether a file lies in a folder that came from the Hub: pulled by us, in its cache, or beside a config.json."""
    path = Path(os.path.abspath(path))
    return (path.with_name('config.json').is_file()
            or any((folder / PULLED).is_file() or folder.name.startswith('models--') for folder in path.parents))


def pulled_from(path: str | os.PathLike[str]) -> str:
    """The repository of the Hub, org/name, that a file was fetched from, by us or into its cache; empty if none."""
    for folder in Path(os.path.abspath(path)).parents:
        if (note := folder / PULLED).is_file():
            return note.read_text(encoding='utf-8').strip().partition('@')[0]
        if folder.name.startswith('models--'):
            return folder.name.removeprefix('models--').replace('--', '/')
    return ''


def check_code(path: str | os.PathLike[str], values: Mapping[str, Any], trusted: bool) -> str:
    """A line that says what the recipe at `path` runs besides timm_rs; empty for nothing.

    Raises RecipeError where that recipe was fetched, and nobody said that it may.
    """
    if not (code := ', '.join(named_code(values))):
        return ''
    if is_pulled(path) and not trusted:
        raise RecipeError(f'{path} comes from the Hub and would import {code}: look at that code first; if you trust '
                          'it, say --trust, and if not, delete the line in a copy of the recipe')
    return f'{path} imports {code}'
