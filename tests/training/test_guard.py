"""Updates left out on the device are left out as those that the host decides about."""

import pytest
import torch
from torch import nn

from timm_rs.device import Device
from timm_rs.recipe import Recipe
from timm_rs.training.ema import create_ema
from timm_rs.training.engine import NonFiniteError, train_updates
from timm_rs.training.state import Place, Training


class LazyCpu(Device):
    """The CPU, treated like a device that must not be asked."""

    is_lazy = True


class Quiet:
    def waiting_for(self, loader):
        return iter(loader)

    def report(self, *_):
        pass


def train_on(device, bad, opt='momentum', **recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3))
    values = Recipe(model_ema=True, model_ema_decay=0.9, log_interval=2, **recipe)
    optimizer = (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) if opt == 'momentum'
                 else torch.optim.AdamW(model.parameters(), 0.01))
    training = Training(
        model, model, nn.CrossEntropyLoss(), optimizer, None, device.grad_scaler(None),
        create_ema(model, values, device), torch.zeros(3))
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(3, (6,))) for _ in range(8)]
    for index in bad:
        batches[index][0][0, 0, 0, 0] = torch.nan
    place = Place()
    for _ in train_updates(training, batches, values, device, place, Quiet()):
        pass
    return training, place


@pytest.mark.parametrize('bad', [[], [3], [0, 5, 6]], ids=str)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_device_leaves_out_what_the_host_would(bad, accumulate):
    settings = dict(grad_accum_steps=accumulate, clip_grad=0.5)
    ours, our_place = train_on(LazyCpu('cpu'), bad, **settings)
    theirs, place = train_on(Device('cpu'), bad, **settings)
    assert our_place.skipped == place.skipped == len({index // accumulate for index in bad})
    assert our_place.mean_loss == pytest.approx(place.mean_loss)
    for model, other in ((ours.model, theirs.model), (ours.ema.module, theirs.ema.module)):
        torch.testing.assert_close(model.state_dict(), other.state_dict())


@pytest.mark.parametrize('opt', ['momentum', 'adamw'])
def test_what_an_optimizer_begins_to_keep_in_an_update_left_out_is_finite(opt):
    training, place = train_on(LazyCpu('cpu'), [0], opt)
    assert place.skipped == 1
    assert all(tensor.isfinite().all() for tensor in [*training.tensors(), *training.model.buffers()])


def test_without_any_finite_update_training_stops():
    for device in (LazyCpu('cpu'), Device('cpu')):
        with pytest.raises(NonFiniteError, match='in a row'):
            train_on(device, range(8), max_nonfinite_steps=3)
