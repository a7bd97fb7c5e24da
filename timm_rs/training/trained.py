"""A model as a run left it."""

import dataclasses
from pathlib import Path
from typing import Any

from timm_rs.data.class_names import FILE, in_order, read_class_names
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import FIELDS, Recipe
from timm_rs.recipe.reading import check_value, read_file
from timm_rs.tasks import create_task
from timm_rs.tasks.task import Task
from timm_rs.training.build import build_model
from timm_rs.training.checkpoint import SUFFIX, checkpoint_in, describe, load_weights, read_checkpoint
from timm_rs.training.measured import Measured, Setting, create_setting, read_evaluation, read_summary

MEASURED = ('summary.csv', 'eval.json')
MADE_BY_TIMM = {'model', 'num_classes', 'img_size', 'crop_pct', 'gp'}  # names that its arguments always have


@dataclasses.dataclass
class Trained:
    """A model as a run left it.

    Attributes:
        model: in evaluation mode, on the CPU.
        recipe: of the run.
        data_config: timm's, for the images the model was evaluated with.
        weights: 'ema' or 'raw'.
        epochs: epochs trained, None where the file does not say.
        task: of the recipe.
        metrics: those of the task, as far as they were measured.
        images: number of images behind `metrics`, where known.
        class_names: by class index, where the run recorded them.
        files: what goes along unchanged, name on the Hub -> path.
        measured_on: what `metrics` are of; None: the validation split of the training.
    """
    model: Any
    recipe: Recipe
    task: Task
    data_config: dict[str, Any]
    weights: str
    epochs: int | None
    metrics: dict[str, float]
    images: int | None
    files: dict[str, Path]
    class_names: list[str] | None = None
    measured_on: Setting | None = None

    @property
    def validated_on(self) -> Setting:
        """What the training itself measured."""
        return create_setting(self.recipe, self.data_config)


def read_run(path: str | Path, weights: str | None = None) -> Trained:
    """The model of a checkpoint, or of a run's folder (its `model_best`), with what the run measured.

    Args:
        path: folder or file.
        weights: 'ema' (needs an average in the checkpoint), 'raw', or None: the average where there is one.

    Raises:
        UserError: nothing of that kind at `path`, damaged, without a recipe, or without the weights asked for.
    """
    path = checkpoint_in(Path(path))
    content = read_checkpoint(path)
    if weights == 'ema' and not content.get('state_dict_ema'):
        raise UserError(f'{path} has no averaged weights; the run had model_ema off: use --weights raw')
    weights = weights or ('ema' if content.get('state_dict_ema') else 'raw')
    recipe = _recipe_of(path, content)
    task = create_task(recipe)
    model, data_config = build_model(dataclasses.replace(
        recipe, device='cpu', pretrained=False, pretrained_path='', initial_checkpoint='', head_init_scale=None,
        head_init_bias=None, sync_bn=False, grad_checkpointing=False, channels_last=False), Device('cpu'), task)
    load_weights(model, content['state_dict_ema' if weights == 'ema' else 'state_dict'], describe(path, content))
    epoch = content.get('epoch')
    evaluation = path.with_name(path.name.removesuffix(SUFFIX) + '.eval.json')
    files = {name: file for name, file in zip(
        MEASURED, (path.with_name('summary.csv'), evaluation), strict=True) if file.is_file()}
    names, measured = [metric.name for metric in task.metrics], None
    if 'eval.json' in files and not (measured := read_evaluation(evaluation, path, weights, names)):
        del files['eval.json']
    if not measured:
        prefix = 'eval_raw_' if 'state_dict_ema' in content and weights == 'raw' else 'eval_'
        metrics = read_summary(files['summary.csv'], epoch, prefix, names) if 'summary.csv' in files else {}
        measured = Measured(metrics, None, create_setting(recipe, data_config))
    return Trained(model.eval(), recipe, task, data_config, weights, None if epoch is None else epoch + 1,
                   measured.metrics, measured.images, files, _class_names(path, content, model.num_classes),
                   measured.setting)


def _recipe_of(path: Path, content: dict[str, Any]) -> Recipe:
    """What the checkpoint says it was trained with, otherwise the args.yaml beside it."""
    values, source = content.get('args'), path
    if content.get('is_foreign') and isinstance(values, dict):
        values = _values_of_timm(values, path)
    if not isinstance(values, dict):
        source = path.with_name('args.yaml')
        if not source.is_file():
            raise UserError(f'{path} does not say what it was trained with, and there is no {source} either')
        values = read_file(source)
    unknown = values.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise UserError(f'{source} has a recipe of another version of timm_rs: it has {", ".join(sorted(unknown))}')
    return Recipe(**values)


def _class_names(path: Path, content: dict[str, Any], num_classes: int) -> list[str] | None:
    """What the checkpoint says, which is what the file beside it must say; the file alone for older ones."""
    beside = read_class_names(path.parent, num_classes)
    classes = (content.get('data') or {}).get('classes')
    names = in_order(classes) if classes else beside
    if names and beside and names != beside:
        index = next(index for index, name in enumerate(names) if name != beside[index])
        raise UserError(f'{path.with_name(FILE)} is not of {path.name}: class {index} is {beside[index]} there and '
                        f'{names[index]} in the checkpoint; move the file away')
    return names


def _values_of_timm(arguments: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The values of a recipe in arguments that timm's train.py has kept in a checkpoint; None for another program's.

    Names of modules and of files are left alone: a checkpoint has no say in what is run and read. Raises
    `RecipeError` for a value that we do not have, which may be part of the model.
    """
    if not arguments.keys() >= MADE_BY_TIMM:
        return None
    wanted = {name for name, knob in FIELDS.items() if not (knob.metadata['block'] or knob.metadata['private'])}
    values = {name: check_value(name, value, f'the arguments in {path}') for name, value in arguments.items()
              if name in wanted - {'device_modules'} and value is not None}
    return values | dict(data_dir=str(arguments.get('data_dir') or arguments.get('data') or ''))  # for its name
