"""torchvision's detectors on a feature pyramid on any backbone of timm's."""

from collections import OrderedDict
from typing import Any

import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from timm_rs.models.dense_network import maps_of_strides

COARSEST = 32  # stride of a backbone's last feature map
SHAPES = (0.5, 1.0, 2.0)  # height of an anchor by its width
# By detector: stride of the finest level, and how many strides an anchor is long. Source: tensorflow/tpu
# models/official/detection, maskrcnn_config.py and retinanet_config.py.
USUAL = dict(faster_rcnn=(4, 8.0), retinanet=(8, 4.0))
GROUP = 8  # channels that group norm takes together: 32 groups of 256


class DetectionNetwork(nn.Module):
    """Images (N, C, H, W) float32 to boxes.

    In training `forward` takes targets, a dict for each image, boxes (K, 4) float32 in pixels as left, top, right,
    bottom and labels (K,) int64 from 0, and gives the losses, () float32, by name. Otherwise it gives for each image
    the boxes (K, 4), labels (K,) and scores (K,) in 0..1, at most 100, best first.

    The authors' settings where torchvision has them.
    # differs from the release: torchvision's pyramid, as in `dense_network`; RetinaNet has torchvision's losses (gamma
    # 2, L1), and group norm where the authors have a batch norm for each level.
    """

    def __init__(self, backbone: Any, num_classes: int, detector: str = 'faster_rcnn', channels: int = 256,
                 head_channels: int = 1024, sampled_boxes: int = 512, finest: int = 0, coarser_levels: bool = True,
                 anchor_scale: float = 0.0):
        """`backbone` is of timm's `features_only`; `finest` and `anchor_scale` are as usual where they are 0.

        `head_channels` are of the two layers of Faster R-CNN that see what is in a box, and train on `sampled_boxes` of
        each image. Raises ValueError where the backbone has no maps of the strides needed.
        """
        super().__init__()
        stride, scale = finest or USUAL[detector][0], anchor_scale or USUAL[detector][1]
        features = _Features(backbone, stride, channels, (
            None if not coarser_levels else
            LastLevelMaxPool() if detector == 'faster_rcnn' else LastLevelP6P7(channels, channels)))
        strides = [stride * 2 ** level for level in range(features.num_levels)]
        self.num_classes, self.pretrained_cfg = num_classes, backbone.pretrained_cfg
        if detector == 'faster_rcnn':
            anchors = AnchorGenerator(tuple((scale * stride,) for stride in strides), (SHAPES,) * len(strides))
            self.detector: nn.Module = FasterRCNN(
                features, box_head=TwoMLPHead(channels * 7 ** 2, head_channels),
                box_predictor=FastRCNNPredictor(head_channels, num_classes + 1), rpn_anchor_generator=anchors,
                rpn_post_nms_top_n_train=1000, box_batch_size_per_image=sampled_boxes,
                box_roi_pool=MultiScaleRoIAlign([str(index) for index in features.taken], 7, sampling_ratio=2))
            heads = [self.detector.rpn.head, self.detector.roi_heads.box_predictor]
        else:
            anchors = AnchorGenerator(tuple(tuple(scale * stride * 2 ** (third / 3) for third in range(3))
                                            for stride in strides), (SHAPES,) * len(strides))
            head = RetinaNetHead(channels, 9, num_classes, _group_norm)
            self.detector = RetinaNet(features, num_classes, anchor_generator=anchors, head=head,
                                      detections_per_img=100)
            heads = [head]
        self.detector.transform = _AsTheyAre()
        self.first_label = int(detector == 'faster_rcnn')  # there, 0 is what no box is around
        for head in heads:
            head.register_forward_hook(_in_float32)

    @property
    def backbone(self) -> nn.Module:
        return self.detector.backbone.body  # type: ignore[union-attr, return-value]

    def forward(self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        if self.training:
            assert targets is not None
            return self.detector(images, [
                target | dict(labels=target['labels'] + self.first_label) for target in targets])
        return [found | dict(labels=found['labels'] - self.first_label) for found in self.detector(images)]

    def get_classifier(self) -> nn.Module:
        if self.first_label:
            return self.detector.roi_heads.box_predictor.cls_score  # type: ignore[union-attr, return-value]
        return self.detector.head.classification_head.cls_logits  # type: ignore[union-attr, return-value]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]


class _Features(nn.Module):
    """Images to the levels of a pyramid, in float32: anchors and boxes take the precision of these."""

    def __init__(self, body: Any, stride: int, channels: int, coarser: nn.Module | None):
        super().__init__()
        wanted = [stride * 2 ** level for level in range((COARSEST // stride).bit_length())]
        self.taken = maps_of_strides(body, wanted, 'a detector')
        self.num_levels = len(wanted) + {type(None): 0, LastLevelMaxPool: 1, LastLevelP6P7: 2}[type(coarser)]
        self.out_channels = channels
        self.body = body
        self.pyramid = FeaturePyramidNetwork(
            [body.feature_info.channels()[index] for index in self.taken], channels, coarser, nn.BatchNorm2d)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body(images)
        levels = self.pyramid(OrderedDict((str(index), maps[index]) for index in self.taken))
        return OrderedDict((name, level.float()) for name, level in levels.items())


class _AsTheyAre(nn.Module):
    """Instead of torchvision's own normalising and resizing: images come so already, and all of one size."""

    def forward(self, images: torch.Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(images, [tuple(images.shape[2:])] * len(images)), targets  # type: ignore[arg-type, misc]

    def postprocess(self, found: Any, *sizes: Any) -> Any:
        return found


def _in_float32(head: nn.Module, inputs: Any, outputs: Any) -> Any:
    """What a head says, for losses and boxes that need float32 whatever the convolutions are in."""
    if isinstance(outputs, dict):
        return {name: output.float() for name, output in outputs.items()}
    return tuple([one.float() for one in output] if isinstance(output, list) else output.float() for output in outputs)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // GROUP), channels)


def create_detection_network(model_name: str, num_classes: int, network: dict[str, Any], **arguments: Any
                             ) -> DetectionNetwork:
    """As `network` says, on the backbone that `timm.create_model` makes of the other arguments."""
    backbone = timm.create_model(model_name, features_only=True, **arguments)
    return DetectionNetwork(backbone, num_classes, **network)
