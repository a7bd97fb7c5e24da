"""CPU, CUDA and, not verified, Apple's MPS; one process or many."""

import argparse
import contextlib
import ctypes
import datetime
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.distributed
import torch.utils.checkpoint
from timm.utils import init_distributed_device
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from timm_rs.errors import UserError
from timm_rs.models.layers_3d import channels_last_layout

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

CONTROL_TIMEOUT = datetime.timedelta(minutes=15)

SCHEME = 'again'


def _starts_again() -> bool:
    """Whether torchrun has started all processes of a run on one machine, maybe not for the first time."""
    return 'TORCHELASTIC_RESTART_COUNT' in os.environ and os.environ['WORLD_SIZE'] == os.environ['LOCAL_WORLD_SIZE']


def _meet_again(url: str, **options: Any) -> Iterator[Any]:
    """torch's rendezvous, where the addresses of processes that have died are not those of their successors.

    torchrun keeps its store when it starts processes again, and who looks early finds the old address. On several
    machines their counts of restarts may differ; there, torch's rendezvous stays as it is.
    """
    for store, rank, world_size in rendezvous('env://', **options):
        yield PrefixStore(os.environ['TORCHELASTIC_RESTART_COUNT'], store), rank, world_size


register_rendezvous_handler(SCHEME, _meet_again)


def cpu_emulates_bfloat16() -> bool:
    """Whether the CPU computes bfloat16 by detours: x86 without AVX-512. It is right, and slow."""
    return platform.machine() in ('x86_64', 'AMD64') and torch.backends.cpu.get_cpu_capability() in ('DEFAULT', 'AVX2')


