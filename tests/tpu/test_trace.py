import os
import subprocess
import sys

import pytest
from conftest import ROOT

COMPARE = """
import collections, os, re, sys
os.environ.update(PJRT_DEVICE='CPU', CPU_NUM_DEVICES='2', XLA_FLAGS='--xla_backend_optimization_level=0')
from timm_rs.device.xla import XlaDevice
from timm_rs.recipe.knobs import Recipe
from timm_rs.tpu.trace import create_program_on
model = dict(resnetrs=dict(model='resnetrs', model_kwargs=dict(layers=(1, 1, 1, 1), width=0.125), opt='sgd', drop=0.2),
             efficientnet=dict(model='test_efficientnet', opt='rmsproptf'))[sys.argv[1]]
recipe = Recipe(**model, img_size=32, batch_size=4, num_classes=10, warmup_epochs=0, lr=0.1, model_ema=True,
                model_ema_warmup=True, amp=True, amp_dtype='bfloat16', mixup=0.2)
device = XlaDevice()

def operations():  # in place of the serialized program: what it computes, in no order
    tensors = device._live_tensors()
    needed = device._xla._XLAC._check_tensor_need_materialization(tensors)
    text = device._xla._XLAC._get_xla_tensors_hlo([tensor for tensor, needs in zip(tensors, needed) if needs])
    return collections.Counter(re.findall(r'= (\\S+ [a-z-]+\\()', text))

device.collected_program = operations
traced = create_program_on(device, recipe)
# Now the same, but the first update is run, not forgotten.
forget = [device._xla.sync, device.forget_collected]
device.forget_collected = lambda: forget.pop(0)()
ran = create_program_on(device, recipe)
assert sum(traced.values()) > 500 and sum(shape.startswith('u8[8,32,32,3]') for shape in traced) == 1, traced
assert traced == ran, (traced - ran, ran - traced)
print('equal')
"""


@pytest.mark.xla
@pytest.mark.parametrize('model', ['resnetrs', 'efficientnet'])
def test_the_traced_step_is_the_one_that_runs_after_the_first(model):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', COMPARE, model], cwd=ROOT, capture_output=True,
                          text=True, check=False, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'equal\n'
