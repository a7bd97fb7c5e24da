"""Our loader beside timm's: the processor time and the images per second of each, and how exactly ours decodes."""

import dataclasses
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
from PIL import Image
from torchvision.transforms import InterpolationMode

from timm_rs.benchmark.rows import Cost, provenance, ratios, spread, take_turns
from timm_rs.data.datasets import create_datasets
from timm_rs.data.loader import create_train_loader, num_workers
from timm_rs.data.samples import Samples, Subset, as_samples
from timm_rs.data.shards.encoding import IMAGES, RAW
from timm_rs.data.shards.packing import pack
from timm_rs.data.shards.reading import open_shards
from timm_rs.data.workers import num_cores
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.files import atomic_folder
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.transforms.crops import RandomResizedCrop
from timm_rs.transforms.decode import Pixels, open_picture, open_with_pillow, resize

PHOTOS_FOLDER = Path('data/photos')
TIMMS = 'timm augmentation'  # its crops, and its RandAugment or whatever else aa says


class DecodingPsnr(NamedTuple):
    """How far our decoding is from PIL's, as median PSNR in dB."""

    exact: float
    scaled: float | None  # None where no crop is large enough for it
    share_scaled: float  # of the crops, those that are large enough


def run_loaders(
        recipe: Recipe, images: int, rounds: int, packed: bool) -> tuple[list[dict[str, Any]], DecodingPsnr]:
    """A row of results for each loader, and how exactly ours decodes.

    Ratios are to timm's loader with the same augmentation, which the rows name. Each makes at least `images` images per
    turn, in several epochs if need be; `packed` shards are one candidate. Without data, photos are made. Raises
    UserError for data that cannot be used or only be streamed.
    """
    if not recipe.data_dir and not recipe.dataset:
        recipe = dataclasses.replace(recipe, data_dir=str(write_photos()))
    recipe = dataclasses.replace(recipe, val_split='')
    device = Device('cpu')
    samples, _, num_classes = create_datasets(recipe)
    if not isinstance(samples, Samples):
        raise UserError(f'dataset {recipe.dataset} is streamed, and has no loader but timm\'s; give a folder or shards')
    if len(samples) > images:
        samples = Subset(samples, range(images))
    recipe = dataclasses.replace(
        recipe, batch_size=min(recipe.batch_size, len(samples)), num_classes=num_classes or recipe.num_classes or 1000)
    config = timm.data.resolve_data_config(
        dataclasses.asdict(recipe), pretrained_cfg=timm.get_pretrained_cfg(recipe.model).to_dict())
    size = config['input_size'][-1]

    with tempfile.TemporaryDirectory() as scratch:
        candidates = create_candidates(recipe, samples, scratch if packed else None)
        costs = take_turns({
            name: partial(run_loader, dataclasses.replace(recipe, **changes), config, data, images, device)
            for name, (changes, data) in candidates.items()}, rounds, label='loaders')
        image_kb = {name: mean_kb(data) for name, (_, data) in candidates.items()}
    decoding = decoding_psnr(samples, size, min(len(samples), 200))
    psnr = {f'fast, {TIMMS}': decoding.exact, f'fast, {TIMMS}, decode scaled': decoding.scaled}
    same = dict(aa=recipe.aa or '', img_size=size, workers=num_workers(recipe.workers), images=images, rounds=rounds)
    return [dict(loader=name, **same, **loader_columns(own, costs[f'timm, {name.split(", ")[1]}']),
                 psnr_db_median=psnr.get(name), image_kb=image_kb[name], **provenance())
            for name, own in costs.items()], decoding


def create_candidates(
        recipe: Recipe, samples: Samples, shards: str | None) -> dict[str, tuple[dict[str, Any], Samples]]:
    """By name, what each loader changes in the recipe, and its samples; those packed into the folder `shards`, too.

    A name is timm or fast, the augmentation, and what else is peculiar; both loaders are there with each augmentation.
    """
    augmentations = {TIMMS: dict(preprocessing='timm', randaugment='timm')}
    released = recipe.randaugment == 'tf' and bool(recipe.aa)
    if released:
        augmentations['released RandAugment'] = dict(preprocessing='timm', randaugment='tf')
    if recipe.preprocessing == 'tf':
        augmentations['released RandAugment and crops' if released else 'released crops'] = (
            {} if released else dict(randaugment='timm'))
    candidates: dict[str, tuple[dict[str, Any], Samples]] = {
        f'{loader}, {name}': (dict(loader=loader) | changes, samples)
        for name, changes in augmentations.items() for loader in ('timm', 'fast')}
    fast, _ = candidates[f'fast, {TIMMS}']
    candidates[f'fast, {TIMMS}, decode scaled'] = fast | dict(decode='scaled'), samples
    if shards:
        for what, kind in (('packed', IMAGES), ('packed raw', RAW)):
            folder = Path(shards, kind)
            pack(samples, folder, 'train', workers=num_cores(), kind=kind)
            candidates[f'fast, {TIMMS}, {what}'] = fast, as_samples(open_shards(folder, 'train'))
    return candidates


