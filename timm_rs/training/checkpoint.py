"""Checkpoints in timm's layout: written atomically, loaded without running code, refused when they do not fit."""

import contextlib
import dataclasses
import math
import os
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import clean_state_dict
from timm.scheduler import PlateauLRScheduler
from torch import nn

from timm_rs.device import Device
from timm_rs.errors import UserError
from timm_rs.files import atomic_link, atomic_write, sha256_of
from timm_rs.recipe import Recipe
from timm_rs.training.state import Place, Training

SUFFIX = '.pth.tar'
LAST, BEST = 'last' + SUFFIX, 'model_best' + SUFFIX


class Checkpoints:
    """The checkpoints of a run: `last`, `model_best`, the `keep` best `checkpoint-N`, `recovery-E-U` within epochs.

    Names are timm's. Beside each lies its SHA-256, as sha256sum writes it. The best and the newest are never removed.
    """

    def __init__(self, folder: Path, keep: int, lower_is_better: bool):
        self.folder, self.keep = folder, keep
        self.sign = -1 if lower_is_better else 1
        self.history: list[tuple[int, float]] = []  # (epoch, metric) of the checkpoints kept, best first

    @property
    def best(self) -> tuple[int, float] | None:
        return self.history[0] if self.history else None

    def newest_first(self) -> list[Path]:
        """All checkpoints of the run that it can go on from."""
        found = {path: path.stat().st_mtime_ns for name in (LAST, f'checkpoint-*{SUFFIX}', f'recovery-*{SUFFIX}')
                 for path in self.folder.glob(name)}
        return sorted(found, key=lambda path: (-found[path], path.name != LAST))

    def restore(self, path: Path, content: dict[str, Any]) -> None:
        """Continue the ranking of the run that wrote `content` to `path`, and finish what a kill cut short."""
        history = [(int(epoch), float(metric)) for epoch, metric in content.get('history', [])]
        epochs = [epoch for epoch, _ in history]
        with self._errors(path):
            if not _digest_path(path).exists():
                _write_digest(path)
            if path.name == LAST and content['epoch'] in epochs:
                self._link(path, content['epoch'], is_best=epochs[0] == content['epoch'])
        self.history = [entry for entry in history if self._path(entry[0]).exists()]

    def save(self, state: dict[str, Any], epoch: int, metric: float) -> None:
        """Write `state` (plain tensors, numbers, text, lists and dicts) as the checkpoint of `epoch`.

        Raises UserError when it cannot be written; earlier checkpoints stay as they were.
        """
        known = [entry for entry in self.history if entry[0] != epoch and self._path(entry[0]).exists()]
        ranking = sorted([*known, (epoch, metric)], key=self._rank)
        kept, dropped = ranking[:self.keep], ranking[self.keep:]
        last = self.folder / LAST
        with self._errors(last):
            self._write(last, state | dict(epoch=epoch, metric=metric, history=[list(entry) for entry in kept]))
            if (epoch, metric) in kept:
                self._link(last, epoch, is_best=kept[0][0] == epoch)
            for old, _ in dropped:
                _remove(self._path(old))
        self.history = kept

    def save_recovery(self, state: dict[str, Any], epoch: int, update: int) -> Path:
        """Write `state` as it is within an epoch, `update` counting from its start; the one before is kept as well."""
        path = self.folder / f'recovery-{epoch}-{update}{SUFFIX}'
        with self._errors(path):
            self._write(path, state | dict(epoch=epoch, history=[list(entry) for entry in self.history]))
            recoveries = [found for found in self.newest_first() if found.name.startswith('recovery-')]
            for old in recoveries[2:]:
                _remove(old)
        return path

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed, and that is no reason to lose more
        with atomic_write(path, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # what can fail has not: the file of before keeps its digest until here
            _digest_path(path).unlink(missing_ok=True)  # never a new file beside an old digest
        _write_digest(path)

    def _link(self, last: Path, epoch: int, is_best: bool) -> None:
        for path in (self._path(epoch), *([self.folder / BEST] if is_best else [])):
            _digest_path(path).unlink(missing_ok=True)
            atomic_link(last, path)
            _write_digest(path)

    def _rank(self, entry: tuple[int, float]) -> tuple[float, int]:
        """Sorts the best first: by the metric (no number is the worst), then the earlier epoch."""
        epoch, metric = entry
        return (math.inf if math.isnan(metric) else -self.sign * metric, epoch)

    def _path(self, epoch: int) -> Path:
        return self.folder / f'checkpoint-{epoch}{SUFFIX}'

    @contextlib.contextmanager
    def _errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise UserError(f'checkpoint {path} could not be written: {error}. Earlier checkpoints are intact; free '
                            'some space, or choose another --output') from error


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + '.sha256')


def _write_digest(path: Path) -> None:
    digest = sha256_of(path)
    with atomic_write(_digest_path(path)) as file:
        file.write(f'{digest}  {path.name}\n')


