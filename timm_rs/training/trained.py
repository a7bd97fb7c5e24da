"""A model as a run left it."""

import dataclasses
from pathlib import Path
from typing import Any

import timm

from timm_rs.data.class_names import FILE, in_order, read_class_names
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, blaming
from timm_rs.recipe.declaring import BLOCK
from timm_rs.recipe.foreign import named_code
from timm_rs.recipe.knobs import FIELDS, Recipe, value_type
from timm_rs.recipe.reading import check_value, read_file, to_yaml
from timm_rs.tasks import create_task
from timm_rs.tasks.task import Task
from timm_rs.training.build import build_model
from timm_rs.training.checkpoint import SUFFIX, checkpoint_in, describe, load_weights, read_checkpoint
from timm_rs.training.measured import Measured, Setting, create_setting, read_evaluation, read_summary

MEASURED = ('summary.csv', 'eval.json')
MADE_BY_TIMM = {'model', 'num_classes', 'img_size', 'crop_pct', 'gp'}  # names that its arguments always have
# Knobs of free text that are taken from a recipe that comes with weights. None of them is opened or fetched here, and
# what is looked up by their name is timm's or ours; `data_dir` is what the data is called.
TEXTS = {'aa', 'class_weights', 'data_dir', 'dataset', 'device_modules', 'eval_metric', 'freeze', 'input_img_mode',
         'input_key', 'interpolation', 'model', 'model_kwargs', 'opt', 'opt_kwargs', 'target_key', 'task',
         'torchcompile', 'torchcompile_mode', 'train_interpolation', 'train_split', 'val_split'}
# Arguments of timm.create_model that are no model's: files and places to fetch from.
NOT_OF_MODELS = {'checkpoint_path', 'cache_dir', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay'}


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
        base_model: the repository of the Hub, org/name, whose weights the run began with; empty: none.
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
    base_model: str = ''

    @property
    def validated_on(self) -> Setting:
        """What the training itself measured."""
        return create_setting(self.recipe, self.data_config)


def read_run(path: str | Path, weights: str | None = None, trusted: bool = False) -> Trained:
    """The model of a checkpoint, or of a run's folder (its `model_best`), with what the run measured.

    Args:
        path: folder or file.
        weights: 'ema' (needs an average in the checkpoint), 'raw', or None: the average where there is one.
        trusted: the file is one's own: import modules, and fetch a model, that its recipe names.

    Raises:
        UserError: nothing of that kind at `path`, damaged, without a recipe, or without the weights asked for.
    """
    path = checkpoint_in(Path(path))
    content = read_checkpoint(path)
    if weights == 'ema' and not content.get('state_dict_ema'):
        raise UserError(f'{path} has no averaged weights; the run had model_ema off: use --weights raw')
    weights = weights or ('ema' if content.get('state_dict_ema') else 'raw')
    recipe = _recipe_of(path, content, trusted)
    task = create_task(recipe)
    model, data_config = build_model(dataclasses.replace(
        recipe, device='cpu', pretrained=False, pretrained_path='', initial_checkpoint='', inflate='',
        head_init_scale=None, head_init_bias=None, sync_bn=False, grad_checkpointing=False, channels_last=False),
        Device('cpu'), task)
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
                   measured.setting, content.get('base_model', ''))


def _recipe_of(path: Path, content: dict[str, Any], trusted: bool) -> Recipe:
    """What the checkpoint says it was trained with, otherwise the args.yaml beside it."""
    values, source = content.get('args'), path
    if content.get('is_foreign') and not (values and values.keys() >= MADE_BY_TIMM):
        values = None  # another program's
    if values is None:
        source = path.with_name('args.yaml')
        if not source.is_file():
            raise UserError(f'{path} does not say what it was trained with, and there is no {source} either')
        values = read_file(source, trusted=True)
    if unknown := set() if content.get('is_foreign') else values.keys() - {*FIELDS, 'task_knobs'}:
        raise UserError(f'{source} has a recipe of another version of timm_rs: it has '
                        f'{", ".join(sorted(map(str, unknown)))}')
    if content.get('is_foreign'):
        values = {name: value for name, value in values.items() if value is not None and name in FIELDS
                  and not FIELDS[name].metadata['block']} | dict(data_dir=values.get('data_dir') or values.get('data'))
    return taken_recipe(values, source, trusted)


def taken_recipe(values: dict[str, Any], source: Path, trusted: bool) -> Recipe:
    """The recipe that comes with weights, in `source`: what it says of numbers, and of names within timm and timm_rs.

    A `trusted` one is taken whole. Raises RecipeError for a value that a recipe cannot have, and UserError for a model
    or task that is nothing without code of others, or a model that would have to be fetched.
    """
    where = f'the recipe in {source}'
    checked = {name: check_value(name, value, where) for name, value in values.items()
               if name in FIELDS and (trusted or is_taken(name))}
    recipe = Recipe(**checked, task_knobs=values.get('task_knobs') or {})
    with blaming(f'{where} cannot be used'):
        to_yaml(recipe)  # which only plain values become
    if trusted:
        return recipe
    modules = [name for name in named_code(values) if name != recipe.task.partition(':')[0]]
    for name, what in ((recipe.model, 'model'), (recipe.task, 'task')):
        if ':' in name or what == 'model' and modules and not timm.is_model(name.partition('.')[0]):
            needs = f', made by {", ".join(modules)}' if modules and ':' not in name else ''
            raise UserError(f'{source} is of the {what} {name}{needs}: nothing is imported or fetched because a file '
                            'of weights says so; if that file is yours, say --trust')
    ours = [name for name in recipe.device_modules or () if name == BLOCK]
    kwargs = {name: value for name, value in recipe.model_kwargs.items() if name not in NOT_OF_MODELS}
    return dataclasses.replace(recipe, model_kwargs=kwargs, device_modules=ours or None)


def is_taken(name: str) -> bool:
    """Whether a knob comes with weights: a number, a switch, a word of a fixed list, or one of `TEXTS`."""
    kind, element, _ = value_type(name)
    is_number = {kind, element} & {int, float} or kind is bool and name != 'dataset_trust_remote_code'
    return bool(is_number or FIELDS[name].metadata['choices'] or name in TEXTS)


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
