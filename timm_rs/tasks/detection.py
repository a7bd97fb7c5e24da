"""Boxes around the objects in an image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from timm_rs.data.boxed import check_boxes
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.models.detection_network import COARSEST, create_detection_network
from timm_rs.recipe.declaring import knob
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.average_precision import Judged, check_installed, coco_precision, voc07_precision
from timm_rs.tasks.backbone import BackboneTask, check_num_classes
from timm_rs.tasks.segmentation import voc_colours
from timm_rs.tasks.task import Metric
from timm_rs.transforms.boxes import BLANK, CROWD, Boxes, BoxTransform, clipped
from timm_rs.transforms.create import create_limits
from timm_rs.transforms.joint import JointTransform, fitted


class Detection(BackboneTask):
    """Targets (N, max_boxes, 6) float32, in evaluation with the images' areas, as `transforms.boxes` has them; losses
    by name, or boxes for each image.

    Coordinates are those of the network's images. Overlaps are the same at images' own sizes, for all is scaled alike.
    """

    name = 'detection'
    metrics = (Metric('ap50', 'AP50', True, '%', 'average precision (%)'), Metric('ap', 'AP', True, '%',
               'average precision (%)'), Metric('ap75', 'AP75', True, '%', 'average precision (%)'),
               Metric('ap50_voc07', 'AP50 (VOC 2007, 11 points)', True, '%', 'average precision (%)'))
    blank = BLANK
    hub = ('object-detection', 'Object Detection')
    parts = 'boxes'
    layouts = ('voc_boxes', 'coco')

    @dataclass
    class Knobs:
        detector: str = knob(
            'faster_rcnn', 'faster_rcnn, or retinanet, whose bits repeat on GPUs at no cost',
            choices=('faster_rcnn', 'retinanet'))
        pyramid_channels: int = knob(256, 'channels of the feature pyramid', low=1)
        head_channels: int = knob(1024, 'of faster_rcnn: channels of the layers that see what is in a box', low=1)
        sampled_boxes: int = knob(512, 'of faster_rcnn: boxes of an image that these layers train on', low=1)
        finest: int = knob(0, 'stride of the finest level of the pyramid: 4, 8 or 16; 0: 4 of faster_rcnn, 8 of '
                              'retinanet', low=0, high=16)
        coarser_levels: bool = knob(True, 'levels beyond stride 32: 64 of faster_rcnn, 64 and 128 of retinanet')
        anchor_scale: float = knob(0.0, 'side of the anchors of a level, in strides of it; 0: 8 of faster_rcnn, 4 of '
                                        'retinanet', low=0)
        max_boxes: int = knob(100, 'boxes that an image may have; one with more is a bad sample', low=1, high=10000)
        scale_jitter: list[float] = knob(
            [1.0, 1.0], 'range of the share of the input that training images are scaled to fit', nargs=2, above=0,
            high=10)
        colour: float = knob(0.0, 'by how much brightness, contrast and saturation vary in training', low=0, high=1)

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if recipe.device.startswith('xla'):
            raise UserError('task detection does not go with device xla: its boxes make shapes that differ from step '
                            'to step, and each would be compiled anew; give cpu or cuda')
        if recipe.torchcompile:
            raise UserError('task detection does not go with torchcompile, since its boxes make shapes that differ '
                            'from step to step: leave it out')
        if self.knobs.finest not in (0, 4, 8, 16):
            raise UserError(f'finest must be 4, 8, 16, or 0 for the usual one, got {self.knobs.finest}')

    # ---- data ---------------------------------------------------------------------------------------------------

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Samples | None, Samples | None, int | None]:
        """Raises UserError also for splits of different classes, and without what evaluates boxes."""
        train, validation, _ = super().create_datasets(recipe, need_training, known, source)
        if validation is not None:
            check_installed()
        splits: list[Any] = [split for split in (train, validation) if split is not None]
        if splits[0].classes != splits[-1].classes:
            raise UserError(f'the splits {recipe.train_split} and {recipe.val_split} have different classes: '
                            f'{", ".join(splits[0].classes)} and {", ".join(splits[-1].classes)}')
        num_classes = len(splits[0].classes)
        check_num_classes(recipe.num_classes, num_classes)
        if train is not None:
            check_boxes(train)
        return train, validation, num_classes

    def classes(self, dataset: Any) -> dict[Any, int]:
        return dict(dataset.classes)

    def create_transform(self, recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> JointTransform:
        """Raises UserError for sizes that are no multiples of the coarsest stride: anchors would lie elsewhere."""
        size, knobs = data_config['input_size'][-2:], self.knobs
        if any(side % COARSEST for side in size):
            raise UserError(f'task detection takes images of multiples of {COARSEST} pixels, got {size[1]} x '
                            f'{size[0]}: give --img-size {max(1, round(max(size) / COARSEST)) * COARSEST}')
        transform = BoxTransform(recipe.image_mode, size, tuple(round(255 * mean) for mean in data_config['mean']),
                                 knobs.max_boxes, create_limits(recipe))
        if not is_training:
            return transform
        if recipe.no_aug:
            return transform.training(0.0, (1.0, 1.0), 0.0, False)
        return transform.training(recipe.hflip, tuple(knobs.scale_jitter), knobs.colour, False)

    def encoder(self, num_outputs: int) -> Callable[[Any], Any]:
        return partial(checked, num_outputs=num_outputs)

    # ---- the model ----------------------------------------------------------------------------------------------

    def create_model(self, num_classes: int | None = None, **arguments: Any) -> nn.Module:
        """On timm's features. `drop_rate` and `global_pool` would be of the classifier, which there is not."""
        knobs = self.knobs
        return create_detection_network(num_classes=num_classes or 1, network=dict(
            detector=knobs.detector, channels=knobs.pyramid_channels, head_channels=knobs.head_channels,
            sampled_boxes=knobs.sampled_boxes, finest=knobs.finest, coarser_levels=knobs.coarser_levels,
            anchor_scale=knobs.anchor_scale), **arguments)

    def forward(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Any:
        """In training the losses by name, which the model makes itself."""
        return model(images, [trained_on(rows) for rows in targets]) if model.training else model(images)

    def loss(self, outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """The sum of the model's own."""
        return torch.stack([loss.float() for loss in outputs.values()]).sum()

    def evaluator(self, device: Device) -> 'Detections':
        return Detections(device)

    # ---- for people ---------------------------------------------------------------------------------------------

    def picture(self, outputs: Any, size: tuple[int, int], pixels: npt.NDArray[np.uint8], names: list[str] | None,
                min_score: float = 0.5) -> tuple[npt.NDArray[np.uint8], str]:
        """Boxes of at least `min_score` with names and scores, the best on top."""
        tall, wide = pixels.shape[:2]
        height, width = map(float, fitted(torch.tensor(tall), torch.tensor(wide), size))
        rows = found_within(outputs[0], width, height).numpy()
        boxes, labels, scores = rows[:, :4] * ([wide / width, tall / height] * 2), rows[:, 4].astype(int), rows[:, 5]
        shown = [index for index in range(len(scores)) if scores[index] >= min_score]
        texts = {index: f'{names[labels[index]] if names else f"class {labels[index]}"} {100 * scores[index]:.0f} %'
                 for index in shown}
        image = Image.fromarray(pixels)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(10, round(max(pixels.shape) / 40)))
        colours = voc_colours(256)
        for index in reversed(shown):
            colour, (left, top, right, bottom) = tuple(colours[labels[index] % 255 + 1].tolist()), boxes[index].tolist()
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour,
                           width=max(1, round(max(pixels.shape) / 300)))
            _, _, text_width, text_height = draw.textbbox((0, 0), texts[index], font)
            left, top = max(0.0, min(left, wide - text_width)), max(0.0, top - text_height)
            draw.rectangle((left, top, left + text_width, top + text_height), fill=colour)
            draw.text((left, top), texts[index], 'white' if sum(colour) < 384 else 'black', font)
        return np.asarray(image), ', '.join(texts.values()) or f'no box of {100 * min_score:.0f} % or more'

    def usage(self, num_outputs: int) -> list[str]:
        return ['    boxes = model(x)[0]  # with labels and scores']


