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
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import distribute_bn, random_seed
from torch import nn

import timm_rs
from timm_rs.data.bad_samples import BadSamples, default_limit
from timm_rs.data.class_names import write_class_names
from timm_rs.data.datasets import class_to_index, create_datasets, write_digits
from timm_rs.data.loader import create_eval_loader, create_train_loader
from timm_rs.device import create_device
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.files import atomic_write
from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import to_yaml
from timm_rs.training.build import build_model, create_training
from timm_rs.training.checkpoint import BEST, SUFFIX, Checkpoints, describe, load_weights, read_checkpoint
from timm_rs.training.engine import NonFiniteError, evaluate, train_updates, updates_per_epoch
from timm_rs.training.faults import explain
from timm_rs.training.interruption import Interruption, Stopped
from timm_rs.training.resume import checkpoint_state, resume
from timm_rs.training.runlog import Progress, Summary, prepare_folder
from timm_rs.training.schedule import create_optimizer, create_schedule
from timm_rs.training.state import Place, Training


def main(argv: list[str] | None = None) -> None:
    parser = Parser(usage='%(prog)s --recipe FILE [--data-dir FOLDER] [--OPTION VALUE ...]', description=__doc__)
    parser.add_argument('--show', action='store_true', help='print every effective value and its source, then exit')
    parser.add_argument('--eval', metavar='CHECKPOINT', help='evaluate a checkpoint (its EMA, if any) and exit')
    add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    recipe, sources = resolve(arguments)
    if arguments.show:
        print(to_yaml(recipe, sources), end='')
        return

    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) and recipe.experiment and not recipe.resume:
        recipe = dataclasses.replace(recipe, resume='auto')  # torchrun has started the processes of this run again
    device = create_device(
        recipe.device, fall_back=sources['device'] == 'default', deterministic=recipe.deterministic,
        compile_cache=recipe.compile_cache)
    if device.fell_back:
        say(device, 'no CUDA GPU here: training on the CPU')
    wants_bfloat16 = recipe.amp and recipe.amp_dtype == 'bfloat16'
    if wants_bfloat16 and device.emulates_bfloat16 and sources['amp'] != 'command line':
        device.declines_bfloat16 = True
        say(device, 'this CPU has no bfloat16 arithmetic and would emulate it, about 12 times as slow: computing '
            'in float32 (--amp insists on bfloat16)')
    device.keep_freed_memory()
    random_seed(recipe.seed, device.rank)
    try:
        if arguments.eval:
            run_evaluation(Path(arguments.eval), recipe, device)
        else:
            run_training(recipe, device)
        if recipe.show_xla_metrics:
            say(device, device.metrics())
    finally:
        device.close()


