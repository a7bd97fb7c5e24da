"""Pictures for people: images side by side with lines of text, and who is taken for whom."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from timm_rs.files import atomic_write

LINE, GAP = 18, 8  # pixels
SMALLEST, LARGEST = 160, 256  # sides of a tile; smaller images are enlarged by a whole number
LABELLED = 30  # classes that a matrix has room to name
SIDE, MOST_CELLS = 640, 1000  # of a matrix without names: its side in pixels at least, and cells along it at most
RIGHT, WRONG, LINES = (33, 102, 172), (178, 24, 43), (220, 220, 220)  # colours of the diagonal, of all else, between


class Tile(NamedTuple):
    """An image (..., H, W, C) uint8, of which the middle one is shown, and the lines below it."""

    pixels: npt.NDArray[np.uint8]
    lines: tuple[str, ...]


class Confusion(NamedTuple):
    """Each class that was there, each that it was taken for, and how often: (pairs,) int64 each."""

    truth: npt.NDArray[np.int64]
    guess: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def mistakes(self) -> list[tuple[int, int, int]]:
        """Class, what it was taken for, how often; the most frequent first."""
        order = np.argsort(-self.counts, kind='stable')
        return [(int(truth), int(guess), int(count)) for truth, guess, count in zip(
            *(values[order] for values in self), strict=True) if truth != guess]

    def totals(self, number: int) -> npt.NDArray[np.int64]:
        """How often each of `number` classes was there."""
        return np.bincount(self.truth, self.counts, number).astype(np.int64)


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write `picture` as PNG, whole or not at all. Raises OSError as `open` does."""
    content = io.BytesIO()
    picture.save(content, 'png')
    with atomic_write(path, 'wb') as file:
        file.write(content.getvalue())


