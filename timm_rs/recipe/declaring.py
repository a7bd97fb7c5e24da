"""How a knob is declared, and what a recipe is told when it names none."""

import dataclasses
import difflib
import typing
from typing import Any

from timm_rs.errors import UserError

BLOCK = 'timm_rs'  # the YAML block, and the package that timm's train.py must import to know our models


class RecipeError(UserError):
    """A recipe or a command line that cannot be run as written."""


def knob(
        default: Any,
        help: str,
        *,
        section: str | None = None,
        choices: tuple[str, ...] | None = None,
        nargs: int | None = None,
        low: float | None = None,
        high: float | None = None,
        above: float | None = None,
        below: float | None = None,
        block: bool = False,
        flags: tuple[str, ...] = (),
        free: bool = False,
        private: bool = False,
) -> Any:
    """Declare one field of `Recipe`; `section` starts a new group, `block` places it in the `timm_rs:` block.

    `low` and `high` are allowed values, `above` and `below` are not. A `free` one may differ when a run continues,
    because it changes where and how, but not what is computed. A `private` one belongs to the machine that trained, or
    to where a run began, and is never published.
    """
    metadata = dict(
        help=help, section=section, choices=choices, nargs=nargs, low=low, high=high, above=above,
        below=below, block=block, flags=flags, free=free, private=private)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nearest(word: str, candidates: typing.Iterable[str]) -> str:
    """' Did you mean X?' for the closest candidate, or nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1)
    return f' Did you mean {close[0]}?' if close else ''
