"""The seam between the loop and the hardware: CPU, CUDA or XLA, one process or many.

The only file that knows torch_xla. `create_device` chooses.
"""

import argparse
import contextlib
import ctypes
import datetime
import gc
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.utils.checkpoint
from timm.utils import init_distributed_device
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous
from torch.utils._pytree import tree_flatten, tree_unflatten

from timm_rs.errors import UserError

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

CONTROL_TIMEOUT = datetime.timedelta(minutes=15)
CONTROL_PORT = 8479  # where the hosts of a TPU slice meet; free on TPU VMs

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


def create_device(
        name: str = 'cuda', fall_back: bool = False, deterministic: bool = False, compile_cache: str = ''
) -> 'Device':
    """The device called `name`: 'cpu', 'cuda', 'cuda:1', 'xla', or 'tpu' (with torch_tpu).

    `fall_back` lets 'cuda' become 'cpu' on a machine without a GPU; `deterministic` has every operation give the same
    bits each time, which costs speed on GPUs; `compile_cache` is a folder for what XLA has compiled. Raises UserError
    for a device that is unknown or not there.
    """
    if name == 'xla':
        return XlaDevice(compile_cache)
    return Device(name, fall_back, deterministic)


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
        if kind not in ('cpu', 'cuda', 'tpu'):
            raise UserError(f'unknown device {name}: use cpu, cuda, cuda:N or xla (tpu with torch_tpu)')
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
        """Whether the host runs ahead of the device, so that it waits wherever it reads a number."""
        return self.torch_device.type != 'cpu'

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
        """On the CPU, let what a step frees stay for the next, which else gets it page by page, zeroed by the kernel.

        That is about a tenth of a training step (results/LOG.md). Only glibc can be told; elsewhere nothing happens.
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
        """`images` (N, C, H, W) in the memory layout of the model."""
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

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
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=broadcast_buffers)

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
                problem = str(error)
        if self.is_distributed:
            box = [result, problem]
            torch.distributed.broadcast_object_list(box, src=0, group=self.control)
            result, problem = box
        if problem:
            raise UserError(problem)
        return result

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


class XlaDevice(Device):
    """All chips of a host through torch_xla, from one process: graphs partitioned over them (SPMD, data parallel).

    Operations are collected until `end_step`, which compiles what it has not seen before. Tensors, shapes and the
    Python numbers that make a graph must not change from step to step; what changes has to be data. PJRT_DEVICE says
    which kind of chips (TPU, CPU).
    """

    is_lazy = True
    is_asynchronous = True
    fell_back = False

    def __init__(self, compile_cache: str = ''):
        """Claim the chips. Raises UserError without torch_xla, without chips, and under torchrun."""
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # else each compilation warns of its partitioner's age
        try:
            import torch_xla
            import torch_xla.core.xla_model
            import torch_xla.debug.metrics
            import torch_xla.distributed.spmd as spmd
            import torch_xla.runtime as runtime
        except ImportError as error:
            raise UserError('device xla needs torch_xla, which needs torch 2.9: pip install "torch==2.9.0" '
                            f'"torch_xla[tpu]==2.9.0" ({error})') from None
        self._xla: Any = torch_xla
        self._model, self._metrics, self._spmd = torch_xla.core.xla_model, torch_xla.debug.metrics, spmd
        if not runtime.is_spmd():
            runtime.use_spmd()
        try:
            num_devices = runtime.global_runtime_device_count()
        except (RuntimeError, OSError) as error:
            raise UserError(f'torch_xla finds no {os.environ.get("PJRT_DEVICE", "device")}: '
                            f'{str(error).splitlines()[0]}; set PJRT_DEVICE to TPU or CPU') from None
        self.rank, self.world_size = runtime.process_index(), runtime.process_count()
        self.num_local_devices = runtime.addressable_runtime_device_count()
        self.is_primary = self.rank == 0
        if int(os.environ.get('WORLD_SIZE', self.world_size)) != self.world_size:
            raise UserError('with device xla one process drives all chips of a host, and finds the other hosts by '
                            'itself: start python train.py on each, without torchrun')
        self.control = None
        if self.world_size > 1:
            torch.distributed.init_process_group(
                'gloo', init_method=f'tcp://{runtime.get_master_ip()}:{CONTROL_PORT}', rank=self.rank,
                world_size=self.world_size, timeout=CONTROL_TIMEOUT)
        if compile_cache:
            runtime.initialize_cache(os.path.join(compile_cache, str(self.rank)))
        self.torch_device = torch_xla.device()
        self.mesh = spmd.Mesh(np.arange(num_devices), (num_devices,), ('data',))
        self._reports: list[tuple[int, Callable[[], None]]] = []  # and after how many steps more
        torch.utils.checkpoint.checkpoint = self._checkpoint

    @staticmethod
    def _checkpoint(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """torch's gradient checkpointing knows no XLA, and XLA would merge the recomputation with the original."""
        from torch_xla.utils.checkpoint import checkpoint
        return checkpoint(function, *arguments, **options | dict(use_reentrant=True))

    @property
    def num_summed(self) -> int:
        return 1  # tensors are of all chips and hosts already

    @property
    def keeps_replicas(self) -> bool:
        return False  # one model, replicated by the partitioner

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._send(tensor, (None,) * tensor.dim())

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._send(tensor, ('data',) + (None,) * (tensor.dim() - 1))

    def _send(self, tensor: torch.Tensor, axes: tuple[str | None, ...]) -> torch.Tensor:
        spec = self._spmd.ShardingSpec(self.mesh, axes, minibatch=self.world_size > 1 and 'data' in axes)
        return self._model.send_cpu_data_to_device([tensor], self.torch_device, spec)[0]  # type: ignore[index]

    def number(self, value: float) -> torch.Tensor:
        # Python numbers are parameters of the graph too, but for 0, 1 and -1 and where two are equal.
        return self.put(torch.tensor([value], dtype=torch.float32))

    def to_cpu(self, tensors: Any) -> Any:
        leaves, structure = tree_flatten(tensors)
        on_host: Any = self._model._maybe_convert_to_cpu(leaves)  # all in one transfer
        return tree_unflatten(on_host, structure)

    def num_images(self, images: torch.Tensor) -> int:
        return len(images)  # the parts of all hosts are one tensor

    def in_layout(self, images: torch.Tensor, channels_last: bool) -> torch.Tensor:
        return images  # XLA chooses layouts itself

    def seed_batch(self, *place: int) -> None:
        self._model.set_rng_state(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Move learning rates by up to a millionth, off 0, 1 and whatever other number the graph may hold.

        A tensor would be data at any value, but torch's optimizers read it on the host.
        """
        for group in optimizer.param_groups:
            bits = np.float32(group['lr'] or 1e-12).view(np.uint32)
            group['lr'] = float((bits & ~np.uint32(15) | np.uint32(11)).view(np.float32))  # no short decimal ends so

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> None:
        """Let the first update find what all others find: momentum, and every tensor placed and a buffer of its own."""
        super().prepare(model, optimizer, average)
        self.end_step()
        modules = [module for module in (model, average) if module is not None]
        kept = [*optimizer.state.values(), *(module.state_dict(keep_vars=True) for module in modules)]
        tensors = [value for values in kept for value in values.values()
                   if isinstance(value, torch.Tensor) and value.device.type == 'xla']
        for tensor, on_host in zip(tensors, self.to_cpu([tensor.detach() for tensor in tensors]), strict=True):
            tensor.data = self.put(on_host)

    def end_step(self) -> None:
        self._xla.sync()
        self._reports = [(steps - 1, report) for steps, report in self._reports]
        while self._reports and self._reports[0][0] <= 0:
            self._reports.pop(0)[1]()

    def defer(self, report: Callable[..., None], *tensors: torch.Tensor) -> None:
        # Two steps later its numbers are there, and the device has work while the host reads them. torch_xla's own
        # way, a thread, reads at once, and crashed in some runs.
        self._reports.append((2, lambda: report(*(self.to_cpu(tensor).tolist() for tensor in tensors))))

    def flush(self) -> None:
        while self._reports:
            self._reports.pop(0)[1]()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor  # of all chips and hosts already

    def all(self, flags: torch.Tensor) -> torch.Tensor:
        return flags

    def are_finite(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.isfinite(torch.nn.utils.get_total_norm(tensors))[None]

    def bits(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return tensors

    def keep(self, tensors: list[torch.Tensor], store: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in tensors]  # the compiler knows which it needs

    def put_back(self, made: torch.Tensor, tensors: list[torch.Tensor], before: list[torch.Tensor]) -> None:
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(made, tensor, old))

    def put_zeros(self, made: torch.Tensor, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(torch.where(made, tensor, 0.0))

    def copy(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    def lerp(self, starts: list[torch.Tensor], ends: list[torch.Tensor], weight: torch.Tensor) -> None:
        for start, end in zip(starts, ends, strict=True):
            start.lerp_(end, weight)

    def collected_program(self) -> bytes:
        """What `end_step` would compile and run, as a serialized HloModuleProto."""
        tensors = self._live_tensors()
        is_pending = self._xla._XLAC._check_tensor_need_materialization(tensors)
        return self._xla._XLAC._get_xla_tensors_hlo_proto([  # type: ignore[no-any-return]
            tensor for tensor, pending in zip(tensors, is_pending, strict=True) if pending])

    def forget_collected(self) -> None:
        """Run nothing of what has been collected: all tensors become zeros."""
        for tensor in self._live_tensors():
            tensor.data = self.put(torch.zeros(tensor.shape, dtype=tensor.dtype))

    @staticmethod
    def _live_tensors() -> list[torch.Tensor]:
        return [thing for thing in gc.get_objects()  # isinstance would wake lazy modules
                if issubclass(type(thing), torch.Tensor) and thing.device.type == 'xla']

    def metrics(self) -> str:
        def metric(name: str) -> tuple[int, float]:
            count, nanoseconds, _ = self._metrics.metric_data(name) or (0, 0.0, None)
            return count, nanoseconds / 1e9
        fallbacks = {name: self._metrics.counter_value(name) for name in self._metrics.counter_names()
                     if name.startswith('aten::')}
        return (f'XLA: {metric("CompileTime")[0]} graphs compiled in {metric("CompileTime")[1]:.1f} s, '
                f'{metric("ExecuteReplicatedTime")[0]} executions, '
                f'{metric("TransferToDeviceTime")[0]} transfers to the device, '
                f'{metric("TransferFromDeviceTime")[0]} from it, operations on the host: {fallbacks or "none"}\n'
                + self._metrics.metrics_report())
