"""Compile a program for a TPU that is not here: run as a file by the Python of an environment with jax and libtpu.

That environment cannot be torch_xla's (each pins a libtpu of its own), so nothing but jax, jaxlib, NumPy and the
standard library is imported here, and only inside functions.

    python -I tpu_compiler_child.py PROGRAM TOPOLOGY NUM_DEVICES OPTIMISED

PROGRAM is a serialized HloModuleProto as torch_xla writes it, TOPOLOGY a slice such as v5e:2x2 of which the first
NUM_DEVICES devices are used. The optimised program is written as text to OPTIMISED; the last line on stdout is JSON:
the compiler's statistics in bytes and operations per device, or {"error": what the compiler says}.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    program, topology, num_devices, optimised = sys.argv[1:]
    # Read when libtpu is loaded: do not look for a TPU, and do not mind another process that has it loaded.
    os.environ |= dict(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost',
                       ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_ACCELERATOR_TYPE='v5litepod-4')
    print(json.dumps(compile_program(Path(program).read_bytes(), topology, int(num_devices), Path(optimised))))


def compile_program(program: bytes, topology: str, num_devices: int, optimised: Path) -> dict[str, Any]:
    """Statistics of the program for one of `num_devices` devices, which run it as partitions of one (SPMD)."""
    import jax
    import numpy as np
    from jax._src.interpreters.mlir import make_ir_context
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies
    from jaxlib import _jax, xla_client

    devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices[:num_devices]
    options = xla_client.CompileOptions()
    options.num_partitions = num_devices
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id for device in devices]]))
    build = options.executable_build_options
    build.num_partitions, build.use_spmd_partitioning, build.use_shardy_partitioner = num_devices, True, False
    with make_ir_context() as context:
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(program))
        donate_arguments(module, ir)
        started = time.perf_counter()
        try:
            executable = devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)
        except jax.errors.JaxRuntimeError as error:
            return dict(error=str(error), compile_s=time.perf_counter() - started)
        seconds = time.perf_counter() - started
        del context
    optimised.write_text(executable.hlo_modules()[0].to_string())
    costs = executable.cost_analysis()
    memory = executable.get_compiled_memory_stats()
    return dict(
        compile_s=seconds, flops=costs['flops'], bytes_accessed=costs['bytes accessed'],
        **{f'{kind}_bytes': getattr(memory, f'{kind}_size_in_bytes')
           for kind in ('argument', 'output', 'alias', 'temp', 'generated_code')},
        versions=f'jax {jax.__version__}, libtpu {libtpu_version()}', all=str(memory))


def donate_arguments(module: Any, ir: Any) -> None:
    """Let each argument give its memory to a result of its shape, as torch_xla does with weights when it runs a step.

    The programs it writes do not say so.
    """
    main = next(operation for operation in module.body.operations if operation.name.value == 'main')
    main.arg_attrs = ir.ArrayAttr.get([
        ir.DictAttr.get({**{named.name: named.attr for named in attributes}, 'jax.buffer_donor': ir.BoolAttr.get(True)})
        for attributes in main.arg_attrs])


def libtpu_version() -> str:
    from importlib.metadata import version
    return version('libtpu')


if __name__ == '__main__':
    main()
