"""Compile a program for a TPU that is not here: run as a file by the Python of an environment with jax and libtpu.

    python -I compiler_child.py PROGRAM TOPOLOGY CHIP_CONFIG NUM_DEVICES OPTIMISED

That environment cannot be torch_xla's (each pins a libtpu of its own), so nothing but jax, jaxlib, NumPy and the
standard library is imported here. PROGRAM is a serialized HloModuleProto as torch_xla writes it; TOPOLOGY is a slice
such as v5e:2x2, of which the first NUM_DEVICES devices run the program as partitions of one (SPMD). The optimised
program goes to OPTIMISED, as text. The last line on stdout is JSON: what the compiler says of it in bytes and
operations, all per device, or {"error": why it does not compile}.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# torch_xla passes this many parameters and more in one tuple (XLA_PARAMETER_WRAPPING_THREADSHOLD). TPUs need that: v3
# takes no more than 3293.
MAX_PARAMETERS = 3200


def main() -> None:
    program, topology, chip_config, num_devices, optimised = sys.argv[1:]
    # Read when libtpu is loaded: do not look for a TPU, and do not mind another process that has it loaded.
    os.environ |= dict(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost',
                       ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_ACCELERATOR_TYPE='v5litepod-4')
    result = compile_program(
        Path(program).read_bytes(), topology, chip_config, int(num_devices), Path(optimised))
    print(json.dumps(result | dict(versions=f'jax {version("jax")}, libtpu {version("libtpu")}')))


def compile_program(
        program: bytes, topology: str, chip_config: str, num_devices: int, optimised: Path) -> dict[str, Any]:
    import jax
    import numpy as np
    from jax._src.interpreters.mlir import make_ir_context
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies
    from jaxlib import _jax, xla_client

    devices = topologies.get_topology_desc(
        platform='tpu', topology_name=topology, chip_config_name=chip_config).devices[:num_devices]
    options = xla_client.CompileOptions()
    options.num_partitions = num_devices
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id for device in devices]]))
    build = options.executable_build_options
    build.num_partitions, build.use_spmd_partitioning, build.use_shardy_partitioner = num_devices, True, False
    build.allow_spmd_sharding_propagation_to_output = [True]  # as torch_xla
    with make_ir_context():
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(program))
        main = next(operation for operation in module.body.operations if operation.name.value == 'main')
        # An argument gives its memory to a result of its shape, as weights do when torch_xla runs a step. The programs
        # that it writes do not say so.
        donated = {'jax.buffer_donor': ir.BoolAttr.get(True)}
        main.arg_attrs = ir.ArrayAttr.get([
            ir.DictAttr.get({named.name: named.attr for named in attributes} | donated)
            for attributes in main.arg_attrs])
        options.parameter_is_tupled_arguments = len(main.arg_attrs) >= MAX_PARAMETERS
        started = time.perf_counter()
        try:
            executable = devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)
        except jax.errors.JaxRuntimeError as error:
            return dict(error=str(error), compile_s=time.perf_counter() - started)
        seconds = time.perf_counter() - started
    optimised.write_text(executable.hlo_modules()[0].to_string())
    costs, memory = executable.cost_analysis(), executable.get_compiled_memory_stats()
    return dict(
        compile_s=seconds, flops=costs['flops'], bytes_accessed=costs['bytes accessed'],
        **{f'{kind}_bytes': getattr(memory, f'{kind}_size_in_bytes')
           for kind in ('argument', 'output', 'alias', 'temp', 'generated_code')})


if __name__ == '__main__':
    main()
