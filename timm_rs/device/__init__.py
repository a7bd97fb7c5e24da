"""The seam between the loop and the hardware: CPU, CUDA, MPS or XLA, one process or many. `create_device` chooses."""

from timm_rs.device.torch_device import Device
from timm_rs.device.xla import XlaDevice


def create_device(
        name: str = 'cuda', fall_back: bool = False, deterministic: bool = False, compile_cache: str = ''
) -> 'Device':
    """The device called `name`: 'cpu', 'cuda', 'cuda:1', 'mps', 'xla', or 'tpu' (with torch_tpu).

    `fall_back` lets 'cuda' become 'cpu' on a machine without a GPU; `deterministic` has every operation give the same
    bits each time, which costs speed on GPUs; `compile_cache` is a folder for what XLA has compiled. Raises UserError
    for a device that is unknown or not there.
    """
    if name == 'xla':
        return XlaDevice(compile_cache)
    return Device(name, fall_back, deterministic)
