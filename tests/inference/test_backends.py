"""Every way to compute logits gives those of the model."""
import pytest
import timm
import torch

import timm_rs.inference.backends
from timm_rs.errors import UserError
from timm_rs.inference.backends import RUNNERS, inference_backends, is_available
from timm_rs.inference.options import BACKENDS

NEARNESS = {'bf16': 0.05, 'int8': 0.3}  # of the largest logit; all others 1e-4
# A compiled model takes a minute; test_export.py has OpenVINO in bfloat16.
NAMES = [name for name in BACKENDS if not name.startswith('compiled') and name != 'openvino_bf16']


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = timm.create_model('resnetrs', layers=(1, 1, 1, 1), width=0.125, num_classes=5, weight_init='timm').eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope='module', autouse=True)
def _one_program():
    """The graph that torch.export makes is the same for all, and expensive."""
    with pytest.MonkeyPatch.context() as patch:
        make, made = timm_rs.inference.backends.to_program, []
        patch.setattr(timm_rs.inference.backends, 'to_program', lambda model, images: (
            made or made.append(make(model, images)), made[0])[1])
        yield


def test_every_name_of_the_command_line_is_a_way_to_compute():
    assert tuple(RUNNERS) == BACKENDS


@pytest.mark.parametrize('name', NAMES)
def test_logits_are_those_of_the_model_for_any_number_of_images(name, model):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    backends = inference_backends(model, images[:4], [name])
    assert list(backends) == [name]
    with torch.inference_mode():
        truth = model(images)
    for batch in (images, images[:1]):
        logits = backends[name](batch)
        assert (logits.dtype, logits.shape) == (torch.float32, (len(batch), 5))
        near = (logits - truth[:len(batch)]).abs().max() / truth.abs().max()
        assert near <= NEARNESS.get(name.rpartition('_')[2], 1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # it stays as it was
    assert model.conv1[0].weight.dtype == torch.float32


def test_compiled_models_are_frozen_on_the_cpu(model, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, 'compile', lambda network, options: seen.append(options) or network)
    images = torch.randn(2, 3, 32, 32)
    backends = inference_backends(model, images, ['compiled', 'compiled_bf16'])
    assert seen == [dict(freezing=True)] * 2
    assert torch.allclose(backends['compiled'](images), model(images), rtol=1e-3, atol=1e-4)


def test_unknown_back_ends_are_named(model):
    with pytest.raises(UserError, match='unknown back-end tensorrt: there are eager, '):
        inference_backends(model, torch.randn(1, 3, 32, 32), ['tensorrt'])


def test_what_is_not_installed_is_left_out_or_named(model, monkeypatch):
    monkeypatch.setattr(timm_rs.inference.backends.importlib.util, 'find_spec', lambda name: None)
    assert not is_available('openvino_int8', torch.device('cpu'))
    assert is_available('folded', torch.device('cpu'))
    with pytest.raises(UserError, match=r'needs the package openvino: pip install "timm_rs\[export\]"'):
        timm_rs.inference.backends.run_openvino(None)


def test_back_ends_of_the_cpu_are_not_offered_elsewhere():
    assert not is_available('onnxruntime', torch.device('cuda'))
    assert is_available('folded_bf16', torch.device('cuda'))
