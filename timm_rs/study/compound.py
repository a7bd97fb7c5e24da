"""Scaling by a formula: the analytic baseline of Dollár et al. 2021 (arXiv:2103.06877), no search and no training."""

import math
from collections.abc import Sequence

from timm_rs.errors import UserError


def scaled(layers: Sequence[int], width: float, img_size: int, factor: float, alpha: float,
           ) -> tuple[tuple[int, ...], float, int]:
    """A network of about `factor` times the multiply-adds: layers, width and image size.

    A share `alpha` of the factor's logarithm goes to width, the rest in halves to depth and image size: width grows as
    factor ** (alpha / 2), depth as factor ** ((1 - alpha) / 2), image size as factor ** ((1 - alpha) / 4). Activations
    grow least with alpha 1: as factor ** 0.5, with 0.8 as factor ** 0.6, with 1/3 as factor ** 0.83.

    Every stage is rounded to whole blocks, at least one; width to three decimals; the image size to a multiple of the
    greatest power of two, 8 at most, that divides `img_size`. So a factor of 1 changes nothing, and small factors may
    change little: compare at the multiply-adds that the networks have, not at those asked for.

    Args:
        layers: blocks of each stage.
        width: multiplier of channels.
        img_size: in pixels.
        factor: of the multiply-adds; below 1 makes it smaller.
        alpha: 0 to 1. The article has 0 (depth and image size), 1/3 (all alike), 0.8 (its choice) and 1 (width).

    Raises:
        UserError: values that make no network.
    """
    if not (layers and min(layers) > 0 and width > 0 and img_size > 0):
        raise UserError(f'layers {list(layers)}, width {width} and img_size {img_size} cannot be scaled: give positive '
                        'numbers')
    if not (0 < factor < math.inf and 0 <= alpha <= 1):
        raise UserError(f'a factor of {factor} with alpha {alpha} is no way to scale: give a positive factor, and '
                        'alpha from 0 to 1')
    step = math.gcd(img_size, 8)
    return (tuple(max(1, _nearest(blocks * factor ** ((1 - alpha) / 2))) for blocks in layers),
            round(width * factor ** (alpha / 2), 3),
            max(1, _nearest(img_size * factor ** ((1 - alpha) / 4) / step)) * step)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)  # halves up, where round() would go to the even number
