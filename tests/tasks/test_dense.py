"""What tasks with a target for every pixel have in common."""

import torch
from torch.nn.functional import interpolate

from timm_rs.tasks.dense import at_own_size
from timm_rs.transforms.joint import OUTSIDE, fitted


def test_outputs_at_labels_own_sizes_are_interpolates():
    torch.manual_seed(0)
    outputs, sizes = torch.randn(4, 3, 24, 32), [(50, 37), (20, 60), (7, 9), (24, 32)]
    targets = torch.full((4, 64, 64), OUTSIDE)
    for target, (height, width) in zip(targets, sizes, strict=True):
        target[:height, :width] = 0
    resized = at_own_size(outputs, targets)
    assert resized.shape == (4, 3, 64, 64)
    for output, found, (height, width) in zip(outputs, resized, sizes, strict=True):
        small = fitted(torch.tensor(height), torch.tensor(width), (24, 32))
        expected = interpolate(output[None, :, :small[0], :small[1]], (height, width), mode='bilinear')[0]
        torch.testing.assert_close(found[:, :height, :width], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(resized[3, :, :24, :32], outputs[3])  # to the bit where nothing is resized
