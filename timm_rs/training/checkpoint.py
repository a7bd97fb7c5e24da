"""Checkpoints in timm's layout: written atomically, loaded without running code, refused when they do not fit."""

import argparse
import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import nn

from timm_rs.containers.archives import is_zip
from timm_rs.containers.weights import load_weights_file
from timm_rs.errors import UserError, first_line
from timm_rs.files import atomic_link, atomic_write, sha256_of
from timm_rs.training.faults import is_worker_death

SUFFIX = '.pth.tar'
LAST, BEST = 'last' + SUFFIX, 'model_best' + SUFFIX


class Checkpoints:
    """The checkpoints of a run: `last`, `model_best`, the `keep` best `checkpoint-N`, `recovery-E-U` within epochs.

    Names are timm's. Beside each lies its SHA-256, as sha256sum writes it. The best and the newest are never removed;
    what is newest is what got furthest, by what the files say of themselves: a copy changes the times of files.
    """

    def __init__(self, folder: Path, keep: int, lower_is_better: bool):
        self.folder, self.keep = folder, keep
        self.sign = -1 if lower_is_better else 1
        self.newest: Path | None = None  # that this process has written or continues
        self.history: list[tuple[int, float]] = []  # (epoch, metric) of the checkpoints kept, best first
        self.unfinished: tuple[int, list[int]] | None = None  # `last` is of this epoch, and these are to be removed

    @property
    def best(self) -> tuple[int, float] | None:
        return self.history[0] if self.history else None

    def is_better(self, epoch: int, metric: float) -> bool:
        """Whether `metric` in `epoch` would be the best so far."""
        return self.best is None or self._rank((epoch, metric)) < self._rank(self.best)

    def newest_first(self) -> list[Path]:
        """All checkpoints of the run that it can go on from, whole or not: the one that got furthest comes first."""
        return self._sorted(LAST, f'checkpoint-*{SUFFIX}', f'recovery-*{SUFFIX}')

    def refuse_to_go_back(self, place: tuple[float, float]) -> None:
        """Raise UserError when the folder has a whole checkpoint that is further than `place` (epoch, images)."""
        for path in self.newest_first():
            if place_of(path) <= place:
                return
            if _is_whole(path):  # nothing is lost with a damaged one
                raise UserError(
                    f'{path} is further than where this run would go on, which would write over what came after: go on '
                    'with --resume auto, choose another --experiment, or move the newer checkpoints out of the folder')

    def restore(self, path: Path, content: dict[str, Any]) -> None:
        """Continue the ranking of the run that wrote `content` to `path`, and finish what a kill cut short.

        That includes removing checkpoints that are not in the ranking any more, and recoveries from before an epoch's.
        """
        history = [(int(epoch), float(metric)) for epoch, metric in content.get('history', [])]
        epochs = [epoch for epoch, _ in history]
        with self._errors(path):
            if not _digest_path(path).exists():
                _write_digest(path)
            if path.name == LAST and content['epoch'] in epochs:
                self._link(path, content['epoch'], is_best=_is_best(history, content['epoch']))
            if 'history' in content:  # which checkpoints of others have not
                for old in self.folder.glob(f'checkpoint-*{SUFFIX}'):
                    number = old.name.removeprefix('checkpoint-').removesuffix(SUFFIX)
                    if number.isdecimal() and int(number) <= content['epoch'] and int(number) not in epochs:
                        _remove(old)
            if path.name == LAST:
                self._remove_recoveries(place_of(path))
        self.history, self.newest = self._there(history), path

    def save(self, state: dict[str, Any], epoch: int, metric: float) -> None:
        """Write `state` (plain tensors, numbers, text, lists and dicts) as the checkpoint of `epoch`.

        Raises UserError when it cannot be written; earlier checkpoints stay as they were.
        """
        last = self.folder / LAST
        with self._errors(last):
            self._finish(last)  # of an epoch before, for which there was no room
            known = [entry for entry in self._there(self.history) if entry[0] != epoch]
            ranking = sorted([*known, (epoch, metric)], key=self._rank)
            kept, dropped = ranking[:self.keep], [old for old, _ in ranking[self.keep:]]
            self._write(last, state | dict(epoch=epoch, metric=metric, history=[list(entry) for entry in kept]))
            self.history, self.newest, self.unfinished = kept, last, (epoch, dropped)
            self._finish(last)

    def save_recovery(self, state: dict[str, Any], epoch: int, update: int) -> Path:
        """Write `state` as it is within an epoch, `update` counting from its start; the one before is kept as well."""
        path = self.folder / f'recovery-{epoch}-{update}{SUFFIX}'
        with self._errors(path):
            self._write(path, state | dict(epoch=epoch, history=[list(entry) for entry in self.history]))
            others = [other for other in self._sorted(f'recovery-*{SUFFIX}') if other != path]
            for old in others[1:]:
                _remove(old)
        self.newest = path
        return path

    def _sorted(self, *names: str) -> list[Path]:
        found = {path: place_of(path) for name in names for path in self.folder.glob(name)}
        return sorted(found, key=lambda path: (found[path], path.name == LAST, path.name), reverse=True)

    def _there(self, history: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Those of `history` that have a file. The best may have lost its number in copying, not its own name."""
        return [entry for entry in history if self._path(entry[0]).exists()
                or entry == history[0] and (self.folder / BEST).exists()]

    def _remove_recoveries(self, place: tuple[float, float]) -> None:
        for path in self.folder.glob(f'recovery-*{SUFFIX}'):
            if place_of(path) <= place:
                _remove(path)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed, and that is no reason to lose more
        with atomic_write(path, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # the new content is safely on disk; only now drop the old digest
            _digest_path(path).unlink(missing_ok=True)  # never a new file beside an old digest
        _write_digest(path)

    def _finish(self, last: Path) -> None:
        """Give `last` its other names, if its epoch is in the ranking, and remove what is not in it any more."""
        if self.unfinished is None:
            return
        epoch, dropped = self.unfinished
        if epoch in (known for known, _ in self.history) and last.exists():  # somebody may have removed the folder
            self._link(last, epoch, is_best=_is_best(self.history, epoch))
        for old in dropped:
            _remove(self._path(old))
        self._remove_recoveries(place_of(last))
        self.unfinished = None

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
            if is_worker_death(error):
                raise
            reason = getattr(error, 'strerror', None) or error
            raise UserError(f'checkpoint {path} could not be written: {reason}. Earlier checkpoints are intact; free '
                            'some space, or choose another --output') from error


def _is_best(ranking: list[tuple[int, float]], epoch: int) -> bool:
    """Whether `epoch` is the first of `ranking`, and not for want of any with a metric."""
    best, metric = ranking[0]
    return best == epoch and not math.isnan(metric)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + '.sha256')


def _write_digest(path: Path) -> None:
    digest = sha256_of(path)
    with atomic_write(_digest_path(path)) as file:
        file.write(f'{digest}  {path.name}\n')


def _remove(path: Path) -> None:
    _digest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def place_of(path: Path) -> tuple[float, float]:
    """How far the run had got that wrote a checkpoint: epochs that are complete, and images of the next.

    That is what the file says. Where it cannot be read, or says nothing, its name does; `last` would be the furthest.
    """
    content: Any = None
    try:
        content = load_weights_file(path, mmap=True)  # no tensor is read
        return float(content['place']['epoch']), float(content['place']['images'])
    except Exception as error:  # torch raises a dozen kinds for damaged files, and values may be of any type
        if is_worker_death(error):
            raise
        epoch, update = (int(number) for number in (*re.findall(r'-(\d+)', path.name), -1, -1)[:2])
        if path.name.startswith('recovery-'):
            return epoch, update
        if isinstance(content, dict) and isinstance(content.get('epoch'), int):
            return content['epoch'] + 1, 0
        return (math.inf if path.name == LAST else epoch + 1), 0


def _is_whole(path: Path) -> bool:
    try:
        return isinstance(load_plain(path), dict)
    except UserError:
        return False


def check_digest(path: Path) -> None:
    """Raise UserError when a checkpoint is not what its SHA-256 says; a missing one says nothing."""
    try:
        expected = _digest_path(path).read_text().split()[0]
    except (OSError, IndexError):
        return
    if sha256_of(path) != expected:
        raise UserError(f'checkpoint {path} is damaged: its SHA-256 is not that in {_digest_path(path).name}')


def load_plain(path: Path) -> Any:
    """What a file holds, on the CPU, as `load_weights_file` reads it: it can run no code.

    Raises UserError for a file that is damaged, refused or something else.
    """
    check_digest(path)
    try:
        return load_weights_file(path)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise a dozen kinds for damaged files
        reason = first_line(error)
        if path.suffix != '.safetensors' and not is_zip(path):
            reason = 'it is truncated or not a PyTorch file'
        raise UserError(f'checkpoint {path} cannot be read: {reason}. Use another one, such as an earlier '
                        f'checkpoint-N{SUFFIX}') from None


def checkpoint_in(path: Path) -> Path:
    """`path`, or the best checkpoint of a run's folder. Raises UserError for a folder without."""
    if not path.is_dir():
        return path
    found = [path / name for name in (BEST, LAST) if (path / name).is_file()]
    if not found:
        raise UserError(f'{path} holds no {BEST}: give the folder of a run of train.py, or a checkpoint')
    return found[0]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint or .safetensors file, on the CPU, in timm's layout.

    A bare state dict, and what is called `model`, come as `state_dict`; `model_ema` as `state_dict_ema`. A Namespace of
    arguments comes as a dict, with `is_foreign` set.

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
    for name, other in (('state_dict', 'model'), ('state_dict_ema', 'model_ema')):
        if content.get(name) is None and isinstance(content.get(other), dict):
            content[name] = {key: value for key, value in content[other].items() if key != 'n_averaged'}  # no weight
    if content.get('state_dict') is None:
        content['state_dict'] = content.get('state_dict_ema')
    for name in ('state_dict', 'state_dict_ema'):
        weights = content.get(name)
        if not isinstance(weights, dict) and (name == 'state_dict' or weights is not None):
            raise UserError(f'checkpoint {path} has no {name}: it was not written by timm_rs or timm')
        for key, value in (weights or {}).items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise UserError(f'checkpoint {path} has no weights in its {name}: {key} is a {type(value).__name__}')
    if isinstance(content.get('args'), argparse.Namespace):
        content |= dict(args=vars(content['args']), is_foreign=True)
    for name, kind in (('arch', str), ('epoch', int), ('args', dict), ('data', dict), ('base_model', str)):
        if not isinstance(content.get(name), kind):  # other programs mean something else by it
            content.pop(name, None)
    classes = content.get('data', {}).get('classes') or {}
    if not isinstance(classes, dict) or not all(type(index) is int and 0 <= index < 1 << 24
                                                for index in classes.values()):
        raise UserError(f'checkpoint {path} is damaged: its classes are not names with an index each; use another one')
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
