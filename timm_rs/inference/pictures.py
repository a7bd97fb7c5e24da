"""What a network says of every pixel, or of boxes, as pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from timm_rs.data.bad_samples import READ_ERRORS, why_unreadable
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.predict import FileSamples
from timm_rs.inference.source import Source
from timm_rs.progress import track
from timm_rs.tasks import create_task
from timm_rs.tasks.backbone import BackboneTask
from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, open_picture


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
        file = folder / f'{_free(Path(image).stem, taken)}.png'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
        except OSError as error:
            raise UserError(f'{file} cannot be written: {error.strerror or error}') from error
        yield Drawn(image, words, file)


def _free(stem: str, taken: set[str]) -> str:
    """`stem`, or with a number where an image of another folder has that name; then no longer free."""
    number, name = 1, stem
    while name in taken:
        number += 1
        name = f'{stem}-{number}'
    taken.add(name)
    return name