def run_loader(recipe: Recipe, config: dict[str, Any], samples: Samples, images: int, device: Device) -> int:
    """Have a new loader make at least `images` images on the host; returns how many it made."""
    assert recipe.num_classes
    loader = create_train_loader(samples, recipe, config, create_task(recipe), recipe.num_classes, device)
    done = epoch = 0
    while done < images:
        loader.set_epoch(epoch)
        done += sum(len(batch) for batch, _ in loader.host_batches())
        epoch += 1
    return done  # the loader goes, and its workers with it


def mean_kb(samples: Samples) -> float | None:
    """Kilobytes of an image as it is stored, by the first 200; None where the data set decodes images itself."""
    sources = [samples.read(index)[0] for index in range(min(len(samples), 200))]
    sizes = [len(source) for source in sources if isinstance(source, bytes)]
    return round(statistics.mean(sizes) / 1000, 1) if len(sizes) == len(sources) else None


def loader_columns(own: list[Cost], timms: list[Cost]) -> dict[str, float]:
    """CPU milliseconds of an image and images per second over the rounds, and how many times as much timm's takes."""
    spreads = dict(
        cpu_ms=[1e3 * cost.cpu for cost in own], images_per_s=[1 / cost.wall for cost in own],
        cpu_ratio_to_timm=ratios(timms, own, 'cpu'), wall_ratio_to_timm=ratios(timms, own, 'wall'))
    return {f'{column}_{key}': value for column, values in spreads.items() for key, value in spread(values).items()}


def loader_table(rows: list[dict[str, Any]], decoding: DecodingPsnr) -> str:
    """What `run_loaders` found, for people."""
    lines = [f'{"loader":40} {"CPU ms/image (min-max)":>26} {"images/s":>9} {"timm / this, CPU (min-max)":>28} '
             f'{"KB/image":>9}']
    lines += [
        '{loader:40} {cpu_ms_median:10.3f} ({cpu_ms_min:.3f}-{cpu_ms_max:.3f}) {images_per_s_median:9.0f} '
        '{cpu_ratio_to_timm_median:13.2f} ({cpu_ratio_to_timm_min:.2f}-{cpu_ratio_to_timm_max:.2f})'.format(**row)
        + f'{row["image_kb"] or float("nan"):13.1f}' for row in rows]
    scaled = (f'scaled {decoding.scaled:.1f} dB in the {100 * decoding.share_scaled:.0f} % of crops that it decodes '
              'smaller' if decoding.share_scaled else 'no crop is large enough to decode it smaller')
    return '\n'.join([*lines, 'median PSNR against PIL\'s full decode and antialiased bicubic of the same crop: exact '
                      f'{decoding.exact:.1f} dB; {scaled}'])


# ---- how exactly it decodes -------------------------------------------------------------------------------------

def decoding_psnr(samples: Samples, size: int, count: int) -> DecodingPsnr:
    """How far our decoding and resizing of a random crop to `size` px is from PIL's, over the first `count` images.

    The truth is PIL's full decode and antialiased bicubic of the same crop.
    """
    crops = RandomResizedCrop((size, size), (0.08, 1), (3 / 4, 4 / 3), InterpolationMode.BICUBIC)
    exact, scaled = [], []
    for index in range(count):
        source, _ = samples.read(index)
        picture = open_picture(source)
        box = crops.box(picture.height, picture.width, np.random.default_rng(index))
        top, left, height, width = box
        whole = source if isinstance(source, Image.Image) else open_with_pillow(source)
        truth = np.asarray(whole.convert('RGB').crop((left, top, left + width, top + height)).resize(
            (size, size), Image.Resampling.BICUBIC))
        exact.append(psnr(resize(picture.pixels(box), size, size), truth))
        smaller = picture.pixels(box, at_least=(size, size))
        if len(smaller) < height:
            scaled.append(psnr(resize(smaller, size, size), truth))
    return DecodingPsnr(
        statistics.median(exact), statistics.median(scaled) if scaled else None, len(scaled) / count)


def psnr(pixels: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB; 138 for equal ones."""
    return 10 * math.log10(255**2 / max(np.square(pixels.astype(float) - truth).mean(), 1e-9))


# ---- images to read ---------------------------------------------------------------------------------------------

def write_photos(count: int = 256, folder: Path = PHOTOS_FOLDER) -> Path:
    """A folder train/0/ of `count` photo-like JPEGs, 500x375 px and about 105 KB as ImageNet's; as `write_made`."""
    return write_made(folder, 'photos', count, '.jpg', lambda path, rng: Image.fromarray(photo(rng)).save(
        path, quality=93))


def write_made(folder: Path, what: str, count: int, suffix: str,
               write: Callable[[Path, np.random.Generator], None]) -> Path:
    """`folder` with train/0/ of `count` files that `write` makes of a path and what is random; the same every time.

    A complete folder is left alone. Raises UserError when it cannot be written.
    """
    if len(list(folder.glob(f'train/0/*{suffix}'))) == count:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        with atomic_folder(folder) as temporary:
            (temporary / 'train/0').mkdir(parents=True)
            for index in track(range(count), f'making {what}'):
                write(temporary / f'train/0/{index:05}{suffix}', np.random.default_rng(index))
    except OSError as error:
        raise UserError(f'{what} cannot be written to {folder}: {error.strerror}; give --data-dir') from error
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
