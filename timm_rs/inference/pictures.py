"""What a network says of every pixel, of boxes, or of a video, as pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from timm_rs.data.bad_samples import READ_ERRORS, why_unreadable
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.predict import FileSamples, Prediction
from timm_rs.inference.source import Source
from timm_rs.progress import track
from timm_rs.tasks import create_task
from timm_rs.tasks.backbone import BackboneTask
from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, open_picture

STRIP_FRAMES, STRIP_SIDE, LINE = 8, 112, 24  # of strips: frames, their size and that of a line of text in pixels


class Drawn(NamedTuple):
    """An image, and what was said of it in words; or why it cannot be used. The picture is in `file`."""

    image: str
    words: str
    file: Path | None
    problem: str = ''


def draw_images(source: Source, images: Sequence[str], folder: Path, device: Device | None = None,
                min_score: float = 0.5) -> Iterator[Drawn]:
    """Draw what the model of such a task says of each image into `folder`, at the image's own size, as PNG.

    Boxes are drawn that have a score of at least `min_score`.

    Raises UserError when a picture cannot be written.
    """
    device = device or Device('cpu')
    task = create_task(source.recipe)
    assert isinstance(task, BackboneTask)
    transform = task.create_transform(source.recipe, source.data_config, is_training=False)
    model, samples = source.model.to(device.torch_device), FileSamples(images)
    mean, std = (torch.tensor(source.data_config[name])[:, None, None] for name in ('mean', 'std'))
    taken: set[str] = set()
    for index, image in enumerate(track(images, 'predict', total=len(images))):
        try:
            encoded = samples.read(index)[0]
            framed = torch.from_numpy(transform(encoded, 0)).permute(2, 0, 1)
            pixels = open_picture(encoded, 'RGB', DEFAULT_LIMITS).pixels()
        except (BadImage, *READ_ERRORS) as error:
            yield Drawn(image, '', None, str(error) if isinstance(error, BadImage) else why_unreadable(error))
            continue
        with torch.inference_mode():
            outputs = model(((framed / 255 - mean) / std)[None].to(device.torch_device))
        picture, words = task.picture(outputs, transform.size, pixels, source.class_names, min_score)
        yield Drawn(image, words, _save(Image.fromarray(picture), folder, image, taken))


def draw_strip(prediction: Prediction, folder: Path, taken: set[str]) -> Path:
    """Draw frames that the model has seen of a video, evenly spaced, and its classes below them, into `folder`, as PNG.

    `taken` has the names of the pictures before. Raises UserError when it cannot be written.
    """
    assert prediction.frames is not None
    count = len(prediction.frames)
    chosen = prediction.frames[np.linspace(0, count - 1, min(count, STRIP_FRAMES)).round().astype(int)]
    strip = Image.fromarray(np.concatenate(list(chosen.numpy()), axis=1))
    scale = max(1, round(STRIP_SIDE / strip.height))
    strip = strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)
    picture = Image.new('RGB', (strip.width, strip.height + LINE * len(prediction.classes)), 'white')
    picture.paste(strip)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(LINE * 2 // 3)
    for rank, found in enumerate(prediction.classes):
        top = strip.height + LINE * rank
        pen.rectangle((0, top + 1, found.probability * strip.width, top + LINE - 1), fill=(190, 215, 240))
        pen.text((5, top + LINE // 2), f'{100 * found.probability:.1f} %  {found.name}', 'black', font, anchor='lm')
    return _save(picture, folder, prediction.image, taken)


def _save(picture: Image.Image, folder: Path, image: str, taken: set[str]) -> Path:
    file = folder / f'{_free(Path(image).stem, taken)}.png'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    except OSError as error:
        raise UserError(f'{file} cannot be written: {error.strerror or error}') from error
    return file


def _free(stem: str, taken: set[str]) -> str:
    """`stem`, or with a number where an image of another folder has that name; then no longer free."""
    number, name = 1, stem
    while name in taken:
        number += 1
        name = f'{stem}-{number}'
    taken.add(name)
    return name
