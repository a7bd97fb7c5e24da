"""TPUs, and all else that torch_xla drives; the only file that knows it."""

import gc
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.distributed
import torch.utils.checkpoint
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from timm_rs.device.torch_device import CONTROL_TIMEOUT, Device
from timm_rs.errors import UserError, first_line

CONTROL_PORT = 8479  # where the hosts of a TPU slice meet; free on TPU VMs


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
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # otherwise each compilation warns of its partitioner's age
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
                            f'{first_line(error)}; set PJRT_DEVICE to TPU or CPU') from None
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
        """Create momentum and give every tensor a buffer of its own: the first update compiles for all others."""
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
