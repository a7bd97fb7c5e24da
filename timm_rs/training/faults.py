"""What goes wrong in training, as sentences."""

import contextlib
import signal
import traceback
from collections.abc import Iterator

import torch

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, as_user_error, first_line
from timm_rs.training.state import StepSettings

_MEMORY = ("can't allocate memory", 'not enough memory', 'out of memory', 'CUBLAS_STATUS_ALLOC_FAILED',
           'std::bad_alloc', 'RESOURCE_EXHAUSTED')
_PEERS = ('Connection closed by peer', 'Connection reset by peer', 'Timed out waiting', 'NCCL', 'Socket', 'Broken pipe',
          'gloo')


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _MEMORY)


def is_worker_death(error: BaseException) -> bool:
    """Whether torch tells that a data worker was killed, which it does wherever the main thread is at that moment.

    Before it tells, what the worker was about to hand over may be found cut off.
    """
    text = str(error)
    return 'DataLoader worker' in text and ('killed by signal' in text or 'exited unexpectedly' in text) or (
        isinstance(error, ConnectionError | EOFError) and any(
            frame.f_globals.get('__name__') == 'torch.multiprocessing.reductions'
            for frame, _ in traceback.walk_tb(error.__traceback__)))


@contextlib.contextmanager
def deaf_to_worker_deaths() -> Iterator[None]:
    """Inside, torch raises nothing when a data worker dies; in the main thread."""
    number = getattr(signal, 'SIGCHLD', None)  # which Windows has not
    before = None if number is None else signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        if number is not None and before is not None:
            signal.signal(number, before)


def explain(error: BaseException, settings: StepSettings, device: Device, go_on: str) -> UserError | None:
    """`error` as a message with the remedy, or None for a bug. `go_on` tells how to continue the run."""
    if isinstance(error, UserError):
        return None
    text = str(error)
    if is_worker_death(error):
        return UserError(f'a data worker was killed, perhaps for want of memory: try fewer --workers; {go_on}')
    if storage := as_user_error(error):
        return UserError(f'{storage}; {go_on}')
    if is_out_of_memory(error):
        smaller, steps = max(settings.batch_size // 2, 1), 2 * settings.grad_accum_steps
        return UserError(f'out of memory with batches of {settings.batch_size} images: try --batch-size {smaller} '
                         f'--grad-accum-steps {steps} (as many images per update), --grad-checkpointing or --amp; '
                         f'{go_on}')
    if 'Expected more than 1 value per channel' in text:
        return UserError(f'batch norm needs more than one value per channel, which batches of {settings.batch_size} '
                         'images of this size do not give it: raise --batch-size or --img-size')
    if 'cannot be converted to type' in text and 'overflow' in text:
        return UserError(f'the optimizer cannot compute with numbers this large ({first_line(error)}): lower lr, '
                         'weight_decay, layer_decay or what else is large')
    if type(error).__module__.startswith('torch._dynamo'):
        return UserError(f'the model cannot be compiled: {first_line(error)}; leave out --torchcompile, or choose '
                         'another backend')
    if device.is_distributed and isinstance(error, RuntimeError) and any(words in text for words in _PEERS):
        return UserError(f'another process of this run has ended or hangs ({text.splitlines()[0]}); what it said '
                         f'before tells why; {go_on}')
    return None
