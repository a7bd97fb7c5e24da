"""A training step, or a forward pass, in a process: its memory and its failures are nobody else's."""

import contextlib
import gc
import itertools
import re
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, optimizer_kwargs

from timm_rs.benchmark.points import PARTS, TIMMS_LOOP
from timm_rs.benchmark.rows import Cost, cpu_seconds
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, first_line
from timm_rs.inference.backends import inference_backends
from timm_rs.inference.options import BACKENDS
from timm_rs.models.layers_3d import channels_last_layout
from timm_rs.models.resnet_rs_3d import clip_shape
from timm_rs.recipe.declaring import nearest
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks import create_task
from timm_rs.training.build import build_model, build_training
from timm_rs.training.engine import train_updates
from timm_rs.training.faults import is_out_of_memory
from timm_rs.training.runlog import Progress
from timm_rs.training.state import Position, Training

MIB = 1 << 20
# What a GPU may say of tensors too large for it while it has memory left, for example for 32-bit indices.
TOO_LARGE = re.compile('cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|INT_MAX|32.?bit|invalid configuration|illegal memory')


@dataclass(frozen=True)
class Candidate:
    """What is measured: a turn is `steps` batches of `batch_size` images.

    `setup` is made of `PARTS` for training, and one of `BACKENDS` for inference.
    """

    model: str
    img_size: int
    work: str  # train or infer
    setup: str
    batch_size: int
    steps: int
    device: str
    recipe: str = ''  # file with the values of the training step; empty for those of `step_recipe`
    num_frames: int = 0  # of a clip; 0 for images, and for as many as the model says

    @property
    def size(self) -> str:
        return f'{self.num_frames}x{self.img_size}' if self.num_frames else str(self.img_size)

    @property
    def label(self) -> str:
        return f'{self.model}@{self.size}'

    @property
    def precision(self) -> str:
        return precision_of(self.setup)


class DoesNotFit(Exception):
    """The batch is too large for the memory."""


def check_setup(setup: str, work: str) -> None:
    """Raise UserError unless `setup` can be measured."""
    if work == 'infer':
        if setup not in BACKENDS:
            raise UserError(f'unknown back-end {setup}: there are {", ".join(BACKENDS)}.{nearest(setup, BACKENDS)}')
        return
    for part in setup.split('+'):
        if part not in PARTS:
            raise UserError(
                f'unknown setup {setup}: it is made of {", ".join(PARTS)}, joined by +.{nearest(part, PARTS)}')


def precision_of(setup: str) -> str:
    """Of a setup or back-end: bf16, int8, or else fp32."""
    return next((name for name in ('bf16', 'int8') if name in re.split(r'[+_]', setup)), 'fp32')


def step_recipe(candidate: Candidate) -> Recipe:
    """The recipe of the candidate's step: its file's values, or those which the recipes here share.

    ResNets learn by SGD and EfficientNets by RMSProp, as in the paper; both are averaged. The learning rate is next to
    nothing: the images are noise, and what the step costs does not depend on it.
    """
    if candidate.recipe:
        values = read_file(candidate.recipe)
    else:
        values = dict(drop=0.25, model_ema=True, model_ema_decay=0.9999, model_ema_warmup=True, ema_ramp='tf')
        if 'efficientnet' in candidate.model:
            values |= dict(opt='rmsproptf', opt_eps=1e-3, drop_path=0.2)
    values |= dict(channels_last=False, amp=False, amp_dtype='float16', torchcompile=None, torchcompile_mode=None)
    if candidate.work == 'train':  # the setup decides these
        for part in candidate.setup.split('+'):
            values |= PARTS[part]
    if candidate.num_frames:
        values['model_kwargs'] = values.get('model_kwargs', {}) | dict(num_frames=candidate.num_frames)
    return replace(
        Recipe(**values), model=candidate.model, img_size=candidate.img_size, batch_size=candidate.batch_size,
        input_size=None, num_classes=1000, lr=1e-6, log_interval=1_000_000, device=candidate.device)


# ---- in the process ---------------------------------------------------------------------------------------------

def create_work(candidate: Candidate, device: Device) -> Callable[[int], None]:
    """A function that makes so many steps of the candidate, on synthetic images that are on the device already."""
    recipe = step_recipe(candidate)
    task, training = create_task(recipe), None
    with device.torch_device:  # a GPU draws the initial weights at once, a CPU takes seconds
        if candidate.work == 'train':
            training = build_training(recipe, device, task)
            model, config = training.model, training.data_config
        else:
            model, config = build_model(recipe, device, task)
        shape = clip_shape(model, config['input_size'])
        pixels = torch.randint(256, (candidate.batch_size, *shape), dtype=torch.uint8)
        of_channels = (-1, *[1] * (len(shape) - 1))
        mean, std = (255 * torch.tensor(config[name]).view(of_channels) for name in ('mean', 'std'))
        images = (pixels - mean) / std
        targets = torch.randint(model.num_classes, (candidate.batch_size,))
    del pixels
    if training is not None:
        if recipe.mixes_images:
            targets = F.one_hot(targets, model.num_classes).float()
        if TIMMS_LOOP not in candidate.setup.split('+'):
            return training_work(training, device, images, targets)
        # timm leaves the choice of the optimizer's kernels to torch
        training.optimizer = create_optimizer_v2(model, **optimizer_kwargs(recipe) | recipe.opt_kwargs)
        return timms_work(training, device, images, targets)
    run = inference_backends(model, images, [candidate.setup])[candidate.setup]

    def work(steps: int) -> None:
        for _ in range(steps):
            run(images)
    return work


