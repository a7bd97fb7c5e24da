#!/usr/bin/env python
"""Train, or evaluate, an image classifier from a recipe.

examples:
  python train.py --recipe train_recipes/quickstart.yaml
  python train.py --recipe train_recipes/rs50.yaml --data-dir imagenet
  python train.py --recipe train_recipes/rs50.yaml --show
  python train.py --recipe train_recipes/rs50.yaml --data-dir imagenet --eval output/train/run/model_best.pth.tar
  torchrun --nproc-per-node 8 train.py --recipe train_recipes/rs350.yaml --data-dir imagenet \\
      --experiment rs350 --resume auto
"""

import dataclasses
import datetime
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import safe_model_name
from timm.utils import distribute_bn, random_seed
from torch import nn

import timm_rs
from timm_rs.atomic import atomic_write
from timm_rs.data.bad_samples import BadSamples, default_limit
from timm_rs.data.datasets import create_datasets, write_digits
from timm_rs.data.loader import create_eval_loader, create_train_loader
from timm_rs.device import Device
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe import Parser, Recipe, add_recipe_arguments, resolve, to_yaml
from timm_rs.training.build import build_model, compile_and_distribute
from timm_rs.training.checkpoint import (
    BEST,
    LAST,
    SUFFIX,
    Checkpoints,
    checkpoint_state,
    describe,
    load_weights,
    read_checkpoint,
    resume,
)
from timm_rs.training.ema import create_ema
from timm_rs.training.engine import Training, amp_dtype, create_loss, evaluate, train_one_epoch, updates_per_epoch
from timm_rs.training.runlog import Progress, Summary
from timm_rs.training.schedule import create_optimizer, create_schedule


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog='train.py', usage='train.py --recipe FILE [--data-dir FOLDER] [--OPTION VALUE ...]', description=__doc__)
    parser.add_argument('--show', action='store_true', help='print every effective value and its source, then exit')
    parser.add_argument('--eval', metavar='CHECKPOINT', help='evaluate a checkpoint (its EMA, if any) and exit')
    add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    recipe, sources = resolve(arguments)
    if arguments.show:
        print(to_yaml(recipe, sources), end='')
        return

    device = Device(recipe.device, fall_back=sources['device'] == 'default')
    if device.fell_back and device.is_primary:
        print('no CUDA GPU here: training on the CPU')
    random_seed(recipe.seed, device.rank)
    try:
        if arguments.eval:
            run_evaluation(Path(arguments.eval), recipe, device)
        else:
            run_training(recipe, device)
    finally:
        device.close()


