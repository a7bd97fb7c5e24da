"""The seam between the loop and the hardware: CPU or CUDA, one process or many under torchrun."""

import argparse
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from timm.utils import init_distributed_device
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from timm_rs.errors import UserError

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


class Device:
    """Where tensors live and who else is training: the only thing that knows about processes and back-ends.

    Attributes: `torch_device`; `rank`, `world_size` (1 without torchrun); `is_primary` for the process that
    writes files and prints.
    """

    def __init__(self, name: str = 'cuda', fall_back: bool = False, deterministic: bool = False):
        """Claim the device `name` ('cpu', 'cuda', 'cuda:1') and, under torchrun, join the process group.

        `fall_back` lets 'cuda' become 'cpu' on a machine without a GPU; `deterministic` has every operation give the
        same bits each time, which costs speed on GPUs. Raises UserError for a device that is
        unknown or not there.
        """
        kind = name.partition(':')[0]
        if kind not in ('cpu', 'cuda'):
            raise UserError(f'unknown device {name}: use cpu, cuda or cuda:N')
        self.fell_back = kind == 'cuda' and not torch.cuda.is_available()
        if self.fell_back:
            if not fall_back:
                raise UserError(f'device {name} was asked for but torch sees no CUDA GPU; use --device cpu')
            name = kind = 'cpu'
        index = name.partition(':')[2]
        if index and (not index.isdigit() or int(index) >= torch.cuda.device_count()):
            raise UserError(f'there is no device {name}: torch sees {torch.cuda.device_count()} CUDA GPU(s)')
        place = argparse.Namespace(device=name, dist_url=f'{SCHEME}://' if _starts_again() else None)
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
    def is_distributed(self) -> bool:
        return torch.distributed.is_initialized()

    def autocast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision in `dtype`, or nothing when it is None."""
        return torch.autocast(self.torch_device.type, dtype) if dtype else contextlib.nullcontext()

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
        """Call `report` with the tensors as numbers, summed over processes: the loop's only host-device sync."""
        report(*(self.sum(tensor).tolist() for tensor in tensors))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all processes (`tensor` itself is left alone)."""
        if self.is_distributed:
            tensor = tensor.clone()
            torch.distributed.all_reduce(tensor)
        return tensor

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