def training_work(
        training: Training, device: Device, images: torch.Tensor, targets: torch.Tensor) -> Callable[[int], None]:
    """Updates of the real training loop."""
    position, progress = Position(), Progress(1, 0, 1, enabled=False)

    def work(steps: int) -> None:
        for _ in train_updates(training, [(images, targets)] * steps, device, position, progress):
            pass
    return work


def timms_work(
        training: Training, device: Device, images: torch.Tensor, targets: torch.Tensor) -> Callable[[int], None]:
    """Updates as timm's train.py makes them."""
    layout = channels_last_layout(images) if training.settings.channels_last else torch.contiguous_format
    updates = itertools.count(1)

    def work(steps: int) -> None:
        training.wrapped.train()
        for _ in range(steps):
            with device.autocast(training.settings.dtype):
                loss = training.task.loss(training.wrapped(images.contiguous(memory_format=layout)), targets)
            loss.backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
            update = next(updates)
            if training.ema is not None:
                training.ema.update(training.model, step=update)
    return work


class Step:
    """A candidate in this process, ready to make its steps. `peak_memory`, in bytes, is what its model and a step need.

    On CUDA that is what torch allocates, on the CPU the growth of the resident memory.
    """

    def __init__(self, candidate: Candidate):
        self.candidate, self.on_cuda = candidate, candidate.device.startswith('cuda')
        device = Device(candidate.device)
        if not self.on_cuda:
            _limit_memory()
        if candidate.work == 'train' and TIMMS_LOOP not in candidate.setup.split('+'):
            device.keep_freed_memory()
        before = torch.cuda.memory_allocated() if self.on_cuda else _resident('VmRSS')
        self.work = create_work(candidate, device)
        self.work(1)  # compiles, allocates what stays
        _forget_peak(self.on_cuda)
        self.work(1)
        self.peak_memory = (torch.cuda.max_memory_allocated() if self.on_cuda else _resident('VmHWM')) - before

    def turn(self) -> Cost:
        return _turn(self.work, self.candidate.steps, self.on_cuda)


def serve(connection: Connection) -> None:
    """Answer every (what to do, candidate) with ('done', what came of it), or with what prevented it and why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends us
    steps: dict[Candidate, Step] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            act, candidate = connection.recv()
            connection.send(_act(act, candidate, steps))


def _act(act: str, candidate: Candidate, steps: dict[Candidate, Step]) -> tuple[str, Any]:
    on_cuda = candidate.device.startswith('cuda')
    try:
        if act == 'turn':
            return 'done', steps[candidate].turn()
        steps.pop(candidate, None)
        if act == 'start':
            steps[candidate] = Step(candidate)
            return 'done', steps[candidate].peak_memory
        return 'done', None
    except UserError as error:
        return 'user error', str(error)
    except (RuntimeError, MemoryError) as error:
        is_too_large = on_cuda and TOO_LARGE.search(str(error))
        if is_too_large:
            traceback.print_exc()  # it may be something else
        return (('does not fit', first_line(error)) if is_out_of_memory(error) or is_too_large else
                ('bug', traceback.format_exc()))
    except Exception:
        return 'bug', traceback.format_exc()
    finally:
        if act == 'stop' or on_cuda:
            gc.collect()
        if on_cuda:  # the others may need what is not in use
            torch.cuda.empty_cache()


def _turn(work: Callable[[int], None], steps: int, on_cuda: bool) -> Cost:
    """The cost of one step. On a GPU, memory that the others needed meanwhile is taken back before the clock starts."""
    if on_cuda:
        work(1)
        torch.cuda.synchronize()
    cpu, wall = cpu_seconds(), time.perf_counter()
    work(steps)
    if on_cuda:
        torch.cuda.synchronize()
    return Cost((cpu_seconds() - cpu) / steps, (time.perf_counter() - wall) / steps)


def _forget_peak(on_cuda: bool) -> None:
    """Measure from here on: what building, exporting and compiling took is no part of a step."""
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # some containers do not allow it, and count all
        Path('/proc/self/clear_refs').write_text('5')


def _resident(field: str) -> int:
    """Bytes in memory now (VmRSS) or at most so far (VmHWM), as Linux counts them for this process alone."""
    return _kilobytes('/proc/self/status', field) * 1024


def _limit_memory() -> None:
    """Have allocations fail where the machine's free memory ends, instead of the kernel killing someone."""
    if available := _kilobytes('/proc/meminfo', 'MemAvailable'):
        import resource  # which Linux has
        limit = (_kilobytes('/proc/self/status', 'VmData') + available) * 1024 - 512 * MIB
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _kilobytes(path: str, field: str) -> int:
    found = re.search(rf'^{field}:\s*(\d+) kB', Path(path).read_text(), re.M) if Path(path).exists() else None
    return int(found[1]) if found else 0


def check_model(name: str) -> None:
    """Raise UserError unless timm knows the model `name`."""
    if not timm.is_model(name):
        raise UserError(f'unknown model {name}.{nearest(name, timm.list_models())}')
