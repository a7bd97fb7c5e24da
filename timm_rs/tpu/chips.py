"""The TPUs that tools know: what a device of each can do, and what Google Cloud calls it."""

from dataclasses import dataclass

from timm_rs.benchmark.rows import GIB
from timm_rs.errors import UserError


@dataclass(frozen=True)
class Tpu:
    """One generation. A device is what torch_xla sees as one: a core of v3, a whole chip of all later ones."""

    name: str
    devices_per_chip: int
    peak_flops: float  # of a device, bfloat16, per second
    hbm_bytes_per_s: float  # of a device
    hbm_bytes: float  # of a device, as much as the compiler (libtpu 0.0.52) gives a program
    topologies: dict[int, str]  # chips of a slice -> its shape
    accelerator_type: str  # of the TPU API; a count of cores or chips follows
    cores_per_type: int  # what that counts, per chip
    runtime: str  # software version of TPU VMs, for PyTorch
    gke_accelerator: str
    gke_machine: str  # chips of a host follow
    chip_config: str = 'default'  # libtpu's name for how the cores of a chip work together

    def topology(self, num_chips: int) -> str:
        """The shape of a slice of `num_chips`. Raises UserError where there is none."""
        if num_chips not in self.topologies:
            raise UserError(f'{self.name} has no slice of {num_chips} chips: --chips takes '
                            f'{", ".join(map(str, self.topologies))}')
        return self.topologies[num_chips]

    def chips_per_host(self, num_chips: int) -> int:
        """Chips that a host of such a slice drives: four, or all eight (or the only one) of v5e and v6e."""
        return num_chips if num_chips in (1, 8) and self.has_one_core else 4

    @property
    def has_one_core(self) -> bool:
        """Whether a chip has one core: v5e and v6e, which also come as hosts of one and of eight chips."""
        return self.cores_per_type == 1


FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
CUBIC = {1: '1x1x1', 4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8'}

TPUS = {tpu.name: tpu for tpu in (
    # https://docs.cloud.google.com/tpu/docs/v3: a chip has 123 TFLOPS, 900 GB/s and 32 GiB, for two cores.
    Tpu('v3', 2, 123e12 / 2, 900e9 / 2, 15.48 * GIB,
        {1: '1x1', 4: '2x2', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16'},
        'v3', 2, 'tpu-ubuntu2204-base', 'tpu-v3-slice', 'ct3p-hightpu'),
    # https://docs.cloud.google.com/tpu/docs/v4: 275 TFLOPS, 1200 GB/s, 32 GiB. torch_xla joins the two cores of a chip.
    Tpu('v4', 1, 275e12, 1200e9, 31.75 * GIB, CUBIC,
        'v4', 2, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 'ct4p-hightpu', chip_config='megacore_dense'),
    # https://docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPS, 819 GB/s, 16 GB.
    Tpu('v5e', 1, 197e12, 819e9, 15.75 * GIB, FLAT,
        'v5litepod', 1, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 'ct5lp-hightpu'),
    # https://docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPS, 2765 GB/s, 95 GB.
    Tpu('v5p', 1, 459e12, 2765e9, 95.73 * GIB, CUBIC,
        'v5p', 2, 'v2-alpha-tpuv5', 'tpu-v5p-slice', 'ct5p-hightpu'),
    # https://docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPS, 1638 GB/s, 32 GB.
    Tpu('v6e', 1, 918e12, 1638e9, 31.24 * GIB, FLAT,
        'v6e', 1, 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 'ct6e-standard'))}


def find_tpu(name: str) -> Tpu:
    """The TPU called `name`. Raises UserError for one that is not known."""
    if name not in TPUS:
        raise UserError(f'unknown TPU {name}: --tpu takes {", ".join(TPUS)}')
    return TPUS[name]