def run_training(recipe: Recipe, device: Device) -> None:
    train_set, validation_set, recipe = build_data(recipe, device)
    model, data_config = build_model(recipe, device)
    train_loader = create_train_loader(train_set, recipe, data_config, model.num_classes, device)
    eval_loader = None
    if validation_set is not None:
        eval_loader = create_eval_loader(validation_set, recipe, data_config, model.num_classes, device)

    optimizer = create_optimizer(model, recipe, device.world_size)
    num_updates = updates_per_epoch(len(train_loader), recipe)
    schedule, num_epochs = create_schedule(optimizer, recipe, num_updates)
    # The average comes after wrapping, which gives every process the primary's initial weights.
    training = Training(
        model=model, wrapped=compile_and_distribute(model, recipe, device), optimizer=optimizer, schedule=schedule,
        loss=create_loss(recipe).to(device.torch_device), scaler=device.grad_scaler(amp_dtype(recipe)),
        ema=create_ema(model, recipe))

    folder = device.on_primary(lambda: prepare_folder(recipe, data_config))
    metric_name = f'eval_{recipe.eval_metric}' if eval_loader is not None else 'train_loss'
    checkpoints = Checkpoints(folder, recipe.checkpoint_hist, lower_is_better=metric_name.endswith('loss'))
    first_epoch = resume(recipe, training, checkpoints, device, num_updates)
    summary = Summary(folder / 'summary.csv', first_epoch)
    bad_samples = BadSamples(
        folder / 'bad_samples.csv', default_limit(len(train_set)) if recipe.max_bad_samples is None else
        recipe.max_bad_samples, resumed=first_epoch > 0)
    if device.is_primary:
        with atomic_write(folder / 'args.yaml') as file:
            file.write(to_yaml(recipe))
        print(f'{recipe.model}: {count_parameters(model):.2f} M parameters, {data_config["input_size"][-1]} px, '
              f'{model.num_classes} classes, {len(train_set)} training images; lr {optimizer.defaults["lr"]:.4g}; '
              f'{device.world_size} x {device.torch_device}; '
              + (f'epochs {first_epoch + 1} to {num_epochs}' if first_epoch < num_epochs else 'nothing left to train')
              + f'\neverything is written to {folder}', flush=True)

    progress = Progress(num_updates, first_epoch, num_epochs, enabled=device.is_primary)
    try:
        for epoch in range(first_epoch, num_epochs):
            started = time.perf_counter()
            train_loader.set_epoch(epoch)
            if recipe.mixup_off_epoch and epoch >= recipe.mixup_off_epoch:
                train_loader.stop_mixing()
            train_loss = train_one_epoch(
                training, train_loader, recipe, device, epoch, progress,
                partial(note_bad_samples, train_loader, bad_samples, device, progress))
            row: dict[str, Any] = {'epoch': epoch, 'train_loss': train_loss}
            share_batch_norm(training, recipe, device)
            if (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == num_epochs:
                if eval_loader is not None:
                    row |= validate(training, eval_loader, recipe, device)
                    note_bad_samples(eval_loader, bad_samples, device, progress)
                row['lr'] = optimizer.param_groups[0]['lr']
                state = checkpoint_state(training, recipe, device)
                device.on_primary(partial(save_epoch, checkpoints, summary, state, row, metric_name))
            progress.say(describe_epoch(row, num_epochs, time.perf_counter() - started))
            if schedule is not None:
                schedule.step(epoch + 1, row.get(metric_name))
    except KeyboardInterrupt:
        progress.say(f'stopped in epoch {epoch + 1}' + (
            f'; continue with --resume {folder / LAST}' if (folder / LAST).exists() else ''))
        raise
    finally:
        progress.close()
    if device.is_primary:
        summary.draw(folder / 'curves.png')
        if checkpoints.best:
            epoch, metric = checkpoints.best
            print(f'best {metric_name} {metric:.4g} in epoch {epoch + 1}: {folder / BEST}')


def run_evaluation(path: Path, recipe: Recipe, device: Device) -> None:
    """Print loss, top-1 and top-5 of a checkpoint on the validation split; write them beside it as JSON."""
    _, validation_set, recipe = build_data(recipe, device, need_training=False)
    if validation_set is None:
        raise UserError('--eval needs a validation split; val_split is empty')
    model, data_config = build_model(recipe, device)
    content = read_checkpoint(path)
    weights = 'state_dict_ema' if content.get('state_dict_ema') else 'state_dict'
    load_weights(model, content[weights], describe(path, content))
    loader = create_eval_loader(validation_set, recipe, data_config, model.num_classes, device)
    metrics = evaluate(model, loader, recipe, device)
    bad = dict(device.gather(loader.take_problems()))
    results = dict(
        model=recipe.model, checkpoint=path.name, weights='ema' if weights == 'state_dict_ema' else 'raw',
        top1=metrics['top1'], top1_err=100 - metrics['top1'], top5=metrics['top5'], top5_err=100 - metrics['top5'],
        loss=metrics['loss'], num_samples=metrics['num_samples'], param_count=round(count_parameters(model), 2),
        img_size=data_config['input_size'][-1], crop_pct=data_config['crop_pct'],
        interpolation=data_config['interpolation'],
        versions=dict(timm_rs=timm_rs.__version__, timm=timm.__version__, torch=torch.__version__))
    if device.is_primary:
        for name, reason in bad.items():
            print(f'bad sample, not counted: {name}: {reason}')
        output = path.with_name(path.name.removesuffix(SUFFIX) + '.eval.json')
        print(f'top-1 {metrics["top1"]:.3f} %  top-5 {metrics["top5"]:.3f} %  loss {metrics["loss"]:.4f}  '
              f'({results["weights"]} weights, {metrics["num_samples"]} images at {results["img_size"]} px)  {output}')
        try:
            with atomic_write(output) as file:
                json.dump(results, file, indent=2)
        except OSError as error:
            raise UserError(f'{output} cannot be written: {error.strerror}') from error


def build_data(recipe: Recipe, device: Device, need_training: bool = True) -> tuple[Any, Any, Recipe]:
    """Training and validation dataset, and the recipe with `data_dir` and `num_classes` filled in from the data."""
    if recipe.builtin_data == 'digits' and not recipe.data_dir and not recipe.dataset:
        recipe = dataclasses.replace(recipe, data_dir=str(device.on_primary(write_digits)))
    train_set, validation_set, num_classes = create_datasets(recipe, need_training)
    return train_set, validation_set, dataclasses.replace(recipe, num_classes=recipe.num_classes or num_classes)


def prepare_folder(recipe: Recipe, data_config: dict[str, Any]) -> Path:
    """The run's folder, made and proved writable. A resumed run stays where it was."""
    size = data_config['input_size'][-1]
    name = recipe.experiment or f'{datetime.datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(recipe.model)}-{size}'
    folder = Path(recipe.output or 'output/train', name)
    if recipe.resume == 'auto' and not recipe.experiment:
        raise UserError('--resume auto needs --experiment NAME, to know which run to continue')
    if recipe.resume not in ('', 'auto') and not recipe.experiment and not recipe.output:
        folder = Path(recipe.resume).parent
    number = 1
    while not (recipe.experiment or recipe.resume) and folder.exists():  # another run began within this second
        number += 1
        folder = folder.with_name(f'{name}-{number}')
    if not recipe.resume and (folder / LAST).exists():
        raise UserError(f'{folder} already holds a run; continue it with --resume auto, or choose another --experiment')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'output folder {folder} cannot be written: {error.strerror}; change --output') from None
    return folder


