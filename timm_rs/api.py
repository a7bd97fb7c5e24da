"""What Python programs and notebooks call: `from timm_rs import read_recipe, train, evaluate, load_run, predict`.

Each of them is what a program does from the command line. What people can fix is a `timm_rs.errors.UserError`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.predict import Prediction, find_images
from timm_rs.inference.predict import predict as predict_images
from timm_rs.inference.source import Source, open_model
from timm_rs.recipe.declaring import RecipeError, nearest
from timm_rs.recipe.knobs import FIELDS, Recipe
from timm_rs.recipe.reading import DEFAULTS, check_value, read_file
from timm_rs.tasks import find_task
from timm_rs.tasks.task import Task
from timm_rs.training.checkpoint import checkpoint_in
from timm_rs.training.train import create_run_task, open_device, run_evaluation, run_training


def read_recipe(recipe: str | os.PathLike[str] = '', **values: Any) -> Recipe:
    """The recipe in a file, or of that name that comes with timm_rs, with other `values`: knobs, as options are called.

    Raises UserError for a file that cannot be read, an unknown knob and a value that cannot be.
    """
    if unknown := [name for name in values if name not in FIELDS]:
        raise RecipeError(f'there is no knob {unknown[0]}.{nearest(unknown[0], FIELDS)} (train.py --help lists all)')
    own = read_file(recipe) if recipe else {}
    return Recipe(**own | {name: check_value(name, _plain(value), 'read_recipe') for name, value in values.items()})


def train(recipe: Recipe, on_epoch: Callable[[dict[str, Any]], object] = lambda row: None) -> Path:
    """Train here, as train.py does, and give the run's folder.

    Args:
        recipe: what to do. Without a GPU the CPU trains, unless the recipe says `device`.
        on_epoch: called after each epoch with its row: epoch, train_loss, train_top1 where images are of one class
            each, lr, and eval_… where it was evaluated.

    Raises UserError as train.py ends with one; SystemExit, with everything saved, where a signal, Ctrl-C, stops it.
    """
    with _begun(recipe) as begun:
        return run_training(*begun, on_epoch)


def evaluate(run: str | os.PathLike[str], **values: Any) -> dict[str, Any]:
    """The metrics of a run's best checkpoint, or of a checkpoint in a run, as `train.py --eval` writes them.

    Args:
        run: the folder or the checkpoint; its args.yaml beside it says how.
        values: other values of knobs, such as `data_dir`.

    Raises UserError as `train.py --eval` ends with one.
    """
    path = checkpoint_in(Path(run))
    if not path.exists():
        raise UserError(f'{run}: there is no such run or checkpoint')
    with _begun(read_recipe(path.with_name('args.yaml'), **values)) as begun:
        return run_evaluation(path, *begun)


def load_run(run: str | os.PathLike[str]) -> Source:
    """A run, a checkpoint, a folder with a config.json or a name of timm's, as a model with what it takes to feed it.

    `model` is in evaluation mode on the CPU and takes normalised images (N, C, H, W) of `data_config['input_size']`;
    `class_names` say what its outputs are. Raises UserError as `open_model` does.
    """
    return open_model(str(run), pretrained=True)


def predict(
        source: Source, images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        top_k: int | None = None, device: str = 'cpu', min_score: float = 0.5) -> Iterator[Prediction]:
    """The `top_k` most likely classes of images, or videos, 5 by default: files, folders with all below, URLs.

    Of networks for any number of classes, all whose probability is at least `min_score`. Raises UserError where there
    are no images.
    """
    places = [images] if isinstance(images, (str, os.PathLike)) else images
    found = find_images([str(place) for place in places], source.name, find_task(source.recipe.task).is_of_videos)
    return predict_images(source, found, top_k, device=Device(device), min_score=min_score)


@contextlib.contextmanager
def _begun(recipe: Recipe) -> Iterator[tuple[Recipe, Task, Device]]:
    """The recipe with all its knobs, its task, its device. What is at its default was not asked for."""
    sources = {field.name: 'default' if getattr(recipe, field.name) == getattr(DEFAULTS, field.name) else 'recipe'
               for field in dataclasses.fields(recipe)}
    recipe, task = create_run_task(recipe, sources)
    with open_device(recipe, sources) as device:
        yield recipe, task, device


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
