"""A model for use, by whatever people call it: a run, a checkpoint, a folder for timm, a name of timm or the Hub."""

import dataclasses
from pathlib import Path
from typing import Any

import timm

from timm_rs.data.class_names import names_of_timm_model
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.declaring import nearest
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks import create_task
from timm_rs.tasks.multilabel import PROBLEM_TYPE, Multilabel
from timm_rs.tasks.video import as_views
from timm_rs.training.build import build_model, has_fixed_size
from timm_rs.training.pretrained import problem_type
from timm_rs.training.trained import read_run, taken_recipe

SCHEMES = ('hf-hub:', 'hf_hub:', 'local-dir:')


@dataclasses.dataclass
class Source:
    """A model and what it takes to feed it.

    Attributes:
        name: what to call it.
        model: in evaluation mode, on the CPU.
        recipe: whose evaluation transform the images go through.
        data_config: timm's: input_size, mean, std, crop_pct, …
        class_names: by class index, or None where nobody knows them.
    """
    name: str
    model: Any
    recipe: Recipe
    data_config: dict[str, Any]
    class_names: list[str] | None


def open_model(
        source: str, pretrained: bool = False, num_classes: int | None = None, img_size: int | None = None,
        model_kwargs: dict[str, Any] | None = None, weights: str | None = None, trusted: bool = False) -> Source:
    """The model that `source` names.

    Args:
        source: the folder of a run (its best checkpoint) or a checkpoint, averaged weights first; a folder with a
            config.json; or a name that `timm.create_model` takes, with tag, 'hf-hub:' or 'local-dir:'.
        pretrained: whether names of timm's come with their weights; runs and folders always do.
        num_classes, model_kwargs: only for names of timm's.
        img_size: square images of another size (pixels) than the model's own.
        weights: 'ema' or 'raw', only for runs.
        trusted: as in `read_run`, only for runs.

    Raises:
        UserError: there is nothing of that kind, it is damaged, or it cannot be built so.
    """
    if not source.strip():
        raise UserError('an empty argument names no model; give a run (. for this folder), a checkpoint or a name')
    path = Path(source)
    if path.is_dir() and (path / 'config.json').is_file():
        source, path = f'local-dir:{source}', Path()
    elif path.exists():
        if num_classes or model_kwargs:
            raise UserError(f'{source} says itself what model it is; leave out --num-classes and --model-kwargs')
        trained = read_run(path, weights, trusted)
        config = _resized(source, trained.model, trained.data_config, img_size)
        return Source(trained.recipe.model, trained.model, trained.recipe, config, trained.class_names)
    if weights:
        raise UserError(f'{source} is no run, and has no choice of weights; leave out --weights')
    if source.startswith(SCHEMES):
        pretrained = True
    else:
        _check_name(source)
    recipe = Recipe(model=source, pretrained=pretrained, num_classes=num_classes, img_size=img_size,
                    model_kwargs=model_kwargs or {}, device='cpu')
    model, data_config = build_model(recipe, Device('cpu'), create_task(recipe))
    if 'num_frames' in data_config:
        recipe = _create_clip_recipe(recipe, data_config)
    elif source.startswith(SCHEMES) and problem_type(source) == PROBLEM_TYPE:
        recipe = dataclasses.replace(recipe, task=Multilabel.name)
    if img_size and source.startswith(SCHEMES):
        own = data_config | dict(input_size=model.pretrained_cfg['input_size'])
        data_config = _resized(source, model, own, img_size)
    names = names_of_timm_model(model) if pretrained else None
    return Source(source.removeprefix('local-dir:'), model.eval(), recipe, data_config, names)


def _resized(source: str, model: Any, data_config: dict[str, Any], img_size: int | None) -> dict[str, Any]:
    """`data_config` for images of `img_size` pixels. Raises UserError for a model that has its own size for good."""
    channels, height, width = data_config['input_size']
    if img_size is None or height == width == img_size:
        return data_config
    if has_fixed_size(model):
        raise UserError(f'{source} has its image size, {height} x {width}, in its weights; leave out --img-size')
    return data_config | dict(input_size=(channels, img_size, img_size))


def _create_clip_recipe(recipe: Recipe, data_config: dict[str, Any]) -> Recipe:
    """`recipe` of a network for clips, whose views are those that it was trained with.

    Raises UserError where nothing says which.
    """
    folder = recipe.model.removeprefix('local-dir:')
    if folder != recipe.model and (published := Path(folder, 'args.yaml')).is_file():
        trained = taken_recipe(read_file(published), published, trusted=False)
        return dataclasses.replace(trained, model=recipe.model, device='cpu')
    if recipe.model.startswith(SCHEMES):
        raise UserError(f'{recipe.model} takes clips, and its args.yaml, which says of which frames, is not here: give '
                        'the folder that tools/pull_from_hub.py makes of it')
    arguments = {name: value for name, value in recipe.model_kwargs.items() if name != 'num_frames'}
    return dataclasses.replace(recipe, model_kwargs=arguments, **as_views(data_config['num_frames']))


def _check_name(name: str) -> None:
    if timm.is_model(name.partition('.')[0]):
        return
    if Path(name).suffix in ('.tar', '.pth', '.pt', '.safetensors', '.onnx', '.xml', '.pt2') or '/' in name:
        raise UserError(f'{name} does not exist; give a run, a checkpoint, or the name of a model')
    raise UserError(f'unknown model {name}: it is no file or folder, and no model of timm\'s.'
                    f'{nearest(name, timm.list_models())}')
