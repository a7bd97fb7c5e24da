import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import nn

from timm_rs.models.complexity import Complexity, measure_complexity


class Products(nn.Module):
    """One of each operator that holds multiply-adds, and some that hold none."""
    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(3, 6, 3, padding='same', groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):  # (1, 3, 4, 4)
        x = self.up(self.norm(self.same(x)).relu())  # (1, 2, 8, 8)
        x = x @ x.transpose(-2, -1)
        x = torch.einsum('bchw,bcwk->bchk', x, x)
        x = torch.bmm(x[0], x[0])  # (2, 8, 8)
        return self.fc(x.reshape(8, 16)).softmax(-1)


def test_count_is_the_closed_form():
    same, up, products, fc = 6 * 16 * 9, 6 * 16 * 2 * 4, 2 * 8 * 8 * 8, 8 * 16 * 5
    outputs = 6 * 16 + 2 * 64 + 3 * 128 + 40
    params = (6 * 9 + 6) + 12 + (6 * 2 * 4 + 2) + (16 * 5 + 5)
    assert measure_complexity(Products(), 4) == Complexity(params, same + up + 3 * products + fc, outputs, {})


def test_stem_and_batch_scale_as_they_should():
    model = timm.create_model('resnetrs', layers=(1, 1, 1, 1), width=0.25, in_chans=1)
    one, four = measure_complexity(model, 64), measure_complexity(model, (64, 64), batch_size=4)
    assert (four.macs, four.activations, four.params) == (4 * one.macs, 4 * one.activations, one.params)
    wide = measure_complexity(model, (64, 128))  # twice the pixels, but the same squeeze-and-excitation and classifier
    assert 1.9 * one.macs < wide.macs < 2 * one.macs
    with pytest.raises(RuntimeError, match='channels'):
        measure_complexity(model, 64, in_chans=3)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnetrs3d', dict(layers=(1, 1, 1, 1), width=0.25, self_gating=True, num_frames=5)),
    ('resnetrs', dict(layers=(1, 1, 1, 1), width=0.25)), ('test_vit', dict(img_size=64)),
])
def test_the_meta_device_gives_the_same_count(name, kwargs):
    computed = measure_complexity(timm.create_model(name, **kwargs), 64)
    with torch.device('meta'):
        meta = measure_complexity(timm.create_model(name, **kwargs), 64)
    assert (meta.params, meta.macs, meta.uncounted) == (computed.params, computed.macs, {})
    if name != 'test_vit':  # where fused attention hides the products that fvcore counts
        assert meta.activations == computed.activations


def test_clips_have_the_frames_of_the_model_or_those_asked_for():
    with torch.device('meta'):
        model = timm.create_model('resnetrs3d', layers=(1, 1, 1, 1), width=0.25, num_frames=8, squeeze_excite=False)
    eight, default = measure_complexity(model, 64, num_frames=8), measure_complexity(model, 64)
    assert eight == default
    sixteen = measure_complexity(model, 64, num_frames=16)
    assert sixteen.macs - 2 * eight.macs == -model.fc.weight.numel()  # all but the classifier doubles
    with pytest.raises(ValueError, match='num_frames=0: give at least 1'):
        measure_complexity(model, 64, num_frames=0)
    with pytest.raises(ValueError, match='num_frames=8: the model takes images'):
        measure_complexity(nn.Conv2d(3, 1, 1), 64, num_frames=8)


def test_size_of_the_cfg_is_the_default():
    model = timm.create_model('resnetrs', layers=(1, 1, 1, 1), width=0.25)
    assert measure_complexity(model) == measure_complexity(model, 224)


def test_fused_attention_counts_as_its_two_products():
    try:
        set_fused_attn(True)
        fused = measure_complexity(timm.create_model('test_vit'))
        set_fused_attn(False)
        assert measure_complexity(timm.create_model('test_vit')) == fused
    finally:
        set_fused_attn(True)
    assert fused.uncounted == {}


def test_what_is_not_counted_is_reported():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):  # (1, 3, 4, 4)
            return self.lstm(x[0])[0]

    assert measure_complexity(Recurrent(), 4).uncounted == {'aten::lstm': 1}


def test_modes_statistics_and_gradients_are_left_alone():
    model = timm.create_model('resnetrs', layers=(1, 1, 1, 1), width=0.25)
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_complexity(model, 64)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_counting_makes_no_noise(caplog, capfd):
    measure_complexity(timm.create_model('test_vit'))
    assert caplog.records == []
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(('img_size', 'message'), [
    (None, 'give img_size'), (0, 'at least 1'), ((8, -1), 'at least 1')])
def test_impossible_sizes_raise(img_size, message):
    with pytest.raises(ValueError, match=message):
        measure_complexity(nn.Conv2d(3, 1, 1), img_size)