class Device:
    """Where tensors live and who else is training: the only thing that knows about processes and back-ends.

    Attributes: `torch_device`; `rank`, `world_size` (1 without torchrun); `is_primary` for the process that
    writes files and prints; `num_local_devices` that this process feeds; `is_lazy` where operations are collected
    into graphs, to be compiled and run at `end_step`; `declines_bfloat16` to compute in float32 where it is asked for.
    """

    is_lazy = False
    declines_bfloat16 = False
    num_local_devices = 1

    def __init__(self, name: str = 'cuda', fall_back: bool = False, deterministic: bool = False):
        """Claim the device `name` and, under torchrun, join the process group; see `create_device`."""
        kind = name.partition(':')[0]
        if kind not in ('cpu', 'cuda', 'mps', 'tpu'):
            raise UserError(f'unknown device {name}: use cpu, cuda, cuda:N, mps or xla (tpu with torch_tpu)')
        if kind == 'mps' and not torch.backends.mps.is_available():
            raise UserError('device mps was asked for but torch sees no GPU of Apple\'s; use --device cpu')
        if kind == 'tpu':
            _require_torch_tpu()
        self.fell_back = kind == 'cuda' and not torch.cuda.is_available()
        if self.fell_back:
            if not fall_back:
                raise UserError(f'device {name} was asked for but torch sees no CUDA GPU; use --device cpu')
            name = kind = 'cpu'
        index = name.partition(':')[2]
        if index and (not index.isdigit() or int(index) >= torch.cuda.device_count()):
            raise UserError(f'there is no device {name}: torch sees {torch.cuda.device_count()} CUDA GPU(s)')
        place = argparse.Namespace(
            device=name, dist_url=f'{SCHEME}://' if _starts_again() else None,
            dist_backend='tpu' if kind == 'tpu' else None)
        self.torch_device = init_distributed_device(place)
        self.rank, self.world_size = place.rank, place.world_size
        self.is_primary = self.rank == 0
        # What processes agree on, they do on the CPU, whatever the device; one that hangs does not hang all for ever.
        self.control = torch.distributed.new_group(
            backend='gloo', timeout=CONTROL_TIMEOUT) if self.is_distributed else None
        if kind == 'cuda':
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = not deterministic  # input shapes never change within a run
        if deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
            torch.use_deterministic_algorithms(True)

    @property
    def is_asynchronous(self) -> bool:
        """Whether the host runs ahead of the device, and leaves to it what it can, so as not to wait for numbers.

        MPS lacks some of the operations that this takes, so there the host waits.
        """
        return self.torch_device.type not in ('cpu', 'mps')

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return torch.distributed.is_initialized()

    @property
    def keeps_replicas(self) -> bool:
        """Whether there are several processes, each with a copy of the model whose batch norm goes its own way."""
        return self.is_distributed

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether bfloat16 is slower than float32 here."""
        return self.torch_device.type == 'cpu' and cpu_emulates_bfloat16()

    def keep_freed_memory(self) -> None:
        """On the CPU, keep freed memory in the process.

        Otherwise the next step gets it back from the kernel page by page, zeroed. That is about a tenth of a training
        step (results/LOG.md). Only glibc can be told; elsewhere nothing happens.
        """
        if self.torch_device.type == 'cpu' and sys.platform == 'linux':
            mallopt = getattr(ctypes.CDLL(None), 'mallopt', lambda *_: None)
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

    @property
    def num_summed(self) -> int:
        """How many processes' tensors `sum` adds up."""
        return self.world_size

    @property
    def num_devices(self) -> int:
        """Of all processes together."""
        return self.world_size * self.num_local_devices

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of the host on the device, whole."""
        return tensor.to(self.torch_device)

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of the host on the device, its first dimension divided among the devices of this process."""
        return self.put(tensor)

    def number(self, value: float) -> Any:
        """`value` in a form that may differ from step to step at no cost."""
        return value

    def to_cpu(self, tensors: Any) -> Any:
        """Tensors, or lists and dicts with tensors, that the host can read: a host-device sync."""
        return tensors

    def num_images(self, images: torch.Tensor) -> int:
        """Images in the batches of all processes, of which `images` (N, ...) is ours."""
        return len(images) * self.world_size

    def in_layout(self, images: torch.Tensor, channels_last: bool) -> torch.Tensor:
        """`images` (N, C, H, W), or clips (N, C, T, H, W), in the memory layout of the model."""
        layout = channels_last_layout(images) if channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def seed_batch(self, *place: int) -> None:
        """Where the device draws its own random numbers, make them those of the batch at `place` of the run."""

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over processes, for set-ups where neither DDP nor a partitioner of graphs has done it."""

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """What the optimizer needs to hear before each update."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> None:
        """What the weights and what belongs to them need once, before the first update and after any resume.

        Where the device decides, SGD's momentum: an update that is left out must not be the one that begins it.
        """
        if not (self.is_asynchronous and isinstance(optimizer, torch.optim.SGD)):
            return
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if group['momentum'] and not group['dampening'] and not optimizer.state[parameter]:
                    optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)

    def end_step(self) -> None:
        """Run what has been collected."""

    def flush(self) -> None:
        """Wait for deferred reports."""

    def metrics(self) -> str:
        """What XLA counted in this process; empty elsewhere."""
        return ''

    def autocast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision in `dtype`, or nothing when it is None or declined."""
        if dtype is None or (dtype is torch.bfloat16 and self.declines_bfloat16):
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype)

    def grad_scaler(self, dtype: torch.dtype | None) -> GradScaler:
        """A loss scaler, at work only for float16: bfloat16 and float32 have the exponent range of gradients."""
        return GradScaler(self.torch_device.type, enabled=dtype is torch.float16)

    def data_parallel(self, model: nn.Module, broadcast_buffers: bool) -> nn.Module:
        """`model`, with its gradients averaged over processes where there are several."""
        if not self.is_distributed:
            return model
        ids = [self.torch_device] if self.torch_device.type == 'cuda' else None
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        wrapped.broadcast_buffers = broadcast_buffers  # torch 2.14 warns of the argument
        return wrapped

    def defer(self, report: Callable[..., None], *tensors: torch.Tensor) -> None:
        """Call `report` with the tensors as numbers, summed over processes: a host-device sync, maybe later.

        Between `end_step` and what changes the tensors again.
        """
        report(*(self.sum(tensor).tolist() for tensor in tensors))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all processes (`tensor` itself is left alone)."""
        if self.is_distributed:
            tensor = tensor.clone()
            torch.distributed.all_reduce(tensor)
        return tensor

    def all(self, flags: torch.Tensor) -> torch.Tensor:
        """Which of the `flags` (N,) are true in all processes, without asking the device."""
        if not self.is_distributed:
            return flags
        shared = flags.float()
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
        return shared.bool()

    def are_finite(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Whether all numbers of `tensors` are finite: (1,), bool, on the device."""
        found, one = (torch.full((1,), value, device=self.torch_device) for value in (0.0, 1.0))
        for same in _by_dtype(tensors):  # what torch's scaler of gradients asks, in one kernel
            torch._amp_foreach_non_finite_check_and_unscale_(same, found, one)
        return found == 0

    def keep(self, tensors: list[torch.Tensor], store: list[torch.Tensor]) -> list[torch.Tensor]:
        """Copies of `tensors`, in those of the last time, the `store`, if it was of the same tensors."""
        if len(store) != len(tensors):
            store = [torch.empty_like(tensor) for tensor in tensors]
        self.copy(store, tensors)
        return store

    def bits(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """`tensors` as the integers that have their bits, for those who put them back often."""
        return [_as_integer(tensor) for tensor in tensors]

    def put_back(self, made: torch.Tensor, tensors: list[torch.Tensor], before: list[torch.Tensor]) -> None:
        """Where `made` (), bool, is false, give `tensors` the bits of `before`, which is used up."""
        # As integers: what is to go may not be a number, and zero times that would not be zero.
        for now, old in zip(_by_dtype(self.bits(tensors)), _by_dtype(self.bits(before)), strict=True):
            keeps_now = made.to(now[0].dtype)
            torch._foreach_mul_(now, keeps_now)
            torch._foreach_mul_(old, 1 - keeps_now)
            torch._foreach_add_(now, old)

    def put_zeros(self, made: torch.Tensor, tensors: list[torch.Tensor]) -> None:
        """Where `made` (), bool, is false, make `tensors` zero, whatever they hold."""
        for integers in _by_dtype(self.bits(tensors)):
            torch._foreach_mul_(integers, made.to(integers[0].dtype))

    def copy(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        """Copy each of `sources` to that of `targets`."""
        if targets:
            torch._foreach_copy_(targets, sources)

    def lerp(self, starts: list[torch.Tensor], ends: list[torch.Tensor], weight: torch.Tensor) -> None:
        """Move each of `starts` by `weight` (), on the device, of its way to that of `ends`."""
        ways = torch._foreach_sub(ends, starts)
        torch._foreach_mul_(ways, weight)
        torch._foreach_add_(starts, ways)

    def agree(self, value: int) -> int:
        """The greatest `value` of all processes: what one has to say, all hear."""
        if not self.is_distributed:
            return int(value)
        box = torch.tensor(int(value))
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX, group=self.control)
        return int(box)

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
        if not self.is_distributed:
            return items
        lists: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(lists, items, group=self.control)
        return [item for some in lists for item in some]

    def on_primary(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the primary process only; every process gets its result, or raises its UserError."""
        result, problem = None, None
        if self.is_primary:
            try:
                result = function()
            except UserError as error:
                problem = error
        if self.is_distributed:
            box = [result, problem]
            torch.distributed.broadcast_object_list(box, src=0, group=self.control)
            result, problem = box
        if problem is not None:
            raise problem
        return result

    def say(self, text: str) -> None:
        """Print `text` in the primary process."""
        if self.is_primary:
            print(text, flush=True)

    def close(self) -> None:
        if self.is_distributed:
            torch.distributed.destroy_process_group()


def _by_dtype(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """`tensors` in lists of one type each, as operations on many at once need them."""
    lists: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(tensor.dtype, []).append(tensor)
    return list(lists.values())


def _as_integer(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in INTEGERS.values() else tensor.view(INTEGERS[tensor.element_size()])


def _require_torch_tpu() -> None:
    """torch_tpu's devices behave as CUDA's do, one process per chip under torchrun. Not run: no TPU was at hand."""
    try:
        import torch_tpu  # type: ignore[import-not-found]  # noqa: F401  (registers the device)
    except ImportError:
        raise UserError('device tpu needs torch_tpu and torch 2.11 or newer: pip install torch_tpu; with torch_xla it '
                        'is --device xla') from None
    if not torch.accelerator.is_available():
        raise UserError('device tpu was asked for but torch_tpu finds no TPU on this machine')
