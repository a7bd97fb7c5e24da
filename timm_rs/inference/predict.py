"""Classes of images in files, folders and at URLs, by any model, with names."""

import string
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import torch

from timm_rs.data.bad_samples import Problem
from timm_rs.data.listing import list_folder, summary
from timm_rs.data.loader import Loader, create_eval_loader
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.backends import Runner, run_torch
from timm_rs.inference.source import Source
from timm_rs.progress import track
from timm_rs.recipe.reading import DEFAULTS
from timm_rs.tasks import create_task

MAX_DOWNLOAD = 100 << 20  # bytes of one image
TIMEOUT_S = 30


class Class(NamedTuple):
    """A class that an image may be of: its index, what it is called, and its probability in 0..1."""

    number: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image and its most likely classes, best first; none, and why, when it cannot be used."""

    image: str
    classes: list[Class]
    problem: str = ''


def predict(
        source: Source, images: Sequence[str], top_k: int = 5, batch_size: int = 32, workers: int = 0,
        device: Device | None = None) -> Iterator[Prediction]:
    """The `top_k` most likely classes of every image, in order and as soon as its batch is done.

    Args:
        source: the model.
        images: paths and URLs, such as `find_images` finds; all go through the model's own evaluation transform.
        top_k: no more than the model has classes.
        batch_size: images that the model sees at once.
        workers: processes that read and decode.
        device: where to compute; None: the CPU.
    """
    device = device or Device('cpu')
    run: Runner = source.model
    if isinstance(source.model, torch.nn.Module):
        run = run_torch(source.model.to(device.torch_device))
    loader = _loader(source, FileSamples(images), batch_size, workers, device)
    names = iter(images)
    problems: dict[str, str] = {}
    for batch, targets in track(loader, 'predict', total=len(loader)):
        problems.update(loader.take_problems())  # those of the next batch come early
        scores = run(batch).float().softmax(dim=1)
        best = scores.topk(min(top_k, scores.shape[1]))
        for probabilities, indices, target, image in zip(
                best.values.tolist(), best.indices.tolist(), targets.tolist(), names, strict=False):
            if target < 0:
                yield Prediction(image, [], problems[image])
                continue
            yield Prediction(image, [
                Class(index, class_name(source, index), probability)
                for index, probability in zip(indices, probabilities, strict=True)])


def class_name(source: Source, index: int) -> str:
    """What class `index` is called; its number where nobody knows."""
    return source.class_names[index] if source.class_names else f'class {index}'


def load_images(source: Source, images: Sequence[str]) -> tuple[torch.Tensor, list[Problem]]:
    """The images that can be used as the model's input (N, C, H, W), normalised; and those that cannot, and why."""
    loader = _loader(source, FileSamples(images), 32, 0, Device('cpu'))
    batches = [batch[targets >= 0].contiguous() for batch, targets in track(loader, 'images', total=len(loader))]
    return torch.cat(batches), loader.take_problems()


def find_images(places: Iterable[str]) -> list[str]:
    """Paths of images: `places` themselves, and all images below those that are folders, in order of their names.

    URLs stay as they are, and so do paths without a file, which are found out when they are read; file:// is a path.
    Raises UserError for a folder without images, and for an empty place, which would be the current folder.
    """
    found: list[str] = []
    for place in places:
        if not place.strip():
            raise UserError('an empty argument names no image; give files, folders (. for this one) or URLs')
        if place.lower().startswith('file://'):
            place = urllib.request.url2pathname(urlsplit(place).path)
        if is_url(place) or not Path(place).is_dir():
            found.append(place)
            continue
        listing = list_folder(place)
        if not listing.names:
            raise UserError(f'there are no images in the folder {place}')
        found += sorted(str(Path(place, name)) for name in listing.names)
        if listing.left_out:
            print(f'left out of {place}: {summary(listing.left_out)}', file=sys.stderr)
    return list(dict.fromkeys(found))


def is_url(place: str) -> bool:
    return place.lower().startswith(('http://', 'https://'))


class FileSamples(Samples):
    """Images by path or URL, without labels (all are 0)."""

    def __init__(self, places: Sequence[str]):
        self.places, self.classes = list(places), {}

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> tuple[bytes, int]:
        place = self.places[index]
        return download(place) if is_url(place) else Path(place).read_bytes(), 0

    def name(self, index: int) -> str:
        return self.places[index]


def download(url: str) -> bytes:
    """What is at `url`, up to `MAX_DOWNLOAD` bytes. Raises OSError that says what went wrong in a few words."""
    try:
        request = urllib.request.Request(_in_ascii(url), headers={'User-Agent': 'timm_rs'})  # some refuse Python's own
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content = answer.read(MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f'the server says {error.code} {error.reason}') from error
    except urllib.error.URLError as error:
        raise OSError(f'no connection: {getattr(error.reason, "strerror", None) or error.reason}') from error
    except (HTTPException, ValueError) as error:
        raise OSError(f'no download: {error or type(error).__name__}') from error
    if len(content) > MAX_DOWNLOAD:
        raise OSError(f'more than {MAX_DOWNLOAD >> 20} MiB')
    return content


def _in_ascii(url: str) -> str:
    """`url` as it is sent: people write é and spaces, servers read %C3%A9 and %20. What is quoted already stays."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode('idna').decode()
    return quote(parts._replace(netloc=host).geturl(), safe=string.punctuation)


def _loader(source: Source, samples: FileSamples, batch_size: int, workers: int, device: Device) -> Loader:
    recipe = replace(source.recipe, loader='fast', validation_batch_size=batch_size, workers=workers,
                     max_image_pixels=DEFAULTS.max_image_pixels, max_image_scans=DEFAULTS.max_image_scans,
                     max_image_seconds=DEFAULTS.max_image_seconds)
    loader = create_eval_loader(samples, recipe, source.data_config, create_task(recipe), 1, device)
    assert isinstance(loader, Loader)
    return loader
