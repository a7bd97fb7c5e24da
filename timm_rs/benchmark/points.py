"""What is measured: models in groups, and set-ups of a step. Imports no network, so that help is there at once."""

from typing import Any

# A group is measured in turn; ratios are to its first. EfficientNets are timm's, at their published resolutions.
_B1, _B2, _B3, _B4, _B5, _B6, _B7 = (f'tf_efficientnet_b{number}@{size}' for number, size in enumerate(
    (240, 260, 300, 380, 456, 528, 600), start=1))
TABLE_3 = [[_B6, 'resnetrs_350@256'], [_B7, 'resnetrs_420@320']]
# Every ResNet-RS with the EfficientNet of about its accuracy; the paper prints ratios for some of them.
TABLE_7 = [
    ['tf_efficientnet_b0@224'],
    [_B1, 'resnetrs_50@160'],
    [_B2, 'resnetrs_101@160'],
    [_B3, 'resnetrs_101@192', 'resnetrs_152@192'],
    [_B4, 'resnetrs_152@224', 'resnetrs_152@256'],
    [_B5, 'resnetrs_200@256', 'resnetrs_270@256'],
    [_B6, 'resnetrs_350@256'],
    [_B7, 'resnetrs_350@320', 'resnetrs_420@320'],
]
# All of both, where time may run out: first those that hold a pair of equal accuracy, the most expensive of them last.
BOTH_TABLES = [TABLE_7[index] for index in (4, 6, 2, 5, 7, 3, 1, 0)]
# EfficientNet-RS with the EfficientNet of about its accuracy (digitised from the figure, so the groups are ours).
FIGURE_5 = [
    [_B2, 'efficientnet_rs_b4@192'],
    [_B3, 'efficientnet_rs_b4@224', 'efficientnet_rs_b4@256'],
    [_B4, 'efficientnet_rs_b5@256', 'efficientnet_rs_b5@288', 'efficientnet_rs_b6@256', 'efficientnet_rs_b6@288'],
    [_B5, 'efficientnet_rs_b6@320'],
]
PAPERS_BATCH_SIZE = 128  # where the search for one that fits begins
PAPERS_IMAGES = 1024  # of the step whose latency the paper gives
LAYOUT = 'channels_last'  # of the recipes

# What a setup may be made of, as in channels_last+bf16+fused: changes to the recipe.
TIMMS_LOOP = 'timm'  # and this: the update of timm's train.py, without our guard and kept memory
PARTS: dict[str, dict[str, Any]] = {
    TIMMS_LOOP: {},
    'eager': {},
    'channels_last': dict(channels_last=True),
    'bf16': dict(amp=True, amp_dtype='bfloat16'),
    'foreach': dict(opt_kwargs=dict(foreach=True)),
    'fused': dict(opt_kwargs=dict(fused=True)),
    'compile': dict(torchcompile='inductor'),
    'reduce_overhead': dict(torchcompile='inductor', torchcompile_mode='reduce-overhead'),
    'max_autotune': dict(torchcompile='inductor', torchcompile_mode='max-autotune'),
    'checkpointing': dict(grad_checkpointing=True),
}
