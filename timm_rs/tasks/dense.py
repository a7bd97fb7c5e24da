"""What tasks with a target for every pixel have in common."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import interpolate

from timm_rs.data.samples import Samples
from timm_rs.errors import UserError
from timm_rs.models.dense_network import create_dense_network
from timm_rs.recipe.declaring import knob
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.backbone import BackboneTask
from timm_rs.transforms.create import create_limits
from timm_rs.transforms.joint import OUTSIDE, JointTransform, fitted


class DenseTask(BackboneTask):
    """Targets (N, H, W), `joint.OUTSIDE` where no image is; outputs (N, outputs, H, W) for the network's images."""

    parts = 'each pixel'
    opacity: ClassVar[float]  # of what `draw` draws, over the image
    void: ClassVar[float]  # what a target has where nothing is known

    @dataclass
    class Knobs:
        decoder: str = knob(
            'pyramid', 'pyramid: the head is on stride 8 of a feature pyramid; fused: on stride 4, with all levels '
            'resized to it and summed', choices=('pyramid', 'fused'))
        pyramid_channels: int = knob(256, 'channels of the feature pyramid and the head', low=1)
        head_convs: int = knob(3, 'convolutions of the head before the last', low=0)
        scale_jitter: list[float] = knob(
            [1.0, 1.0], 'range of the share of the input that training images are scaled to fit', nargs=2, above=0,
            high=10)
        colour: float = knob(0.0, 'by how much brightness, contrast and saturation vary in training', low=0, high=1)
        eval_at: str = knob(
            'label', 'what is compared: labels at their own size, or at the network\'s, which is another number',
            choices=('label', 'network'))
        label_size: int = knob(0, 'longest side of labels that are compared at their own size, in pixels; 0: as long '
                               'as they are', low=0, high=16384)

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.longest_side = 0  # of the labels for validation, once they are known
        if self.knobs.eval_at == 'network':
            side = recipe.input_size[-1] if recipe.input_size else recipe.img_size
            if side is None:
                raise UserError('eval_at network is a number of its own for each size: give --img-size')
            first, *others = self.metrics
            self.metrics = (first._replace(name=f'{first.name}@{side}', label=f'{first.label} at {side} px'), *others)
            self.best_by = next((metric for metric in others if metric.name == recipe.eval_metric), self.metrics[0])

    # ---- data ---------------------------------------------------------------------------------------------------

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Samples | None, Samples | None, int | None]:
        """With the longest side of the labels for validation, where they are compared at their own size."""
        train, validation, _ = super().create_datasets(recipe, need_training, known, source)
        if validation is not None and self.knobs.eval_at == 'label' and not self.knobs.label_size:
            self.longest_side = validation.longest_side()  # type: ignore[attr-defined]
        return train, validation, None

    def create_transform(self, recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> JointTransform:
        size = data_config['input_size'][-2:]
        fill = tuple(round(255 * mean) for mean in data_config['mean'])
        canvas = self.knobs.label_size or self.longest_side or max(size)
        transform = JointTransform(
            recipe.image_mode, size, fill, self.void, canvas if self.knobs.eval_at == 'label' else None,
            create_limits(recipe))
        if not is_training:
            return transform
        return transform.training(
            0.0 if recipe.no_aug else recipe.hflip, (1.0, 1.0) if recipe.no_aug else tuple(self.knobs.scale_jitter),
            0.0 if recipe.no_aug else self.knobs.colour, self.name == 'depth')

    # ---- the model ----------------------------------------------------------------------------------------------

    def create_model(self, num_classes: int | None = None, **arguments: Any) -> nn.Module:
        """On timm's features. `drop_rate` and `global_pool` would be of the classifier, which there is not."""
        return create_dense_network(
            num_classes=num_classes or 1, decoder=self.knobs.decoder, channels=self.knobs.pyramid_channels,
            head_convs=self.knobs.head_convs, **arguments)

    def draw(self, outputs: torch.Tensor, names: list[str] | None) -> tuple[npt.NDArray[np.uint8], str]:
        """Colours (H, W, 3) for what the network says of one image, (outputs, H, W), and that in words."""
        raise NotImplementedError

    def picture(self, outputs: torch.Tensor, size: tuple[int, int], pixels: npt.NDArray[np.uint8],
                names: list[str] | None, min_score: float = 0.5) -> tuple[npt.NDArray[np.uint8], str]:
        tall, wide = pixels.shape[:2]
        height, width = fitted(torch.tensor(tall), torch.tensor(wide), size)
        own = interpolate(outputs.float().cpu()[:, :, :height, :width], (tall, wide), mode='bilinear')[0]
        colours, words = self.draw(own, names)
        return np.uint8(np.rint(self.opacity * colours + (1 - self.opacity) * pixels)), words  # type: ignore[return-value]


def at_own_size(outputs: torch.Tensor, targets: torch.Tensor, band: slice = slice(None)) -> torch.Tensor:
    """What a network says of images (N, C, H, W), at the sizes of their targets (N, h, w): (N, C, h, w) float32.

    Of the h rows only a `band`, where all would take much memory. Of both, images are at the top left. Bilinear as
    `interpolate` is, each image by its own factor, which is why it is two matrix products: all shapes stay the same
    from batch to batch, as XLA needs them.
    """
    inside = targets != OUTSIDE
    sizes = inside.any(2).sum(1).clamp(min=1), inside.any(1).sum(1).clamp(min=1)
    smaller = fitted(*sizes, (outputs.shape[2], outputs.shape[3]))
    rows, columns = (_weights(large, small, most, outputs.shape[2 + side]) for side, (large, small, most) in enumerate(
        zip(sizes, smaller, targets.shape[1:], strict=True)))
    return rows[:, None, band] @ outputs.float() @ columns[:, None].mT


def _weights(large: torch.Tensor, small: torch.Tensor, num_large: int, num_small: int) -> torch.Tensor:
    """(N, num_large, num_small): the share that each of `small` (N,) pixels has in each of `large` (N,)."""
    places = (torch.arange(num_large, device=large.device) + 0.5) * (small / large)[:, None] - 0.5
    places = torch.minimum(places.clamp(min=0), small[:, None] - 1.0)
    return (1 - (places[:, :, None] - torch.arange(num_small, device=large.device)).abs()).clamp(min=0)


def mean_per_image(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean of `values` (N, H, W) in each image where `counts` is true, 0 where that is nowhere: (N,)."""
    return torch.where(counts, values, 0.0).sum((1, 2)) / counts.sum((1, 2)).clamp(min=1)


def check_counted(num_samples: float) -> None:
    """Raise UserError if no image counts."""
    if not num_samples:
        raise UserError('the validation set gave no samples: no image has a pixel whose label counts')
