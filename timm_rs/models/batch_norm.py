"""Batch norm over groups of a batch: the statistics that several devices would have, in one module."""

import torch
from timm.layers import BatchNormAct2d
from torch import nn

KINDS = (nn.BatchNorm2d, nn.BatchNorm3d)


class GroupBatchNormAct2d(BatchNormAct2d):
    """timm's `BatchNormAct2d` with statistics of their own for each `group_size` images that follow one another.

    Takes and gives (N, C, H, W), or clips (N, C, T, H, W), in the same dtype; N must be a multiple of `group_size` in
    training. `group_size` 0 is the whole batch. The running statistics move by the mean over the groups, as
    data-parallel processes have them once they share theirs. The paper's runs had such statistics per TPU core
    (tensorflow/tpu, `resnet_model.py`).
    """

    group_size = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.group_size not in (0, len(x)):
            y = self._normalize_groups(x)
        else:
            if self.training and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            y = nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias,
                self.training or self.running_mean is None, self.momentum, self.eps)
        # XLA's autocast computes batch norm in float32; left so, the whole residual stream would follow.
        return self.act(self.drop(y.to(x.dtype)))  # type: ignore[no-any-return]

    def _normalize_groups(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.float().unflatten(0, (-1, self.group_size))
        axes = [axis for axis in range(groups.ndim) if axis not in (0, 2)]  # all but groups and channels
        var, mean = torch.var_mean(groups, dim=axes, correction=0, keepdim=True)
        if self.running_mean is not None:
            count = groups[0, :, 0].numel()
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.mean(0).flatten(), self.momentum)
                self.running_var.lerp_(var.mean(0).flatten() * (count / max(count - 1, 1)), self.momentum)
        y = ((groups - mean) * torch.rsqrt(var + self.eps)).flatten(0, 1)
        if self.weight is not None:
            of_channels = (-1, *[1] * (y.ndim - 2))
            y = y * self.weight.view(of_channels) + self.bias.view(of_channels)
        return y


def group_batch_norm(model: nn.Module, group_size: int) -> nn.Module:
    """Replace every batch norm of images or clips in `model`, timm's included; names, weights and statistics stay.

    `group_size` is that of `GroupBatchNormAct2d`. Returns `model`.
    """
    for name, module in model.named_children():
        if not isinstance(module, KINDS):
            group_batch_norm(module, group_size)
            continue
        grouped = GroupBatchNormAct2d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
            apply_act=False)
        grouped.group_size = group_size
        for attribute in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked', 'training'):
            setattr(grouped, attribute, getattr(module, attribute))
        if isinstance(module, BatchNormAct2d):
            grouped.drop, grouped.act = module.drop, module.act
        setattr(model, name, grouped)
    return model
