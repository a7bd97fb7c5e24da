import contextlib
import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from timm_rs.device import create_device
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.training.resume import random_state, restore_random_state


@pytest.mark.parametrize('name', ['gpu', 'cudaa', ''])
def test_unknown_device_is_refused(name):
    with pytest.raises(UserError, match='unknown device'):
        Device(name)


@pytest.mark.parametrize('name', ['cuda:99', 'cuda:x'])
def test_missing_gpu_is_refused_by_name(name):
    with pytest.raises(UserError, match=f'device {name}'):
        Device(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason='for machines without')
def test_apples_gpu_is_refused_where_there_is_none():
    with pytest.raises(UserError, match='device mps .* use --device cpu'):
        Device('mps')


def test_the_random_state_of_apples_gpu_is_part_of_a_checkpoint(monkeypatch):
    states = [torch.tensor([1, 2, 3])]
    for module, name, value in ((torch.backends.mps, 'is_available', lambda: True),
                                (torch.mps, 'get_rng_state', lambda: states[-1]),
                                (torch.mps, 'set_rng_state', states.append)):
        monkeypatch.setattr(module, name, value)
    state = random_state()
    states.append(torch.tensor([4]))
    restore_random_state(state)
    assert torch.equal(states[-1], states[0])


def test_only_float16_scales_the_loss():
    device = Device('cpu')
    assert [device.grad_scaler(dtype).is_enabled() for dtype in (None, torch.bfloat16, torch.float16)] == [
        False, False, True]


def test_autocast_computes_in_the_asked_type():
    device, a = Device('cpu'), torch.ones(2, 2)
    assert isinstance(device.autocast(None), contextlib.nullcontext)
    with device.autocast(torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    device.declines_bfloat16 = True
    with device.autocast(torch.bfloat16):
        assert (a @ a).dtype == torch.float32


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can be told')
def test_memory_that_was_freed_is_kept_for_the_next_step():
    def faults(prepare):  # in a process of its own: what other tests left in this one's heap decides where a block goes
        script = textwrap.dedent(f"""
            import resource, torch
            from timm_rs.device.torch_device import Device
            {prepare}
            def take(times):
                for _ in range(times):
                    torch.ones(16 << 20)
            take(4)  # until a block freed is the best place for the next
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            take(4)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """)
        return int(subprocess.run([sys.executable, '-c', script], check=True, capture_output=True, text=True).stdout)
    assert faults("Device('cpu').keep_freed_memory()") < 100 < faults('')  # of 65,536 pages


@pytest.mark.parametrize(('machine', 'capability', 'is_emulated'), [
    ('x86_64', 'AVX2', True), ('x86_64', 'AVX512', False), ('aarch64', 'DEFAULT', False)])
def test_bfloat16_is_emulated_by_x86_without_avx512(monkeypatch, machine, capability, is_emulated):
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    assert Device('cpu').emulates_bfloat16 == is_emulated


def test_deferred_report_gets_plain_numbers():
    reports = []
    Device('cpu').defer(lambda *numbers: reports.append(numbers), torch.tensor(2.5), torch.tensor([1.0, 2.0]))
    assert reports == [(2.5, [1.0, 2.0])]


def test_an_error_of_the_primary_process_reaches_everyone():
    def fail():
        raise UserError('no space')
    device = Device('cpu')
    assert device.on_primary(lambda: 7) == 7
    with pytest.raises(UserError, match='no space'):
        device.on_primary(fail)


def test_the_announced_successor_of_torch_xla_is_named_with_its_remedy():
    with pytest.raises(UserError, match='pip install torch_tpu'):
        create_device('tpu')


def test_xla_without_torch_xla_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch_xla', None)
    with pytest.raises(UserError, match=r'pip install "torch==2.9.0" "torch_xla\[tpu\]==2.9.0"'):
        create_device('xla')
