"""Honest comparisons of speed: candidates take turns within one run, every row says where it comes from."""

import datetime
import io
import math
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

import timm_rs
from timm_rs.data.samples import Samples
from timm_rs.data.workers import num_cores
from timm_rs.errors import UserError
from timm_rs.files import atomic_folder
from timm_rs.progress import track
from timm_rs.transforms.create import RandomResizedCrop
from timm_rs.transforms.decode import Pixels, open_picture, resize

PHOTOS_FOLDER = Path('data/photos')


class Cost(NamedTuple):
    """Of one item (an image, a step): seconds of all processors together, and seconds on the clock."""

    cpu: float
    wall: float


def take_turns(
        candidates: dict[str, Callable[[], int | Cost]], rounds: int, warmup: int = 1, label: str = 'benchmark'
) -> dict[str, list[Cost]]:
    """Run all candidates once per round, `warmup` rounds uncounted.

    Each returns how many items it worked on, or what one cost if it has measured that itself. The time of child
    processes counts when they have ended by the time the candidate returns.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    turns = [(number, name) for number in range(-warmup, rounds) for name in candidates]
    for number, name in track(turns, label):
        cpu, wall = cpu_seconds(), time.perf_counter()
        done = candidates[name]()
        cost = done if isinstance(done, Cost) else Cost(
            (cpu_seconds() - cpu) / done, (time.perf_counter() - wall) / done)
        if number >= 0:
            costs[name].append(cost)
    return costs


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    try:
        import resource
    except ImportError:  # Windows, which does not say it of children
        return time.process_time()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratios(base: list[Cost], other: list[Cost], which: str) -> list[float]:
    """How many times as expensive `base` was as `other`, round by round; `which` is cpu or wall."""
    return [getattr(ours, which) / getattr(theirs, which) for ours, theirs in zip(base, other, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest, to four digits."""
    return {name: float(f'{function(values):.4g}') for name, function in (
        ('median', statistics.median), ('min', min), ('max', max))}


def provenance() -> dict[str, str]:
    """What a row of results must say to be worth something: date, code, command, hardware, versions."""
    return dict(
        date=f'{datetime.date.today()}', commit=commit_of(Path(__file__).parent),
        command=f'{_program()} {shlex.join(sys.argv[1:])}'.rstrip(),
        hardware=f'{_processor()}, {num_cores()} cores' + ''.join(
            f', {torch.cuda.get_device_name(index)}' for index in range(torch.cuda.device_count())),
        versions=f'python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, '
                 f'pillow {PIL.__version__}, timm_rs {timm_rs.__version__}')


def _program() -> str:
    return sys.argv[0] if sys.argv[0].startswith('timm-rs ') else shlex.join(['python', sys.argv[0]])


def commit_of(folder: Path) -> str:
    """The commit, -dirty where files differ from it; rows that the same command has just added do not count."""
    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    try:
        changes = git('status', '--porcelain', '--untracked-files=no', '--', ':/', ':(top,exclude)results/*.csv')
        return git('rev-parse', '--short', 'HEAD') + ('-dirty' if changes else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def _processor() -> str:
    names = [line.partition(':')[2].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def decoding_psnr(samples: Samples, size: int, count: int) -> tuple[float, float | None, float]:
    """How far our decoding and resizing of a random crop to `size` px is from PIL's, over the first `count` images.

    Returns the median PSNR (dB) of exact decoding; of scaled decoding, where the crop is large enough for it (None:
    nowhere); and the share of such crops. The truth is PIL's full decode and antialiased bicubic of the same crop.
    """
    crops = RandomResizedCrop((size, size), (0.08, 1), (3 / 4, 4 / 3), InterpolationMode.BICUBIC)
    exact, scaled = [], []
    for index in range(count):
        source, _ = samples.read(index)
        picture = open_picture(source)
        box = crops.box(picture.height, picture.width, np.random.default_rng(index))
        top, left, height, width = box
        whole = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
        truth = np.asarray(whole.convert('RGB').crop((left, top, left + width, top + height)).resize(
            (size, size), Image.Resampling.BICUBIC))
        exact.append(psnr(resize(picture.pixels(box), size, size), truth))
        smaller = picture.pixels(box, at_least=(size, size))
        if len(smaller) < height:
            scaled.append(psnr(resize(smaller, size, size), truth))
    return statistics.median(exact), statistics.median(scaled) if scaled else None, len(scaled) / count


def psnr(pixels: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB; 138 for equal ones."""
    return 10 * math.log10(255**2 / max(np.square(pixels.astype(float) - truth).mean(), 1e-9))


# ---- images to read ---------------------------------------------------------------------------------------------

def write_photos(count: int = 256, folder: Path = PHOTOS_FOLDER) -> Path:
    """A folder train/0/ of `count` photo-like JPEGs, 500x375 px and about 105 KB as ImageNet's; the same every time.

    A complete folder is left alone. Raises UserError when it cannot be written.
    """
    if len(list(folder.glob('train/0/*.jpg'))) == count:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        with atomic_folder(folder) as temporary:
            (temporary / 'train/0').mkdir(parents=True)
            for index in track(range(count), 'making photos'):
                Image.fromarray(photo(np.random.default_rng(index))).save(
                    temporary / f'train/0/{index:05}.jpg', quality=93)
    except OSError as error:
        raise UserError(f'photos cannot be written to {folder}: {error.strerror}; give --data-dir') from error
    return folder


def photo(rng: np.random.Generator, height: int = 375, width: int = 500) -> Pixels:
    """Coloured noise with the spectrum of photos (amplitude 1/frequency), (height, width, 3)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1 / width
    planes = []
    for _ in range(3):
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency ** 1.1).real
        planes.append((noise - noise.mean()) / noise.std())
    light, *tints = planes  # channels of photos are much alike
    return np.clip(128 + 38 * np.stack([light, *(light + 0.3 * tint for tint in tints)], axis=-1), 0, 255).astype(
        np.uint8)