def run_training(recipe: Recipe, device: Device) -> None:
    train_set, validation_set, recipe = build_data(recipe, device)
    model, data_config = build_model(recipe, device)
    train_loader = create_train_loader(train_set, recipe, data_config, model.num_classes, device)
    eval_loader = None
    if validation_set is not None:
        eval_loader = create_eval_loader(validation_set, recipe, data_config, model.num_classes, device)

    optimizer = create_optimizer(model, recipe, device.num_devices)
    num_updates = updates_per_epoch(len(train_loader), recipe)
    schedule, num_epochs = create_schedule(optimizer, recipe, num_updates)
    training = create_training(model, recipe, device, optimizer, schedule)

    folder = device.on_primary(lambda: prepare_folder(recipe, data_config))
    metric_name = f'eval_{recipe.eval_metric}' if eval_loader is not None else 'train_loss'
    checkpoints = Checkpoints(folder, recipe.checkpoint_hist, lower_is_better=metric_name.endswith('loss'))
    place, rows = resume(recipe, training, checkpoints, device, num_updates, len(train_set))
    if place.images and not train_loader.is_exact:
        place.start_epoch(place.epoch)
        say(device, f'timm\'s loader cannot go on within an epoch: epoch {place.epoch + 1} begins anew')
    device.prepare(model, optimizer, training.ema and training.ema.module)
    summary = Summary(folder / 'summary.csv', rows, place.epoch)
    bad_samples = BadSamples(
        folder / 'bad_samples.csv', default_limit(len(train_set)) if recipe.max_bad_samples is None else
        recipe.max_bad_samples, resumed=place.update > 0)
    if device.is_primary:
        with atomic_write(folder / 'args.yaml') as file:
            file.write(to_yaml(recipe))
        write_class_names(folder, class_to_index(train_set))
        summary.write()
    say(device, f'{recipe.model}: {count_parameters(model):.2f} M parameters, {data_config["input_size"][-1]} px, '
        f'{model.num_classes} classes, {len(train_set)} training images; lr {optimizer.defaults["lr"]:.4g}; '
        f'{device.num_devices} x {device.torch_device}; '
        + (f'epochs {place.epoch + 1} to {num_epochs}' if place.epoch < num_epochs else 'nothing left to train')
        + f'\neverything is written to {folder}')

    progress = Progress(num_updates, place.update, num_epochs, enabled=device.is_primary)
    interruption = Interruption(recipe.checkpoint_interval_minutes, recipe.recovery_interval)
    go_on = f'continue with --experiment {folder.name} --resume auto'
    unsaved = ''  # why the last attempt to save came to nothing

    def save(function: Callable[..., Any], *arguments: Any) -> None:
        """Save in the primary process; what prevents it is no reason to stop, the next attempt may succeed."""
        nonlocal unsaved
        state = checkpoint_state(training, recipe, device, place, summary.rows)
        unsaved = device.on_primary(partial(problem_of, function, state, *arguments))
        interruption.saved()
        if unsaved:
            progress.say(f'{unsaved}. Training goes on, and tries again at the next occasion')

    def heed(wanted: int) -> None:
        """Save within the epoch, or save and stop, when any process wants to."""
        wanted = device.agree(wanted)
        if wanted:
            save(checkpoints.save_recovery, place.epoch, place.update - place.epoch * num_updates)
        if wanted > 1:
            raise Stopped(wanted - 1)

    try:
        with interruption:
            while place.epoch < num_epochs:
                started = time.perf_counter()
                train_loader.set_epoch(place.epoch, place.images)
                if recipe.mixup_off_epoch and place.epoch >= recipe.mixup_off_epoch:
                    train_loader.stop_mixing()
                for reported in train_updates(training, train_loader, recipe, device, place, progress):
                    if reported:
                        note_bad_samples(train_loader, bad_samples, device, progress)
                    heed(interruption.wanted(place.update))
                epoch = place.epoch
                row: dict[str, Any] = {'epoch': epoch, 'train_loss': place.mean_loss}
                share_batch_norm(training, recipe, device, place)
                is_evaluated = (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == num_epochs
                if is_evaluated and eval_loader is not None:
                    row |= validate(training, eval_loader, recipe, device, lambda: heed(interruption.wanted()))
                    note_bad_samples(eval_loader, bad_samples, device, progress)
                row['lr'] = optimizer.param_groups[0]['lr']
                if schedule is not None:
                    schedule.step(epoch + 1, row.get(metric_name))
                place.start_epoch(epoch + 1)
                if is_evaluated:
                    summary.rows.append(row)
                    save(partial(save_epoch, checkpoints, summary), epoch, row[metric_name])
                progress.say(describe_epoch(row, num_epochs, time.perf_counter() - started))
    except NonFiniteError as error:
        good = next(iter(checkpoints.newest_first()), 'none, it was too early')
        raise UserError(f'{error}; the last good checkpoint: {good}') from error
    except Stopped as stop:
        progress.say(f'stopped by {stop.signal_name} in epoch {place.epoch + 1}; {unsaved or go_on}')
        raise
    except Exception as error:
        raise (explain(error, recipe, device, go_on) or error) from None
    finally:
        progress.close()
    if device.is_primary:
        summary.draw(folder / 'curves.png')
        if unsaved:
            raise UserError(unsaved)
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


def validate(
        training: Training, loader: Any, recipe: Recipe, device: Device, heed: Callable[[], None]) -> dict[str, float]:
    """The summary's columns eval_*: of the weights, or of their average when one is kept (then eval_raw_* besides)."""
    raw = evaluate(training.model, loader, recipe, device, heed=heed)
    averaged = raw if training.ema is None else evaluate(
        training.ema.module, loader, recipe, device, label='evaluate EMA', heed=heed)
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


def save_epoch(checkpoints: Checkpoints, summary: Summary, state: dict[str, Any], epoch: int, metric: float) -> None:
    checkpoints.save(state, epoch, metric)
    summary.write()


def problem_of(function: Callable[..., Any], *arguments: Any) -> str:
    """What the person at the keyboard must know of calling `function`; empty when all went well."""
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return ''


def describe_epoch(row: dict[str, Any], num_epochs: int, seconds: float) -> str:
    scores = '  '.join(f'{name} {value:.4g}' for name, value in row.items() if name not in ('epoch', 'lr'))
    return f'epoch {row["epoch"] + 1}/{num_epochs} done in {seconds:.1f} s:  {scores}'


def share_batch_norm(training: Training, recipe: Recipe, device: Device, place: Place) -> None:
    """Give all processes the same batch-norm statistics: the mean over them, or the primary's (`dist_bn`)."""
    if device.keeps_replicas and recipe.dist_bn and not place.is_bn_shared:
        for model in filter(None, (training.model, training.ema and training.ema.module)):
            distribute_bn(model, device.world_size, recipe.dist_bn == 'reduce')
        place.is_bn_shared = True


def say(device: Device, text: str) -> None:
    if device.is_primary:
        print(text, flush=True)


def count_parameters(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
