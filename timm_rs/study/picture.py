"""What all figures need: labels that cover nothing, plain numbers on axes, files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_rs.errors import UserError
from timm_rs.files import save_figure


def check_format(path: Path) -> None:
    """Raise UserError for a file that figures are not written as."""
    if path.suffix not in ('.png', '.svg'):
        raise UserError(f'{path}: give a file that ends with .png or .svg')


def save(figure: Any, path: Path) -> None:
    """Write `figure` to `path`, whole or not at all, to the same bits each time. Raises UserError if it cannot be."""
    import matplotlib
    try:
        with matplotlib.rc_context({'svg.hashsalt': 'timm_rs'}):
            save_figure(path, figure, path.suffix[1:], dpi='figure',
                        metadata=dict(Date=None) if path.suffix == '.svg' else None)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error


def plain(value: float, _: Any) -> str:
    """Numbers on an axis without powers of ten."""
    return f'{value:g}'


def beads(start: Any, end: Any) -> list[Any]:
    """Boxes along a line (pixels), for `write` not to cover it."""
    from matplotlib.transforms import Bbox
    (x, y), (width, height) = start, end - start
    steps = max(2, int((width ** 2 + height ** 2) ** 0.5 / 6))
    return [Bbox.from_bounds(x + width * step / steps - 1, y + height * step / steps - 1, 2, 2)
            for step in range(1, steps)]


def write(figure: Any, axis: Any, spots: Sequence[tuple[Any, tuple[float, float]]], words: str, colour: str,
          taken: list[Any], size: int, is_ratio: bool = False) -> bool:
    """Write `words` at that of the `spots` (data, and how far off in 1/72 inch) where they cover least of `taken`.

    A ratio is not written, and the answer is False, where it would cover anything.
    """
    frame = axis.get_window_extent()
    texts: list[tuple[int, int, Any, Any]] = []
    for where, (x, y) in spots:
        text = axis.annotate(
            words, where, (x, y), textcoords='offset points', color=colour, fontsize=size, zorder=4,
            fontweight='bold' if is_ratio else 'normal',
            bbox=dict(boxstyle='square,pad=0.15', facecolor='white', edgecolor='none') if is_ratio else None,
            ha='left' if x > 0 else 'right' if x < 0 else 'center',
            va='bottom' if y > 0 else 'top' if y < 0 else 'center')
        box = text.get_window_extent(figure.canvas.get_renderer())
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        texts.append((sum(box.overlaps(other) for other in taken) + 9 * outside, len(texts), text, box))
    covered, chosen, _, box = min(texts, key=lambda entry: entry[:2])
    is_written = not (is_ratio and covered)
    for _, number, text, _ in texts:
        if number != chosen or not is_written:
            text.remove()
    if is_written:
        taken.append(box)
    return is_written