def checked(boxes: Boxes, num_outputs: int) -> Boxes:
    """The same. Raises UserError for a label that the network has no output for."""
    if len(boxes.rows) and boxes.rows[:, 4].max() >= num_outputs:
        raise UserError(f'the data has label {int(boxes.rows[:, 4].max())}, but the model has {num_outputs} classes')
    return boxes


def trained_on(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The boxes of a target (M, 6) as torchvision's detectors take them, without crowds."""
    kept = rows[(rows[:, 4] >= 0) & (rows[:, 5] < CROWD)]
    return dict(boxes=kept[:, :4], labels=kept[:, 4].long())


def found_within(found: dict[str, torch.Tensor], width: float, height: float) -> torch.Tensor:
    """Boxes that a network found, as rows (D, 6) float64 on the host, which end with label and score.

    Of each what is within an image of `width` and `height`; networks see padding beside it and below.
    """
    rows = torch.cat([found['boxes'], found['labels'][:, None], found['scores'][:, None]], 1)
    return clipped(rows.double().cpu(), width, height)


class Detections:
    """All boxes, kept on the host: precision is of a whole data set.

    Boxes end where the image does. Every process gets the numbers, which one of them computes.
    """

    def __init__(self, device: Device):
        self.device, self.images = device, list[Judged]()

    def update(self, outputs: list[dict[str, torch.Tensor]], targets: torch.Tensor) -> None:
        for found, rows in zip(outputs, targets.cpu(), strict=True):
            if rows[0, 4] == BLANK:
                continue
            width, height = rows[-1, 2:4].tolist()
            self.images.append(Judged(rows[rows[:, 4] >= 0].double().numpy(),
                                      found_within(found, width, height).numpy()))

    def compute(self) -> dict[str, float]:
        images = self.device.gather(self.images)
        return self.device.on_primary(lambda: _judged(images))  # type: ignore[no-any-return]


def _judged(images: list[Judged]) -> dict[str, float]:
    """Raises UserError if no image counts, or none has a box that does."""
    if not images:
        raise UserError('the validation set gave no samples')
    if not any((image.truth[:, 5] == 0).any() for image in images):
        raise UserError('no image of the validation set has a box that counts')
    num_classes = 1 + int(max(rows[:, 4].max(initial=0) for image in images for rows in image))
    return coco_precision(images, num_classes) | dict(
        ap50_voc07=voc07_precision(images, num_classes), num_samples=len(images))