def _remove(path: Path) -> None:
    _digest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def check_digest(path: Path) -> None:
    """Raise UserError when a checkpoint is not what its SHA-256 says; a missing one says nothing."""
    try:
        expected = _digest_path(path).read_text().split()[0]
    except (OSError, IndexError):
        return
    if sha256_of(path) != expected:
        raise UserError(f'checkpoint {path} is damaged: its SHA-256 is not that in {_digest_path(path).name}')


def load_plain(path: Path) -> Any:
    """What a file holds, on the CPU: tensors and plain values only (`weights_only=True`), so that it can run no code.

    Raises UserError for a file that is damaged or something else.
    """
    check_digest(path)
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            return {'state_dict': load_file(path)}
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for damaged files
        reason = str(error).split('\n')[0]
        if path.suffix != '.safetensors' and not zipfile.is_zipfile(path):
            reason = 'it is truncated or not a PyTorch file'
        raise UserError(f'checkpoint {path} cannot be read: {reason}. Use another one, such as an earlier '
                        f'checkpoint-N{SUFFIX}') from None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint or .safetensors file, on the CPU; a bare state dict comes as `state_dict`.

    Raises UserError for a file that is missing, truncated or something else; see `load_plain`.
    """
    path = Path(path)
    if not path.is_file():
        others = sorted(str(other) for other in path.parent.glob('*' + SUFFIX)) if path.parent.is_dir() else []
        raise UserError(f'checkpoint {path} does not exist' + (f'; there are {", ".join(others)}' if others else ''))
    content = load_plain(path)
    if not isinstance(content, dict):
        raise UserError(f'checkpoint {path} holds a {type(content).__name__}, not the weights of a model')
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return {'state_dict': content}
    if not isinstance(content.get('state_dict'), dict):
        raise UserError(f'checkpoint {path} has no state_dict: it was not written by timm_rs or timm')
    return content


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> None:
    """Copy `state_dict` into `model`; every key and shape must match.

    Raises UserError that counts what differs and names the first, with `source` (the file and what it says of
    itself) in front.
    """
    found = {name: tuple(value.shape) for name, value in clean_state_dict(state_dict).items()}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if found != wanted:
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        reshaped = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
        parts = [f'{len(names)} tensors {what} (first: {names[0]})'
                 for names, what in ((missing, 'are missing'), (extra, 'are unknown to it')) if names]
        parts += [f'{name} is {found[name]} there and {wanted[name]} here' for name in reshaped[:1]]
        raise UserError(f'{source} does not fit this model: {"; ".join(parts)}. Choose the --model, --model-kwargs '
                        'and --num-classes it was trained with')
    model.load_state_dict(clean_state_dict(state_dict))


def describe(path: str | Path, content: dict[str, Any]) -> str:
    """'checkpoint X (resnetrs_50, epoch 3)' for messages; says only what the file says of itself."""
    facts = [str(content[key]) for key in ('arch',) if key in content]
    facts += [f'epoch {content["epoch"] + 1}'] if isinstance(content.get('epoch'), int) else []
    return f'checkpoint {path}' + (f' ({", ".join(facts)})' if facts else '')


def random_state() -> dict[str, Any]:
    """All random states of this process (Python, NumPy, torch CPU and CUDA), as tensors and numbers."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return dict(
        python=[version, torch.tensor(words), gauss],
        numpy=[torch.from_numpy(numpy_state['state']['key'].astype(np.int64)), int(numpy_state['state']['pos']),
               int(numpy_state['has_gauss']), float(numpy_state['gauss'])],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo to the moment of `random_state()`; CUDA states are restored where the number of GPUs is the same."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    key, position, has_gauss, cached = state['numpy']
    np.random.set_state(('MT19937', key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'])
    if torch.cuda.is_available() and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


def checkpoint_state(
        training: Training, recipe: Recipe, device: Device, place: Place, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a checkpoint holds besides epoch and metric: under timm's key names what timm knows, and what it does not.

    All processes must call it together. `rows` are those of the summary.
    """
    device.flush()
    if training.in_a_row is not None:
        place.skipped_in_a_row = round(device.to_cpu(training.in_a_row).item())
    own = dict(random_state=random_state(), unreported=training.unreported.cpu())
    if device.keeps_replicas:  # batch norm and its average differ from process to process
        own |= {name: {key: value.cpu() for key, value in model.named_buffers()}
                for name, model in _models(training).items()}
    state = dict(
        arch=recipe.model, version=2, args=dataclasses.asdict(recipe), state_dict=training.model.state_dict(),
        optimizer=training.optimizer.state_dict(), place=dataclasses.asdict(place), summary=rows,
        processes=device.gather([own]), global_batch=global_batch(recipe, device))
    if training.ema is not None:
        state['state_dict_ema'] = training.ema.module.state_dict()
    if training.scaler.is_enabled():
        state['amp_scaler'] = training.scaler.state_dict()
    if isinstance(training.schedule, PlateauLRScheduler):  # all others follow from the number of updates
        state['schedule'] = training.schedule.state_dict()
    return device.to_cpu(state)  # type: ignore[no-any-return]


def global_batch(recipe: Recipe, device: Device) -> int:
    """Images per update, of all processes together."""
    return recipe.batch_size * recipe.grad_accum_steps * device.num_devices


def _models(training: Training) -> dict[str, nn.Module]:
    return dict(model=training.model) | (dict(ema=training.ema.module) if training.ema is not None else {})


def resume(
        recipe: Recipe, training: Training, checkpoints: Checkpoints, device: Device, updates_per_epoch: int,
        num_images: int) -> tuple[Place, list[dict[str, Any]] | None]:
    """Restore the run from `recipe.resume`; returns where to go on, and the summary's rows so far (None: not known).

    With `auto` that is the newest checkpoint of the run that is whole, or the beginning. A checkpoint of another
    number of processes, or of another batch size, keeps its place in the data. Raises UserError when nothing fits,
    and when the recipe is not that of the checkpoint, unless `allow_recipe_change`.
    """
    path, content = _choose(recipe, checkpoints, device)
    if path is None:
        epoch = recipe.start_epoch or 0
        place = Place(epoch=epoch, update=epoch * updates_per_epoch)
        _set_schedule(training, place, content)
        return place, None
    try:
        return _restore(path, content, recipe, training, checkpoints, device, updates_per_epoch, num_images)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise UserError(f'{describe(path, content)} cannot be resumed, it may be of another program or version '
                        f'({type(error).__name__}: {error})') from error


def _restore(
        path: Path, content: dict[str, Any], recipe: Recipe, training: Training, checkpoints: Checkpoints,
        device: Device, updates_per_epoch: int, num_images: int) -> tuple[Place, list[dict[str, Any]] | None]:
    source = describe(path, content)
    if 'optimizer' not in content or 'epoch' not in content:
        raise UserError(f'checkpoint {path} holds weights only; start from it with --initial-checkpoint')
    if not (recipe.allow_recipe_change or recipe.no_resume_opt):
        _check_recipe(recipe, content.get('args') or {}, source)
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

    place = Place(**content.get('place') or dict(epoch=content['epoch'] + 1))
    if recipe.start_epoch is not None:
        place.start_epoch(recipe.start_epoch)
    rows = [row for row in content['summary'] if int(row['epoch']) < place.epoch] if 'summary' in content else None
    before, now = content.get('global_batch'), global_batch(recipe, device)
    if before != now or recipe.start_epoch is not None:
        place.update = round((place.epoch + place.images / num_images) * updates_per_epoch)
    _set_schedule(training, place, content)
    if path.parent.resolve() == checkpoints.folder.resolve():
        device.on_primary(lambda: checkpoints.restore(path, content))
    if device.is_primary:
        print(f'resuming from {source}')
        if before not in (None, now):
            print(f'an update now takes {now} images instead of {before}; the place in the data is kept')

    processes = content.get('processes') or []
    if len(processes) == device.world_size:  # last, so that nothing draws random numbers between this and training
        own = processes[device.rank]
        training.unreported = device.put(own['unreported'])
        for name, model in _models(training).items():
            for key, value in model.named_buffers():
                if key in own.get(name, {}):
                    value.copy_(own[name][key])
        restore_random_state(own['random_state'])
    return place, rows


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from `state`, with the kernels that were chosen for this device: a GPU's run may go on elsewhere."""
    groups = [saved | {name: own[name] for name in ('foreach', 'fused', 'capturable') if name in own}
              for saved, own in zip(state['param_groups'], optimizer.param_groups, strict=True)]
    optimizer.load_state_dict(dict(state, param_groups=groups))


def _set_schedule(training: Training, place: Place, content: dict[str, Any]) -> None:
    if training.schedule is None:
        return
    if 'schedule' in content:
        training.schedule.load_state_dict(content['schedule'])
        return
    if place.epoch:
        training.schedule.step(place.epoch)
    if place.update:
        training.schedule.step_update(place.update)


def _choose(recipe: Recipe, checkpoints: Checkpoints, device: Device) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume and its content; all processes take the same one."""
    if recipe.resume != 'auto':
        path = Path(recipe.resume) if recipe.resume else None
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


# What may differ between a run and its continuation: it changes where and how, but not what is computed.
FREE_KEYS = frozenset((
    'data_dir', 'dataset_download', 'resume', 'no_resume_opt', 'start_epoch', 'allow_recipe_change', 'output',
    'experiment', 'workers', 'pin_mem', 'device', 'log_interval', 'checkpoint_hist', 'recovery_interval',
    'checkpoint_interval_minutes', 'max_bad_samples', 'max_nonfinite_steps', 'validation_batch_size', 'batch_size',
    'grad_accum_steps', 'no_ddp_bb', 'torchcompile', 'torchcompile_mode', 'pretrained', 'pretrained_path',
    'initial_checkpoint', 'deterministic', 'compile_cache', 'show_xla_metrics'))


def _check_recipe(recipe: Recipe, before: dict[str, Any], source: str) -> None:
    now = dataclasses.asdict(recipe)
    changed = [f'{name} {before[name]!r} -> {now[name]!r}' for name in now
               if name in before and name not in FREE_KEYS and before[name] != now[name]]
    if changed:
        raise UserError(f'the recipe is not that of {source}: {", ".join(changed)}; give the same values, or insist '
                        'with --allow-recipe-change')
