"""What a checkpoint holds of a run, and going on from it."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.scheduler import PlateauLRScheduler
from torch import nn
from torch.nn.functional import pad

from timm_rs.data.identity import changes, check_same_classes, known_classes
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import changed_knobs
from timm_rs.training.checkpoint import Checkpoints, describe, load_weights, read_checkpoint
from timm_rs.training.state import UNKNOWN, Position, Training


def random_state() -> dict[str, Any]:
    """All random states of this process (Python, NumPy, torch CPU, CUDA and MPS), as tensors and numbers."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return dict(
        python=[version, torch.tensor(words), gauss],
        numpy=[torch.from_numpy(numpy_state['state']['key'].astype(np.int64)), int(numpy_state['state']['pos']),
               int(numpy_state['has_gauss']), float(numpy_state['gauss'])],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **(dict(mps=torch.mps.get_rng_state()) if torch.backends.mps.is_available() else {}))


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo to the moment of `random_state()`; CUDA states are restored where the number of GPUs is the same."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    key, position, has_gauss, cached = state['numpy']
    np.random.set_state(('MT19937', key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'])
    if torch.cuda.is_available() and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])
    if torch.backends.mps.is_available() and 'mps' in state:
        torch.mps.set_rng_state(state['mps'])


def checkpoint_state(
        training: Training, device: Device, position: Position, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint holds besides epoch and metric: under timm's key names what timm knows, and what it does not.

    All processes must call it together. `rows` are those of the summary.
    """
    device.flush()
    if device.is_asynchronous:
        position.skipped_in_a_row = round(device.to_cpu(training.in_a_row).item())
    own = dict(random_state=random_state(), unreported=training.unreported.cpu())
    if device.keeps_replicas:  # batch norm and its average differ from process to process
        own |= {name: {key: value.cpu() for key, value in model.named_buffers()}
                for name, model in _models(training).items()}
    state = dict(
        **training.origin, version=2, state_dict=training.model.state_dict(),
        optimizer=training.optimizer.state_dict(), place=dataclasses.asdict(position), summary=rows,
        processes=device.gather([own]))
    if training.average is not None:
        state['state_dict_ema'] = training.average.state_dict()
    if training.scaler.is_enabled():
        state['amp_scaler'] = training.scaler.state_dict()
    if isinstance(training.schedule, PlateauLRScheduler):  # all others follow from the number of updates
        state['schedule'] = training.schedule.state_dict()
    return device.to_cpu(state)  # type: ignore[no-any-return]


def _models(training: Training) -> dict[str, nn.Module]:
    return dict(model=training.model) | (dict(ema=training.average) if training.average is not None else {})


def resume(
        recipe: Recipe, training: Training, checkpoints: Checkpoints, device: Device, num_images: int
) -> tuple[Position, list[dict[str, Any]] | None]:
    """Restore the run from `recipe.resume`; returns where to go on, and the summary's rows so far (None: not known).

    With `auto` that is the newest checkpoint of the run that is whole, or the beginning. A checkpoint of another
    number of processes, or of another batch size, keeps its place in the data. Raises UserError when nothing fits,
    when the folder has a checkpoint that is further, and when the recipe is not that of the checkpoint, unless
    `allow_recipe_change`.
    """
    path, content = _choose(recipe.resume, checkpoints, device)
    if path is None:
        epoch = recipe.start_epoch or 0
        position = Position(epoch=epoch, update=epoch * training.updates_per_epoch)
        _set_schedule(training, position, content)
        return position, None
    try:
        return _resume_from(path, content, recipe, training, checkpoints, device, num_images)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise UserError(f'{describe(path, content)} cannot be resumed, it may be of another program or version '
                        f'({type(error).__name__}: {error})') from error


def _resume_from(
        path: Path, content: dict[str, Any], recipe: Recipe, training: Training, checkpoints: Checkpoints,
        device: Device, num_images: int) -> tuple[Position, list[dict[str, Any]] | None]:
    source = describe(path, content)
    if 'optimizer' not in content or 'epoch' not in content:
        raise UserError(f'checkpoint {path} holds weights only; start from it with --initial-checkpoint')
    if content.get('is_foreign') and not recipe.no_resume_opt:
        raise UserError(f'{source} is of another program, which saves no random states, so that its run cannot go on '
                        'exactly: start from its weights with --initial-checkpoint, or go on at its epoch with '
                        '--no-resume-opt, a fresh optimizer')
    now = training.origin['data']
    check_same_classes(known_classes(content, path) or {}, now['classes'], source)
    if not (recipe.allow_recipe_change or recipe.no_resume_opt):
        changed = changes(content['data'], now) if 'data' in content else []
        _check_recipe(training.origin['args'], content.get('args') or {}, source, changed)
    training.origin['base_model'] = content.get('base_model') or training.origin['base_model']
    load_weights(training.model, content['state_dict'], source)
    if training.ema is not None:
        load_weights(training.ema.module, content.get('state_dict_ema') or content['state_dict'], source)
    if not recipe.no_resume_opt:
        try:
            _load_optimizer(training.optimizer, content['optimizer'])
        except (ValueError, KeyError) as error:
            raise UserError(f'the optimizer state in {path} does not fit --opt {recipe.opt} ({error}); '
                            'resume the weights alone with --no-resume-opt') from error
        if training.scaler.is_enabled() and 'amp_scaler' in content:
            training.scaler.load_state_dict(content['amp_scaler'])

    position = Position(**content.get('place') or dict(epoch=content['epoch'] + 1))
    if position.images and 'right' not in content['place']:  # of a version that did not count them
        position.right = UNKNOWN
    if recipe.start_epoch is not None:
        position.start_epoch(recipe.start_epoch)
    rows = [row for row in content['summary'] if int(row['epoch']) < position.epoch] if 'summary' in content else None
    before, now = content.get('global_batch'), training.origin['global_batch']
    if before != now or recipe.start_epoch is not None:
        position.update = round((position.epoch + position.images / num_images) * training.updates_per_epoch)
    _set_schedule(training, position, content)
    if recipe.resume != 'auto' or recipe.start_epoch is not None:
        device.on_primary(lambda: checkpoints.refuse_to_go_back((position.epoch, position.images)))
    if path.parent.resolve() == checkpoints.folder.resolve():
        device.on_primary(lambda: checkpoints.restore(path, content))
    if device.is_primary:
        print(f'resuming from {source}')
        if before not in (None, now):
            print(f'an update now takes {now} images instead of {before}; the place in the data is kept')

    processes = content.get('processes') or []
    if len(processes) == device.world_size:  # last, so that nothing draws random numbers between this and training
        own = processes[device.rank]
        training.unreported = device.put(pad(own['unreported'], (0, 4 - len(own['unreported']))))
        for name, model in _models(training).items():
            for key, value in model.named_buffers():
                if key in own.get(name, {}):
                    value.copy_(own[name][key])
        restore_random_state(own['random_state'])
    return position, rows


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from `state`, with the kernels that were chosen for this device: a GPU's run may go on elsewhere."""
    groups = [saved | {name: own[name] for name in ('foreach', 'fused', 'capturable') if name in own}
              for saved, own in zip(state['param_groups'], optimizer.param_groups, strict=True)]
    optimizer.load_state_dict(dict(state, param_groups=groups))


def _set_schedule(training: Training, position: Position, content: dict[str, Any]) -> None:
    if training.schedule is None:
        return
    if 'schedule' in content:
        training.schedule.load_state_dict(content['schedule'])
        return
    if position.epoch:
        training.schedule.step(position.epoch)
    if position.update:
        training.schedule.step_update(position.update)


def _choose(wanted: str, checkpoints: Checkpoints, device: Device) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume and its content; all processes take the same one."""
    if wanted != 'auto':
        path = Path(wanted) if wanted else None
        return path, read_checkpoint(path) if path else {}

    def newest_whole() -> Path | None:
        problems = []
        for path in checkpoints.newest_first():
            try:
                read_checkpoint(path)
            except UserError as error:
                problems.append(str(error))
                print(f'{error}; trying the one before')
                continue
            return path
        if problems:
            raise UserError(f'no checkpoint of the run in {checkpoints.folder} is whole; the newest: {problems[0]}')
        return None
    path = device.on_primary(newest_whole)
    return path, read_checkpoint(path) if path else {}


def _check_recipe(now: dict[str, Any], before: dict[str, Any], source: str, changed: list[str]) -> None:
    changed = changed + changed_knobs(before, now)
    if changed:
        raise UserError(f'the recipe is not that of {source}: {", ".join(changed)}; give the same values, or insist '
                        'with --allow-recipe-change')
