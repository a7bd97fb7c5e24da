"""Updates left out on the device are left out as those that the host decides about, and without asking the device."""

from contextlib import contextmanager

import pytest
import torch
from timm.data import Mixup
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_rs.device.torch_device import Device
from timm_rs.device.xla import XlaDevice
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.classification import Classification
from timm_rs.training.build import create_training
from timm_rs.training.engine import NonFiniteError, train_updates
from timm_rs.training.resume import checkpoint_state
from timm_rs.training.state import Position


class AsynchronousCpu(Device):
    """The CPU, treated like a GPU: a device that must not be asked."""

    is_asynchronous = True


class LazyCpu(AsynchronousCpu):
    """The CPU, treated like a device that collects whole steps."""

    is_lazy = True
    are_finite, bits, keep, copy = XlaDevice.are_finite, XlaDevice.bits, XlaDevice.keep, XlaDevice.copy
    put_back, put_zeros, lerp = XlaDevice.put_back, XlaDevice.put_zeros, XlaDevice.lerp


DEVICES = [AsynchronousCpu, LazyCpu]
SGD = dict(opt='momentum', lr=0.1, momentum=0.9)
OPTIMIZERS = {
    'sgd': SGD,
    'fused sgd': SGD | dict(opt_kwargs=dict(fused=True)),
    'adamw': dict(opt='adamw', lr=0.01),
    'fused adamw': dict(opt='adamw', lr=0.01, opt_kwargs=dict(fused=True)),
    'rmsproptf': dict(opt='rmsproptf', lr=0.01, momentum=0.9, opt_eps=1e-3),
}


class Quiet:
    def waiting_for(self, loader):
        return iter(loader)

    def report(self, *_):
        pass


class WithNan(list):
    """Batches, of which some have an image that is not finite."""

    def __init__(self, bad, count=8, mix=None):
        super().__init__((torch.randn(6, 3, 8, 8), torch.randint(3, (6,))) for _ in range(count))
        self.mix = mix
        for index in bad:
            self[index][0][0, 0, 0, 0] = torch.nan

    def __iter__(self):
        for images, targets in super().__iter__():
            yield self.mix(images, targets) if self.mix else (images, targets)


def create(device, **recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3)).to(memory_format=torch.channels_last)
    values = Recipe(**dict(model_ema=True, model_ema_decay=0.9, log_interval=2, smoothing=0.0, channels_last=True)
                    | SGD | recipe)
    training = create_training(model, {}, values, device, Classification(values))
    device.prepare(model, training.optimizer, None)
    return training


def train_on(device, bad, **recipe):
    training, position = create(device, **recipe), Position()
    for _ in train_updates(training, WithNan(bad), device, position, Quiet()):
        pass
    return training, position


