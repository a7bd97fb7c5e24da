"""Stand-ins for the TPU compiler: what it once said, from programs that cost nothing to run."""

import json
import stat
from pathlib import Path

# Recorded with jax 0.10.2 and libtpu 0.0.52 from a ResNet-RS of 4 bottlenecks and an eighth of the width.
COMPILED = dict(
    compile_s=20.94, flops=164460480.0, bytes_accessed=179671552.0, argument_bytes=6965248, output_bytes=6774272,
    alias_bytes=6753280, temp_bytes=6324224, generated_code_bytes=10588672, versions='jax 0.10.2, libtpu 0.0.52')
OUT_OF_MEMORY = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
    'temporaries (105.73G) exceeds available HBM (15.75G). HLO module: IrToHlo.4137.\n'
    'See https://openxla.org/xla/errors/error_1000 for more details.')
# One all-gather in flight while three fusions run, another one, and two all-reduces of which one is asynchronous.
HLO = """
  %all-gather.20 = bf16[32,1000]{1,0:T(8,128)(2,1)} all-gather(%param_0.5467), channel_id=136, dimensions={0}
  %all-gather.22 = bf16[32,1000]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.5471), channel_id=136, dimensions={0}
  %all-gather.24 = bf16[32,1000]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.5476), channel_id=136, dimensions={0}
  %all-gather = u32[32,1,2]{2,1,0:T(1,128)S(1)} all-gather(%copy.2944), channel_id=8, dimensions={0}
  %all-reduce.159 = (f32[32]{0:T(128)S(1)}, f32[32]{0:T(128)S(1)}) all-reduce(%fusion.1, %fusion), channel_id=34
  %all-reduce-start = f32[32]{0:T(128)} all-reduce-start(%fusion.2), channel_id=35, to_apply=%add.31
  %all-reduce-done = f32[32]{0:T(128)} all-reduce-done(%all-reduce-start)
  ROOT %add.1 = f32[32]{0} add(%all-reduce-done, %all-reduce-done), metadata={op_name="all-reduce(x) channel_id"}
"""


def fake_python(folder: Path, answer: dict, hlo: str = HLO) -> Path:
    """A program that takes the place of the compiler's Python and always gives `answer`."""
    (folder / 'hlo').write_text(hlo)
    (folder / 'answer').write_text(json.dumps(answer))
    return script(folder, f'for target; do :; done\ncp {folder}/hlo "$target"\necho noise\ncat {folder}/answer')


def script(folder: Path, lines: str) -> Path:
    path = folder / 'python'
    path.write_text(f'#!/bin/sh\n{lines}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
