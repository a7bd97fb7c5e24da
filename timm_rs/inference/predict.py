"""Classes of images and videos in files, folders and at URLs, by any model, with names."""

import string
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import torch

from timm_rs.data.bad_samples import Problem
from timm_rs.data.listing import IMAGE_SUFFIXES, list_folder, summary
from timm_rs.data.loader import Loader, create_eval_loader
from timm_rs.data.samples import Samples
from timm_rs.data.videos import read_video, videos_of
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.backends import Runner, run_torch
from timm_rs.inference.source import Source
from timm_rs.progress import track
from timm_rs.recipe.reading import DEFAULTS
from timm_rs.tasks import create_task
from timm_rs.tasks.task import Task
from timm_rs.tasks.video import Video
from timm_rs.transforms.frames import VIDEO_SUFFIXES

MAX_DOWNLOAD = 100 << 20  # bytes of one image
TIMEOUT_S = 30


class Class(NamedTuple):
    """A class that an image or a video may be of: its index, what it is called, and its probability in 0..1."""

    number: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image or a video and its most likely classes, best first; none, and why, when it cannot be used.

    Where there may be any number of classes, they are those that are likely enough, if there are such.

    `frames` (T, H, W, C) uint8 are what the model has seen of a video: all its clips, the middle of each frame.
    """

    image: str
    classes: list[Class]
    problem: str = ''
    frames: torch.Tensor | None = None


def predict(
        source: Source, images: Sequence[str], top_k: int | None = None, batch_size: int = 32, workers: int = 0,
        device: Device | None = None, min_score: float = 0.5) -> Iterator[Prediction]:
    """The `top_k` most likely classes of every image or video, in order and as soon as its batch is done.

    Of a network for any number of classes, those of them whose probability is at least `min_score`.

    Args:
        source: the model.
        images: paths and URLs, such as `find_samples` finds; all go through the model's own evaluation transform.
        top_k: no more than the model has classes; None: 5, or of any number of classes all.
        batch_size: images, or views of videos, that the model sees at once.
        workers: processes that read and decode.
        device: where to compute; None: the CPU.
        min_score: 0 to 1.
    """
    device = device or Device('cpu')
    run: Runner = source.model
    if isinstance(source.model, torch.nn.Module):
        run = run_torch(source.model.to(device.torch_device))
    loader, task = _loader(source, FileSamples(images), batch_size, workers, device)
    names = iter(images)
    problems: dict[str, str] = {}
    for batch, targets in track(loader, 'predict', total=len(loader)):
        problems.update(loader.take_problems())  # those of the next batch come early
        with torch.inference_mode():
            outputs = task.forward(run, batch, targets)  # type: ignore[arg-type]  # any function will do
        scores = outputs.float().sigmoid() if task.is_of_tags else outputs.float().softmax(dim=1)
        usual = scores.shape[1] if task.is_of_tags else 5
        best = scores.topk(min(top_k or usual, scores.shape[1]))
        views = batch.unflatten(0, (len(targets), -1))
        for probabilities, indices, is_good, image, own in zip(
                best.values.tolist(), best.indices.tolist(), _are_good(targets).tolist(), names, views,
                strict=False):
            if not is_good:
                yield Prediction(image, [], problems[image])
                continue
            yield Prediction(image, [
                Class(index, class_name(source, index), probability)
                for index, probability in zip(indices, probabilities, strict=True)
                if probability >= min_score or not task.is_of_tags],
                frames=_as_pixels(task.middle(own), source) if isinstance(task, Video) else None)


def _are_good(targets: torch.Tensor) -> torch.Tensor:
    """Which samples could be read, (N,), by their targets (N,) or (N, outputs)."""
    return targets.reshape(len(targets), -1)[:, 0] >= 0


def class_name(source: Source, index: int) -> str:
    """What class `index` is called; its number where nobody knows."""
    return source.class_names[index] if source.class_names else f'class {index}'


def _as_pixels(frames: torch.Tensor, source: Source) -> torch.Tensor:
    """Frames (C, T, H, W) as the model sees them, as (T, H, W, C) uint8 on the host."""
    mean, std = (torch.tensor(source.data_config[name]) for name in ('mean', 'std'))
    return (255 * (frames.cpu().float().movedim(0, -1) * std + mean)).round().clamp(0, 255).byte()


def load_images(source: Source, images: Sequence[str]) -> tuple[torch.Tensor, list[Problem]]:
    """The images, or views of videos, that can be used as the model's input (N, C, H, W) or (N, C, T, H, W),
    normalised; and those that cannot, and why."""
    loader, _ = _loader(source, FileSamples(images), 32, 0, Device('cpu'))
    batches = [batch.unflatten(0, (len(targets), -1))[_are_good(targets)].flatten(0, 1).contiguous()
               for batch, targets in track(loader, 'images', total=len(loader))]
    return torch.cat(batches), loader.take_problems()


def find_images(places: Iterable[str], model: str = 'the model', of_videos: bool = False) -> list[str]:
    """Paths of images or videos: `places` themselves, and all below those that are folders, in order of their names.

    URLs stay as they are, and so do paths without a file, which are found out when they are read; file:// is a path.
    A folder of images is a video. Raises UserError for a folder without any, for an empty place, which would be the
    current folder, and for an image where `model` takes videos, or the other way round.
    """
    found: list[str] = []
    nouns = ('image', 'video') if of_videos else ('video', 'image')
    others = IMAGE_SUFFIXES if of_videos else VIDEO_SUFFIXES
    for place in places:
        if not place.strip():
            raise UserError('an empty argument names no image; give files, folders (. for this one) or URLs')
        if place.lower().startswith('file://'):
            place = urllib.request.url2pathname(urlsplit(place).path)
        if is_url(place) or not Path(place).is_dir():
            if (urlsplit(place).path if is_url(place) else place).lower().endswith(others):
                raise UserError(f'{place} is {"an" if of_videos else "a"} {nouns[0]}, and {model} takes {nouns[1]}s: '
                                f'give {nouns[1]}s, or a network for {nouns[0]}s')
            found.append(place)
            continue
        listing = list_folder(place, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES) if of_videos else ())
        names, left_out = videos_of(listing, in_classes=False) if of_videos else (listing.names, listing.left_out)
        if not names:
            raise UserError(f'there are no {nouns[1]}s in the folder {place}, and {model} takes {nouns[1]}s' + (
                f'; what is there: {summary(left_out)}' if left_out else ''))
        found += sorted(str(Path(place, name)) for name in names)
        if left_out:
            print(f'left out of {place}: {summary(left_out)}', file=sys.stderr)
    return list(dict.fromkeys(found))


def is_url(place: str) -> bool:
    return place.lower().startswith(('http://', 'https://'))


class FileSamples(Samples):
    """Images or videos by path or URL, without labels (all are 0)."""

    def __init__(self, places: Sequence[str]):
        self.places, self.classes = list(places), {}

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> tuple[Any, int]:
        """What is there; the frames of a folder."""
        place = self.places[index]
        return download(place) if is_url(place) else read_video(Path(place)), 0

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


def _loader(source: Source, samples: FileSamples, batch_size: int, workers: int, device: Device
            ) -> tuple[Loader, Task]:
    recipe = replace(source.recipe, loader='fast', validation_batch_size=batch_size, workers=workers,
                     max_image_pixels=DEFAULTS.max_image_pixels, max_image_scans=DEFAULTS.max_image_scans,
                     max_image_seconds=DEFAULTS.max_image_seconds)
    task = create_task(recipe)
    loader = create_eval_loader(samples, recipe, source.data_config, task, 1, device)
    assert isinstance(loader, Loader)
    return loader, task
