"""An image and the boxes of what is in it, cropped, flipped and scaled together."""

from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, Limits, Picture, Pixels, open_picture
from timm_rs.transforms.joint import JointTransform, check_same_size

# Instead of a label: in rows without a box; in all rows of an image that does not count; for the image's own area.
NO_BOX, BLANK, AREA = -1, -2, -3
DIFFICULT, CROWD = 1, 2  # set aside in evaluation; CROWD is not trained on either


class Boxes(NamedTuple):
    """The objects of an image: `rows` (K, 6) float32, and the `size` that they are for, (width, height), if known.

    A row is left, top, right and bottom in pixels from the top left corner, where a pixel at x reaches from x to
    x + 1, then the label, and 0, `DIFFICULT` or `CROWD`.
    """

    rows: torch.Tensor
    size: tuple[int, int] | None = None


def rows_of(rows: list[list[float]]) -> torch.Tensor:
    """As `Boxes` has them, of none, too."""
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def clipped(rows: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """The part of each box (K, 6) that is within an image of `width` and `height`; those that have none are gone."""
    corners = torch.minimum(rows[:, :4].clamp(min=0), rows.new_tensor([width, height, width, height]))
    kept = (corners[:, :2] < corners[:, 2:]).all(1)
    return torch.cat([corners, rows[:, 4:]], 1)[kept]


def check_boxes_size(picture: Picture, boxes: Boxes) -> None:
    """Raise BadImage where boxes are for an image of another size."""
    if boxes.size is not None:
        check_same_size(picture, boxes.size, 'its boxes are for')


class BoxTransform(JointTransform):
    """An encoded (or PIL) image, its `Boxes` and a seed -> pixels (height, width, C) uint8, and boxes (max_boxes, 6).

    As `JointTransform` has images. Boxes go with them, are cut at the edges, and those of which nothing is left, in
    training not a whole pixel, are dropped with their labels. The other rows have `NO_BOX` for a label. In evaluation
    there is one more, the last, with `AREA`: what the image covers of the pixels. Raises BadImage for an image that
    cannot be used, for boxes of an image of another size, and for more of them than `max_boxes`.
    """

    def __init__(self, mode: str, size: tuple[int, int], fill: tuple[int, ...], max_boxes: int,
                 limits: Limits = DEFAULT_LIMITS):
        super().__init__(mode, size, fill, 0, limits=limits)
        self.max_boxes = max_boxes

    def with_target(self, source: bytes | Image.Image, target: Any, seed: int) -> tuple[Pixels, torch.Tensor]:
        with self.limits.in_time():
            picture = open_picture(source, self.mode, self.limits)
            check_boxes_size(picture, target)
            rows = clipped(target.rows, picture.width, picture.height)
            if len(rows) > self.max_boxes:
                raise BadImage(f'it has {len(rows)} boxes, more than max_boxes, {self.max_boxes}: raise that')
            if self.augment is None:
                height, width = self._fitted((picture.height, picture.width))
                factors = rows.new_tensor([width / picture.width, height / picture.height])
                boxes = self._padded(torch.cat([rows[:, :4] * factors.repeat(2), rows[:, 4:]], 1))
                return self(source, seed), torch.cat([boxes, rows_of([[0, 0, width, height, AREA, AREA]])])
            pixels, boxes = self._augmented(picture, tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
                rows[:, :4], format='XYXY', canvas_size=(picture.height, picture.width)), seed)
            boxes, kept = functional.sanitize_bounding_boxes(boxes)
            return pixels, self._padded(torch.cat([boxes.as_subclass(torch.Tensor), rows[kept, 4:]], 1))

    def blank(self) -> torch.Tensor:
        return torch.full((self.max_boxes + (self.augment is None), 6), BLANK, dtype=torch.float32)

    def _padded(self, rows: torch.Tensor) -> torch.Tensor:
        padded = torch.full((self.max_boxes, 6), NO_BOX, dtype=torch.float32)
        padded[:len(rows)] = rows
        return padded
