"""The networks. Importing this package adds them to timm's registry."""
from . import efficientnet_rs as _efficientnet_rs
from . import resnet_rs as _resnet_rs
from .efficientnet_rs import (
    efficientnet_rs_b0,
    efficientnet_rs_b1,
    efficientnet_rs_b2,
    efficientnet_rs_b3,
    efficientnet_rs_b4,
    efficientnet_rs_b5,
    efficientnet_rs_b6,
    efficientnet_rs_b7,
)
from .resnet_rs import (
    LAYERS,
    ResNetRS,
    resnetrs,
    resnetrs_50,
    resnetrs_101,
    resnetrs_152,
    resnetrs_200,
    resnetrs_270,
    resnetrs_350,
    resnetrs_420,
)
from .resnet_rs_3d import (
    ResNetRS3d,
    resnet3d_50,
    resnetrs3d,
    resnetrs3d_50,
    resnetrs3d_101,
    resnetrs3d_152,
    resnetrs3d_200,
    resnetrs3d_270,
    resnetrs3d_350,
    resnetrs3d_420,
)

# The paper's 11 + 8 operating points, as names for timm.create_model, such as 'resnetrs_50.tf_i160_in1k'.
PAPER_POINTS = _resnet_rs.PAPER_POINTS + _efficientnet_rs.PAPER_POINTS

__all__ = [
    'LAYERS', 'PAPER_POINTS', 'ResNetRS',
    'resnetrs', 'resnetrs_50', 'resnetrs_101', 'resnetrs_152', 'resnetrs_200', 'resnetrs_270',
    'resnetrs_350', 'resnetrs_420',
    'ResNetRS3d', 'resnet3d_50',
    'resnetrs3d', 'resnetrs3d_50', 'resnetrs3d_101', 'resnetrs3d_152', 'resnetrs3d_200', 'resnetrs3d_270',
    'resnetrs3d_350', 'resnetrs3d_420',
    'efficientnet_rs_b0', 'efficientnet_rs_b1', 'efficientnet_rs_b2', 'efficientnet_rs_b3',
    'efficientnet_rs_b4', 'efficientnet_rs_b5', 'efficientnet_rs_b6', 'efficientnet_rs_b7',
]
