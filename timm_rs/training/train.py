"""A whole run: training, from a recipe to its last epoch, or an evaluation of a checkpoint."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import random_seed

import timm_rs
from timm_rs.data.identity import known_classes, num_present
from timm_rs.data.loader import create_eval_loader
from timm_rs.device import create_device
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.files import atomic_write, make_folder
from timm_rs.models.complexity import count_parameters
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.tasks.task import Task
from timm_rs.training.answers import Answers, open_answers
from timm_rs.training.build import build_data, build_model, build_training, create_step_settings
from timm_rs.training.checkpoint import SUFFIX, checkpoint_in, describe, load_weights, read_checkpoint
from timm_rs.training.engine import evaluate, share_batch_norm, train_updates, validate
from timm_rs.training.measured import create_record
from timm_rs.training.run import open_run


def create_run_task(recipe: Recipe, sources: dict[str, str]) -> tuple[Recipe, Task]:
    """The task, and the recipe with all its knobs. Raises UserError as `create_task` does."""
    task = create_task(recipe, sources)
    if task.knobs:
        recipe = dataclasses.replace(recipe, task_knobs={task.name: dataclasses.asdict(task.knobs)})
    return recipe, task


@contextlib.contextmanager
def open_device(recipe: Recipe, sources: dict[str, str]) -> Iterator[Device]:
    """The device of a run, and its random generators seeded; `sources` says what the recipe insists on."""
    device = create_device(
        recipe.device, fall_back=sources['device'] == 'default', deterministic=recipe.deterministic,
        compile_cache=recipe.compile_cache)
    if device.fell_back:
        device.say('no CUDA GPU here: training on the CPU')
    wants_bfloat16 = recipe.amp and recipe.amp_dtype == 'bfloat16'
    if wants_bfloat16 and device.emulates_bfloat16 and sources['amp'] != 'command line':
        device.declines_bfloat16 = True
        device.say('this CPU has no bfloat16 arithmetic and would emulate it, about 12 times as slow: computing '
            'in float32 (--amp insists on bfloat16)')
    device.keep_freed_memory()
    random_seed(recipe.seed, device.rank)
    try:
        yield device
        if recipe.show_xla_metrics:
            device.say(device.metrics())
    finally:
        device.close()


def run_training(recipe: Recipe, task: Task, device: Device,
                 on_epoch: Callable[[dict[str, Any]], object] = lambda row: None) -> Path:
    """Train, and give the run's folder. `on_epoch` hears what is in summary.csv of every epoch, in each process."""
    known, source = None, ''
    # Images and clips have no classes in common.
    if (start := recipe.initial_checkpoint) and task.starts_with_classes and not recipe.inflate:
        known = known_classes(read_checkpoint(start), start)
        source = f'{start} (--pretrained-path takes its weights without its classes)'
    train_set, validation_set, recipe = build_data(recipe, task, device, known=known, source=source)
    training = build_training(recipe, device, task, train_set)
    train_loader, eval_loader = training.train_loader, None
    if validation_set is not None:
        eval_loader = create_eval_loader(
            validation_set, recipe, training.data_config, task, training.model.num_classes, device)
    run = open_run(recipe, training, device, train_set, validation_set, eval_loader)
    position = run.position
    with run:
        for epoch in run.epochs():
            train_loader.set_epoch(epoch, position.images)
            if recipe.mixup_off_epoch and epoch >= recipe.mixup_off_epoch:
                train_loader.stop_mixing()
            for reported in train_updates(training, train_loader, device, position, run.progress):
                run.after_update(reported)
            row = {'epoch': epoch, 'train_loss': position.mean_loss}
            if position.share_right is not None:
                row[f'train_{task.metrics[0].name}'] = position.share_right
            share_batch_norm(training, recipe.dist_bn, device, position)
            is_evaluated = (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == training.num_epochs
            if is_evaluated and eval_loader is not None:
                row |= validate(training, eval_loader, device, run.heed, run.answers)
                run.note_bad_samples(eval_loader)
            run.finish_epoch(row, is_evaluated)
            on_epoch(row)
    return run.folder


def run_evaluation(path: Path, recipe: Recipe, task: Task, device: Device, folder: str | None = None
                   ) -> dict[str, Any]:
    """Print and give the metrics of a checkpoint on validation data; write them as JSON, and what is said of images.

    Into `folder`, by default that of the checkpoint.
    """
    if not recipe.val_split:
        raise UserError('--eval needs a validation split; val_split is empty')
    path = checkpoint_in(path)
    content = read_checkpoint(path)
    _, validation_set, recipe = build_data(
        recipe, task, device, need_training=False, known=known_classes(content, path), source=str(path))
    model, data_config = build_model(recipe, device, task)
    data_config = task.eval_config(data_config)
    weights = 'state_dict_ema' if content.get('state_dict_ema') else 'state_dict'
    load_weights(model, content[weights], describe(path, content))
    loader = create_eval_loader(validation_set, recipe, data_config, task, model.num_classes, device)
    answers = open_answers(task, loader, task.classes(validation_set), model.num_classes, device)
    metrics = evaluate(model, loader, task, create_step_settings(recipe), device, answers=answers)
    said = None if answers is None else answers.gather()
    bad = dict(device.gather(loader.take_problems()))
    results = dict(
        model=recipe.model, weights='ema' if weights == 'state_dict_ema' else 'raw', **task.results(metrics),
        num_samples=metrics['num_samples'], num_bad=len(bad), param_count=round(count_parameters(model), 2),
        img_size=data_config['input_size'][-1],
        **create_record(recipe, data_config, num_present(validation_set) or model.num_classes, path,
                        content.get('args')),
        versions=dict(timm_rs=timm_rs.__version__, timm=timm.__version__, torch=torch.__version__))
    if device.is_primary:
        for name, reason in bad.items():
            print(f'bad sample, not counted: {name}: {reason}')
        output = Path(folder or path.parent, path.name.removesuffix(SUFFIX) + '.eval')
        what = f'{metrics["num_samples"]} {task.noun}s at {results["img_size"]} px'
        print('  '.join([*(metric.text(metrics[metric.name]) for metric in task.metrics),
                         f'({results["weights"]} weights, {what})', f'{output}.json']))
        _write_evaluation(output, results, answers, said)
    return results


def _write_evaluation(output: Path, results: dict[str, Any], answers: Answers | None, said: Any) -> None:
    """`output`.json and, with `answers`, a folder of that name. Raises UserError where they cannot be written."""
    try:
        make_folder(output.parent)
        with atomic_write(f'{output}.json') as file:
            json.dump(results, file, indent=2)
        if answers is not None and said is not None:
            answers.write(output, said)
            answers.draw(output, said)
    except OSError as error:
        raise UserError(f'{output}.json cannot be written: {error.strerror}; give another folder, --eval-output '
                        'FOLDER') from error
    if answers is not None:
        print(f'what it says of each image, and its mistakes: {output}')