def validate(training: Training, loader: Any, recipe: Recipe, device: Device) -> dict[str, float]:
    """The summary's columns eval_*: of the weights, or of their average when one is kept (then eval_raw_* besides)."""
    raw = evaluate(training.model, loader, recipe, device)
    averaged = raw if training.ema is None else evaluate(
        training.ema.module, loader, recipe, device, label='evaluate EMA')
    row = {f'eval_{name}': averaged[name] for name in ('loss', 'top1', 'top5')}
    return row if averaged is raw else row | {f'eval_raw_{name}': raw[name] for name in ('loss', 'top1', 'top5')}


def note_bad_samples(loader: Any, bad_samples: BadSamples, device: Device, progress: Progress) -> None:
    """Name bad files that `loader` met in any process, each once. Raises UserError when there are too many."""
    problems = device.gather(loader.take_problems())

    def note() -> None:
        for name, reason in problems:
            if bad_samples.add(name, reason):
                progress.say(f'bad sample, left out: {name}: {reason}')
        bad_samples.check()
    device.on_primary(note)


def save_epoch(
        checkpoints: Checkpoints, summary: Summary, state: dict[str, Any], row: dict[str, Any], metric: str) -> None:
    checkpoints.save(state, row['epoch'], row[metric])
    summary.add(row)


def describe_epoch(row: dict[str, Any], num_epochs: int, seconds: float) -> str:
    scores = '  '.join(f'{name} {value:.4g}' for name, value in row.items() if name not in ('epoch', 'lr'))
    return f'epoch {row["epoch"] + 1}/{num_epochs} done in {seconds:.1f} s:  {scores}'


def share_batch_norm(training: Training, recipe: Recipe, device: Device) -> None:
    """Give all processes the same batch-norm statistics: the mean over them, or the primary's (`dist_bn`)."""
    if device.is_distributed and recipe.dist_bn:
        for model in filter(None, (training.model, training.ema and training.ema.module)):
            distribute_bn(model, device.world_size, recipe.dist_bn == 'reduce')


def count_parameters(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


if __name__ == '__main__':
    with exit_on_user_error():
        main()
