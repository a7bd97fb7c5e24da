"""Batch norm folded into convolutions: the same logits, wherever that is allowed."""
import pytest
import timm
import torch
from torch import nn

from timm_rs.errors import UserError
from timm_rs.inference.fold import fold_batch_norm
from timm_rs.models.batch_norm import KINDS
from timm_rs.models.resnet_rs_3d import clip_shape

SMALL = dict(layers=(1, 1, 1, 1), width=0.125)


def network(name, **kwargs):
    """A network whose batch norms have something to do."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, KINDS):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight)
            nn.init.normal_(module.bias)
    return model


def batch_norms(model):
    return sum(isinstance(module, KINDS) for module in model.modules())


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnetrs', SMALL), ('resnetrs', SMALL | dict(resnet_d=False)), ('efficientnet_rs_b0', {}), ('test_resnet', {}),
    ('resnetrs3d', SMALL | dict(self_gating=True, num_frames=4))])
def test_folded_networks_have_no_batch_norm_and_the_same_logits(name, kwargs):
    model = network(name, **kwargs)
    images = torch.randn(2, *clip_shape(model, (3, 64, 64)))
    before = batch_norms(model)
    folded, count = fold_batch_norm(model)
    assert (count, batch_norms(folded), batch_norms(model)) == (before, 0, before)
    with torch.inference_mode():
        logits = model(images)
        assert (folded(images) - logits).abs().max() <= 1e-5 * logits.abs().max()


class Branching(nn.Module):
    """What a convolution gives is read twice; another is used twice; a third has its norm in front."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.used_twice, self.after = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm_1, self.norm_2, self.norm_3 = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        y = self.read_twice(x)
        y = y + self.norm_1(y)
        y = self.used_twice(self.norm_2(self.used_twice(y)))
        return self.after(self.norm_3(y + 1)).mean((2, 3))


def test_batch_norm_stays_where_folding_would_change_what_others_read():
    torch.manual_seed(0)
    model = Branching().eval()
    for norm in (model.norm_1, model.norm_2, model.norm_3):
        norm.running_mean.normal_()
    folded, count = fold_batch_norm(model)
    assert count == 0
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(folded(images), model(images))


def test_batch_norm_without_statistics_stays():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert fold_batch_norm(model)[1] == 0


def test_networks_without_batch_norm_need_no_trace():
    assert fold_batch_norm(timm.create_model('test_vit'))[1] == 0


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_traced_is_refused_with_the_way_out():
    with pytest.raises(UserError, match='Branches cannot be traced.*--no-fold-bn'):
        fold_batch_norm(Branches())
