import math

import pytest
import torch

from timm_rs.models.layers_3d import SameMaxPool3d, create_conv, pad_same


@pytest.mark.parametrize('size', range(1, 10))
@pytest.mark.parametrize(('kernel', 'stride'), [(3, 2), (5, 2), (7, 2), (3, 1), (1, 2)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    padded = pad_same(torch.ones(1, 1, size, size, size), (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0].tolist()
    outputs = math.ceil(size / stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    assert padded == [0] * (total // 2) + [1] * size + [0] * (total - total // 2)
    conv = create_conv(1, 1, (kernel, 1, 1), (stride, 1, 1))
    assert conv(torch.ones(1, 1, size, 4, 4)).shape[2] == outputs


def test_max_pool_pads_with_minus_infinity():
    negative = -1 - torch.randn(1, 2, 3, 8, 8).abs()
    assert SameMaxPool3d((1, 3, 3), (1, 2, 2))(negative).max() < 0
