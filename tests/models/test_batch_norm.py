"""Batch norm over groups has the statistics of data-parallel processes."""

import copy

import pytest
import timm
import torch
from torch import nn

import timm_rs  # noqa: F401
from timm_rs.models.batch_norm import GroupBatchNormAct2d, group_batch_norm


@pytest.mark.parametrize(('kind', 'size'), [(nn.BatchNorm2d, (5, 5)), (nn.BatchNorm3d, (2, 5, 3))])
def test_groups_are_normalised_as_processes_would_normalise_them(kind, size):
    torch.manual_seed(0)
    plain = kind(4, momentum=0.3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    processes = [copy.deepcopy(plain) for _ in range(3)]
    grouped = group_batch_norm(nn.Sequential(copy.deepcopy(plain)), 2)
    x = torch.randn(6, 4, *size) * 3 + 1
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.cat([norm(part) for norm, part in zip(processes, first.split(2), strict=True)])
    got = grouped(second)
    torch.testing.assert_close(got, expected)
    for y in (expected, got):
        y.square().sum().backward()
    torch.testing.assert_close(second.grad, first.grad)
    for name in ('running_mean', 'running_var'):
        mean = torch.stack([getattr(norm, name) for norm in processes]).mean(0)
        torch.testing.assert_close(getattr(grouped[0], name), mean)
    assert grouped[0].num_batches_tracked == 1


@pytest.mark.parametrize(('name', 'kwargs', 'size'), [
    ('resnetrs_50', {}, (64, 64)), ('efficientnet_rs_b0', {}, (64, 64)),
    ('resnetrs3d', dict(layers=(1, 1, 1, 1), width=0.125), (4, 32, 32)),
])
@pytest.mark.parametrize('group_size', [0, 4])
def test_a_network_keeps_its_names_and_results(name, kwargs, size, group_size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    grouped = group_batch_norm(copy.deepcopy(model), group_size)
    assert list(grouped.state_dict()) == list(model.state_dict())
    assert not [module for module in grouped.modules()
                if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) and not isinstance(module, GroupBatchNormAct2d)]
    images = torch.randn(4, 3, *size)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = model.train()(images)
        torch.manual_seed(1)
        torch.testing.assert_close(grouped.train()(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(grouped.eval()(images), model.eval()(images), rtol=1e-3, atol=1e-4)


def test_low_precision_stays_what_it_was():
    x = torch.randn(4, 3, 5, 5, dtype=torch.bfloat16)
    for group_size in (0, 2):
        assert group_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), group_size)(x).dtype == torch.bfloat16