def sheet(tiles: Sequence[Tile], heading: str, columns: int) -> Image.Image:
    """Rows of `columns` tiles, below a heading."""
    images = [_enlarged(as_image(tile.pixels)) for tile in tiles]
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    width = max(width, SMALLEST)
    step = height + LINE * max(len(tile.lines) for tile in tiles) + GAP
    columns = min(columns, len(tiles))
    picture = Image.new('RGB', (max(GAP + columns * (width + GAP), round(_font(14).getlength(heading)) + 2 * GAP),
                                LINE + 2 * GAP + -(-len(tiles) // columns) * step), 'white')
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, GAP), heading, 'black', _font(14))
    for number, (tile, image) in enumerate(zip(tiles, images, strict=True)):
        left, top = GAP + number % columns * (width + GAP), LINE + 2 * GAP + number // columns * step
        picture.paste(image, (left + (width - image.width) // 2, top))
        for place, line in enumerate(tile.lines):
            pen.text((left, top + height + LINE * place), fitting(line, width, 12), 'black', _font(12))
    return picture


def as_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """The middle one of images (..., H, W, C) uint8; of other than three channels the first, in grey."""
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    middle = flat[len(flat) // 2]
    return Image.fromarray(middle if middle.shape[2] == 3 else np.repeat(middle[..., :1], 3, axis=2))


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, SMALLEST // max(image.size))
    larger = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    larger.thumbnail((LARGEST, LARGEST))
    return larger


@functools.cache
def _font(size: int) -> Any:
    import matplotlib  # whose font knows more alphabets than Pillow's own
    return ImageFont.truetype(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'), size)


def fitting(text: str, width: int, size: int) -> str:
    """`text` in one line that can be drawn in `width` pixels, shortened in its middle where it is longer."""
    text = ''.join(letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}' for letter in text)
    if _font(size).getlength(text[:500]) <= width and len(text) <= 500:
        return text
    ends = (f'{text[:keep - keep // 2]}…{text[-(keep // 2):]}' for keep in range(min(len(text) - 1, 250), 1, -1))
    return next((short for short in ends if _font(size).getlength(short) <= width), '…')


def confusion_picture(confusion: Confusion, names: Sequence[str]) -> Image.Image:
    """Which classes, the rows, are taken for which, the columns.

    With many classes, a matrix without names and the most confused pairs beside it.
    """
    return (_labelled if len(names) <= LABELLED else _listed)(confusion, names)


def _matrix(confusion: Confusion, number: int, cell: int, block: int = 1) -> Image.Image:
    """A cell for each pair of classes, or of `block` classes: the deeper the larger its greatest share of a row.

    Never so pale that one image is not seen.
    """
    shares = np.zeros((-(-number // block),) * 2)
    places = confusion.truth // block, confusion.guess // block
    np.maximum.at(shares, places, confusion.counts / confusion.totals(number)[confusion.truth])
    strength = np.where(shares > 0, 0.15 + 0.85 * np.sqrt(shares), 0.0)[..., None]
    full = np.where(np.eye(len(shares), dtype=bool)[..., None], RIGHT, WRONG)
    pixels = np.asarray((255 * (1 - strength) + full * strength).round(), np.uint8)
    return Image.fromarray(pixels.repeat(cell, 0).repeat(cell, 1))


def _labelled(confusion: Confusion, names: Sequence[str]) -> Image.Image:
    number, totals = len(names), confusion.totals(len(names))
    cell, size = (44, 13) if number <= 12 else (28, 10)
    labels = [fitting(name, 200, 13) for name in names]
    margin = 2 * GAP + round(max(_font(13).getlength(label) for label in labels))
    left, top, side = margin, margin + LINE + GAP, number * cell
    picture = Image.new('RGB', (max(left + side + 100, 360), top + side + GAP), 'white')
    picture.paste(_matrix(confusion, number, cell), (left, top))
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, GAP), 'rows: what it is; columns: what the model says', 'black', _font(13))
    for place in range(0, side + 1, cell):
        pen.line((left, top + place, left + side, top + place), LINES)
        pen.line((left + place, top, left + place, top + side), LINES)
    for index, label in enumerate(labels):
        middle = index * cell + cell // 2
        pen.text((left - GAP, top + middle), label, 'black', _font(13), anchor='rm')
        upright = Image.new('RGB', (margin, LINE), 'white')
        ImageDraw.Draw(upright).text((GAP, LINE // 2), label, 'black', _font(13), anchor='lm')
        picture.paste(upright.rotate(90, expand=True), (left + middle - LINE // 2, top - margin))
    for truth, guess, count in zip(*(values.tolist() for values in confusion), strict=True):
        share, row = count / totals[truth], top + truth * cell + cell // 2
        pen.text((left + guess * cell + cell // 2, row), f'{count}' if count < 10_000 else f'{count // 1000}k',
                 'white' if share > 0.3 else 'black', _font(size), anchor='mm')
    for index in np.flatnonzero(totals).tolist():
        right = confusion.counts[(confusion.truth == index) & (confusion.guess == index)].sum()
        pen.text((left + side + GAP, top + index * cell + cell // 2),
                 f'{100 * right / totals[index]:.1f} % of {totals[index]}', 'black', _font(10), anchor='lm')
    return picture


def _listed(confusion: Confusion, names: Sequence[str]) -> Image.Image:
    number, totals = len(names), confusion.totals(len(names))
    block = -(-number // MOST_CELLS)
    grid = _matrix(confusion, number, -(-SIDE // -(-number // block)), block)
    left, top, width = grid.width + 3 * GAP, 2 * LINE + GAP, 540
    picture = Image.new('RGB', (left + width, top + grid.height + GAP), 'white')
    picture.paste(grid, (GAP, top))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((GAP - 1, top - 1, GAP + grid.width, top + grid.height), outline=LINES)
    pen.text((GAP, GAP), f'{number} classes; rows: what it is; columns: what the model says', 'black', _font(13))
    mistakes = confusion.mistakes()
    heading = 'most often confused: what it is, as what the model says' if mistakes else 'nothing is confused'
    pen.text((left, GAP + LINE), heading, 'black', _font(13))
    for place, (truth, guess, count) in enumerate(mistakes[:grid.height // LINE]):
        is_class, as_class = (fitting(names[index], 180, 12) for index in (truth, guess))
        pen.text((left, top + LINE * place), f'{is_class} as {as_class}', 'black', _font(12))
        pen.text((left + width - GAP, top + LINE * place), f'{count} of {totals[truth]}', 'black', _font(12),
                 anchor='ra')
    return picture
