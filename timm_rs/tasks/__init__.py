"""What kind of work a run does."""

import argparse
import importlib
from typing import TYPE_CHECKING

from timm_rs.errors import UserError
from timm_rs.recipe.command_line import add_knob
from timm_rs.recipe.declaring import RecipeError, nearest
from timm_rs.recipe.knobs import Recipe, fields_of
from timm_rs.recipe.reading import read_file

if TYPE_CHECKING:  # options are there without torch
    from timm_rs.tasks.task import Task

TASKS = ('classification', 'segmentation', 'depth', 'detection', 'video', 'multilabel')


def create_task(recipe: Recipe, sources: dict[str, str] | None = None) -> 'Task':
    """The task of a recipe, of which `sources` says where its values are from.

    Raises UserError as `find_task` does, and for what the task does not have.
    """
    kind = find_task(recipe.task)
    names, wanted = [metric.name for metric in kind.metrics], recipe.eval_metric
    if wanted not in (*names, Recipe.eval_metric):
        where = f'{sources["eval_metric"]}: ' if sources else ''
        raise RecipeError(f'{where}eval_metric must be one of {", ".join(map(repr, names))}, got {wanted!r}.'
                          f'{nearest(wanted, names)}')
    return kind(recipe)


def check_of_images(name: str, what: str) -> None:
    """Raise UserError, which begins with `what`, for a task `name` whose networks speak of parts of an image."""
    if parts := find_task(name).parts:
        raise UserError(f'{what} is for networks that say something of a whole image, and this one, of task {name}, '
                        f'says it of {parts}; tools/predict.py draws what it says')


def find_task(name: str) -> 'type[Task]':
    """The task in a file of this folder, or `module:Class` for one of somebody else's.

    Raises UserError for a name that is neither.
    """
    module, colon, kind = name.partition(':')
    if not colon:
        module, kind = f'{__name__}.{name}', ''.join(word.capitalize() for word in name.split('_'))
    try:
        found: type[Task] = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'there is no task {name} ({error}): take classification, or module:Class for one of your '
                        'own') from None
    return found


def add_task_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> None:
    """Give `parser` an option per knob of the task that `argv`, or the recipe it names, chooses."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument('--recipe', '--config', '-c')
    peek.add_argument('--task')
    peek.add_argument('--trust', action='store_true')
    try:
        chosen, _ = peek.parse_known_args(argv)
    except argparse.ArgumentError:  # which the parser itself will say better
        return
    values = read_file(chosen.recipe, trusted=chosen.trust) if chosen.recipe else {}
    name = chosen.task or values.get('task') or Recipe.task
    if name == Recipe.task:  # which has none, and whoever asks for help need not wait until it is imported
        return
    task = find_task(name)
    if task.Knobs is not None:
        group = parser.add_argument_group(f'Only in task {task.name}')
        for knob, field in fields_of(task.Knobs).items():
            add_knob(group, knob, field, getattr(task.Knobs(), knob), task.Knobs, f'{task.name}.')
