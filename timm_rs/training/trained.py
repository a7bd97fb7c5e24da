"""A model as a run left it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from timm_rs.data.class_names import read_class_names
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.files import read_csv
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks import create_task
from timm_rs.tasks.task import Task
from timm_rs.training.build import build_model
from timm_rs.training.checkpoint import BEST, LAST, SUFFIX, describe, load_weights, read_checkpoint

MEASURED = ('summary.csv', 'eval.json')


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
        metrics: those of the task on the validation split, as far as they were measured.
        images: number of validation images behind `metrics`, where known.
        class_names: by class index, where the run recorded them.
        files: what goes along unchanged, name on the Hub -> path.
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
    metrics, images = _measured(
        files, [metric.name for metric in task.metrics], epoch, weights, averages='state_dict_ema' in content)
    if not images:
        files.pop('eval.json', None)  # it measured other weights
    return Trained(model.eval(), recipe, task, data_config, weights, None if epoch is None else epoch + 1,
                   metrics, images, files, read_class_names(path.parent, model.num_classes))


def checkpoint_in(path: Path) -> Path:
    """`path`, or in the folder of a run its best checkpoint. Raises UserError for a folder without any."""
    if not path.is_dir():
        return path
    found = [path / name for name in (BEST, LAST) if (path / name).is_file()]
    if not found:
        raise UserError(f'{path} holds no {BEST}: give the folder of a run of train.py, or a checkpoint')
    return found[0]


def _recipe_of(path: Path, content: dict[str, Any]) -> Recipe:
    """What the checkpoint says it was trained with, otherwise the args.yaml beside it."""
    values, source = content.get('args'), path
    if not isinstance(values, dict):
        source = path.with_name('args.yaml')
        if not source.is_file():
            raise UserError(f'{path} does not say what it was trained with, and there is no {source} either')
        values = read_file(source)
    unknown = values.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise UserError(f'{source} has a recipe of another version of timm_rs: it has {", ".join(sorted(unknown))}')
    return Recipe(**values)


def _measured(
        files: dict[str, Path], metrics: list[str], epoch: int | None, weights: str, averages: bool
) -> tuple[dict[str, float], int | None]:
    """Metrics of these weights, and the number of images if they come from a later evaluation of the checkpoint."""
    try:
        if 'eval.json' in files:
            content = json.loads(files['eval.json'].read_text())
            if content['weights'] == weights:
                return {name: float(content[name]) for name in metrics}, int(content['num_samples'])
        if 'summary.csv' in files:
            prefix = 'eval_raw_' if averages and weights == 'raw' else 'eval_'
            row = next((row for row in read_csv(files['summary.csv']) if row['epoch'] == str(epoch)), {})
            return {name: float(row[prefix + name]) for name in metrics if row.get(prefix + name)}, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged = ' or '.join(str(file) for file in files.values())
        raise UserError(f'{damaged} is damaged ({error!r}): mend it, or move it away to publish without') from None
    return {}, None