@pytest.mark.parametrize('bad', [[], [3], [0, 5, 6]], ids=str)
@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('kind', DEVICES)
def test_the_device_leaves_out_what_the_host_would(bad, accumulate, kind):
    settings = dict(grad_accum_steps=accumulate, clip_grad=0.5)
    ours, our_position = train_on(kind('cpu'), bad, **settings)
    theirs, position = train_on(Device('cpu'), bad, **settings)
    assert our_position.skipped == position.skipped == len({index // accumulate for index in bad})
    assert our_position.mean_loss == pytest.approx(position.mean_loss)
    for model, other in ((ours.model, theirs.model), (ours.ema.module, theirs.ema.module)):
        torch.testing.assert_close(model.state_dict(), other.state_dict())


@pytest.mark.parametrize(('bad', 'kept'), [([], range(8)), ([3], (0, 1, 4, 5, 6, 7))], ids=str)
@pytest.mark.parametrize('kind', [Device, *DEVICES])
def test_images_that_are_right_are_counted_in_updates_that_are_made(bad, kept, kind):
    device = kind('cpu')
    training, position = create(device, lr=0.0, grad_accum_steps=2), Position()
    batches = WithNan(bad)
    training.model.train()
    right = [int((training.model(images).argmax(1) == targets).sum()) for images, targets in batches]
    for _ in train_updates(training, batches, device, position, Quiet()):
        pass
    assert position.share_right == pytest.approx(100 * sum(right[index] for index in kept) / (6 * len(kept)))
    assert 0 < position.share_right < 100


@pytest.mark.parametrize('kind', [Device, *DEVICES])
def test_of_mixed_images_none_is_right_or_wrong(kind):
    device, position = kind('cpu'), Position()
    training = create(device, mixup=0.2)
    mixed = WithNan([3], mix=Mixup(mixup_alpha=0.2, num_classes=3))
    for _ in train_updates(training, mixed, device, position, Quiet()):
        pass
    assert position.share_right is None and position.mean_loss > 0
    position.start_epoch(1)
    assert position.right == 0


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('kind', DEVICES)
def test_an_update_left_out_leaves_no_bit_changed(optimizer, kind):
    device = kind('cpu')
    training = create(device, **OPTIMIZERS[optimizer])

    def everything():
        return [tensor.clone() for tensor in (*training.tensors(), *training.model.buffers(),
                                              *training.ema.module.state_dict().values())]
    before = []
    for _ in train_updates(training, WithNan([3]), device, position := Position(), Quiet()):
        now = everything()
        if position.update == 4:
            assert all(torch.equal(one, two) for one, two in zip(before, now, strict=True))
        elif before:
            assert not all(torch.equal(one, two) for one, two in zip(before, now, strict=True))
        before = now
    assert position.skipped == 1


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('kind', DEVICES)
def test_what_an_optimizer_begins_to_keep_in_an_update_left_out_is_finite(optimizer, kind):
    training, position = train_on(kind('cpu'), [0], **OPTIMIZERS[optimizer])
    assert position.skipped == 1
    assert all(tensor.isfinite().all() for tensor in [*training.tensors(), *training.model.buffers(),
                                                      *training.ema.module.state_dict().values()])


@pytest.mark.parametrize('kind', [*DEVICES, Device])
def test_without_any_finite_update_training_stops(kind):
    with pytest.raises(NonFiniteError, match='in a row'):
        train_on(kind('cpu'), range(8), max_nonfinite_steps=3)


@pytest.mark.parametrize('kind', DEVICES)
def test_too_many_in_a_row_are_found_although_one_was_finite_before_the_report(kind):
    with pytest.raises(NonFiniteError, match='in a row'):
        train_on(kind('cpu'), [1, 2, 3, 4], max_nonfinite_steps=3, log_interval=100)
    train_on(kind('cpu'), [1, 2, 3, 5, 6, 7], max_nonfinite_steps=3, log_interval=100)


def test_a_checkpoint_between_reports_knows_how_many_were_left_out_in_a_row():
    device = AsynchronousCpu('cpu')
    training = create(device, log_interval=100)
    position = Position()
    for _ in train_updates(training, WithNan([2, 3, 4, 5, 6]), device, position, Quiet()):
        if position.update == 5:
            break
    assert checkpoint_state(training, device, position, [])['place']['skipped_in_a_row'] == 3


def test_float16s_scaler_works_without_being_asked():
    settings = dict(amp=True, amp_dtype='float16')
    ours, our_position = train_on(AsynchronousCpu('cpu'), [3], **settings)
    theirs, position = train_on(Device('cpu'), [3], **settings)
    assert our_position.skipped == position.skipped >= 1
    assert ours.scaler.get_scale() == theirs.scaler.get_scale() == 2**15
    torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict())


class ScalarReads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers read, and shapes that depend on values."""

    WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero')

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in self.WAITS
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_reads(monkeypatch):
    """The number of reads so far, also of those that pass by the dispatcher on a CPU."""
    with ScalarReads() as reads, monkeypatch.context() as patch:
        def counted(original):
            def read(tensor, *args, **kwargs):
                reads.count += 1
                return original(tensor, *args, **kwargs)
            return read
        for name in ('tolist', 'numpy', 'cpu', '__bool__', '__float__', '__int__', 'item'):
            patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        yield reads


def reads_per_update(monkeypatch, device, spoil=lambda training: None, **recipe):
    training = create(device, log_interval=4, **recipe)
    spoil(training)
    mix = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=3) if 'mixup' in recipe else None
    batches, position, counts = WithNan([2], 16, mix), Position(), []
    with counted_reads(monkeypatch) as reads:
        before = 0
        for reported in train_updates(training, batches, device, position, Quiet()):
            counts.append((reads.count - before, reported))
            before = reads.count
    return counts


EVERYTHING = dict(grad_accum_steps=2, clip_grad=0.5, mixup=0.2, cutmix=1.0)


@pytest.mark.parametrize('settings', [{}, EVERYTHING, EVERYTHING | dict(clip_mode='agc'), dict(amp=True)], ids=str)
@pytest.mark.parametrize('optimizer', ['fused sgd', 'sgd', 'fused adamw', 'rmsproptf'])
def test_between_reports_the_host_reads_nothing(monkeypatch, settings, optimizer):
    counts = reads_per_update(monkeypatch, AsynchronousCpu('cpu'), **OPTIMIZERS[optimizer] | settings)
    assert {reported for _, reported in counts} == {True, False}
    assert [count for count, reported in counts if not reported] == [0] * sum(not reported for _, reported in counts)
    assert all(count > 0 for count, reported in counts if reported)


def test_a_number_read_in_the_step_would_be_counted(monkeypatch):
    def spoil(training):
        training.model.register_forward_hook(lambda module, inputs, output: output.sum().item() and None)
    assert all(count for count, _ in reads_per_update(monkeypatch, AsynchronousCpu('cpu'), spoil))
    assert all(count for count, _ in reads_per_update(monkeypatch, Device('cpu')))  # which asks on purpose
