"""What a clip costs, by where its frames come from: the processor time of our loader for each source, in turn."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
from PIL import Image

from timm_rs.benchmark.loaders import photo, run_loader, write_made
from timm_rs.benchmark.rows import Cost, provenance, ratios, spread, take_turns
from timm_rs.data.loader import num_workers
from timm_rs.data.samples import Samples, Subset, as_samples
from timm_rs.data.shards.encoding import FRAMES, VIDEOS, encode
from timm_rs.data.shards.packing import pack
from timm_rs.data.shards.reading import open_shards
from timm_rs.data.videos import VideoSamples, frames_in
from timm_rs.data.workers import num_cores
from timm_rs.device.torch_device import Device
from timm_rs.progress import track
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.transforms.frames import Clip, Frames, open_video, write_video

VIDEOS_FOLDER = Path('data/videos')
NUM_FRAMES, HEIGHT, WIDTH, KEY_DISTANCE = 300, 240, 320, 250  # 10 s as Kinetics has them; x264's own distance of keys
SHORT_SIDE, QUALITY = 288, 90  # of the frames, as tools/pack_dataset.py has them
BASE = 'files'


def run_clip_loaders(recipe: Recipe, clips: int, rounds: int) -> list[dict[str, Any]]:
    """A row of results for each source of the same videos: files, files in shards, JPEGs in shards and in folders.

    Each makes at least `clips` clips per turn. Without data, videos are made. Raises UserError for data that cannot be
    used; OSError.
    """
    if not recipe.data_dir and not recipe.dataset:
        recipe = dataclasses.replace(recipe, data_dir=str(write_videos()), builtin_data='')
    recipe, task, device = dataclasses.replace(recipe, val_split=''), create_task(recipe), Device('cpu')
    dataset, _, num_classes = task.create_datasets(recipe)
    samples = as_samples(dataset)
    if len(samples) > clips:
        samples = Subset(samples, range(clips))
    recipe = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(samples)), num_classes=num_classes)
    config = timm.data.resolve_data_config(
        dataclasses.asdict(recipe), pretrained_cfg=timm.get_pretrained_cfg(recipe.model).to_dict())
    with tempfile.TemporaryDirectory() as scratch:
        sources = create_sources(samples, Path(scratch))
        costs = take_turns({name: partial(run_loader, recipe, config, data, clips, device)
                            for name, (data, _) in sources.items()}, rounds, label='loaders')
    frames = f'{task.knobs.num_frames}x{task.knobs.frame_stride}'
    return [dict(source=name, frames=frames, img_size=config['input_size'][-1], workers=num_workers(recipe.workers),
                 clips=clips, rounds=rounds, video_kb=round(sources[name][1] / len(samples) / 1000),
                 **clip_columns(own, costs[BASE]), **provenance()) for name, own in costs.items()]


def create_sources(samples: Samples, scratch: Path) -> dict[str, tuple[Samples, int]]:
    """By name the same videos from each source, and the bytes of all; what is made of them goes into `scratch`."""
    sources = {BASE: (samples, sum(size_of(samples.read(index)[0]) for index in range(len(samples))))}
    for name, kind in (('files, packed', VIDEOS), ('JPEG frames, packed', FRAMES)):
        folder = scratch / kind
        pack(samples, folder, 'train', SHORT_SIDE, QUALITY, workers=num_cores(), kind=kind)
        sources[name] = (as_samples(open_shards(folder, 'train', are_videos=True)),
                         sum(path.stat().st_size for path in folder.glob('*.tar')))
    folders = []
    for index in track(range(len(samples)), 'writing frames'):
        folders.append(scratch / f'frames/{index:05}')
        write_frames(samples, index, folders[-1])
    sources['JPEG frames in folders'] = (
        VideoSamples([str(folder) for folder in folders], samples.targets(), samples.classes),
        sum(size_of(frames_in(folder)) for folder in folders))
    return sources


def size_of(source: Any) -> int:
    return sum(path.stat().st_size for path in source.paths) if isinstance(source, Frames) else len(source)


def write_frames(samples: Samples, index: int, folder: Path) -> None:
    """Write the frames of a video as the JPEGs that are packed, as files of their own."""
    folder.mkdir(parents=True)
    video = open_video(samples.read(index)[0])  # type: ignore[arg-type]
    for number, pixels in enumerate(video.frames(range(video.num_frames))):
        (folder / f'{number:05}.jpg').write_bytes(encode(Image.fromarray(pixels), SHORT_SIDE, QUALITY)[0])


def clip_columns(own: list[Cost], base: list[Cost]) -> dict[str, float]:
    """CPU milliseconds of a clip, clips per second of one core, and the share of the CPU time from files."""
    spreads = dict(cpu_ms=[1e3 * cost.cpu for cost in own], clips_per_core_s=[1 / cost.cpu for cost in own],
                   cpu_share_of_files=ratios(own, base, 'cpu'))
    return {f'{column}_{key}': value for column, values in spreads.items() for key, value in spread(values).items()}


def clip_table(rows: list[dict[str, Any]]) -> str:
    """What `run_clip_loaders` found, for people."""
    lines = [f'{"source":22} {"KB/video":>9} {"CPU ms/clip (min-max)":>24} {"clips/s per core":>17} '
             f'{"of the CPU time from files":>27}']
    return '\n'.join(lines + [
        '{source:22} {video_kb:>9,} {cpu_ms_median:10.1f} ({cpu_ms_min:.1f}-{cpu_ms_max:.1f}) '
        '{clips_per_core_s_median:17.1f} {cpu_share_of_files_median:10.2f} ({cpu_share_of_files_min:.2f}-'
        '{cpu_share_of_files_max:.2f})'.format(**row) for row in rows])


def write_videos(count: int = 16, folder: Path = VIDEOS_FOLDER, num_frames: int = NUM_FRAMES) -> Path:
    """A folder train/0/ of `count` h264 videos, 320x240 px, in which a camera pans and zooms over a photo-like picture.

    As `loaders.write_made`.
    """
    return write_made(folder, 'videos', count, '.mp4', lambda path, rng: write_video(
        path, panned(rng, num_frames), rate=30, crf='23', g=str(KEY_DISTANCE), bf='3'))


def panned(rng: np.random.Generator, num_frames: int) -> Clip:
    """(num_frames, 240, 320, 3) uint8: parts of a picture, from one corner to another and ever larger, with noise."""
    scene, frames = photo(rng, 2 * HEIGHT, 2 * WIDTH), []
    start, end = rng.random((2, 2))
    for share in np.linspace(0, 1, num_frames):
        size = (1 + 0.5 * share) * np.array([HEIGHT, WIDTH])
        top, left = (start + share * (end - start)) * (np.array(scene.shape[:2]) - size)
        matrix = np.array([[size[1] / WIDTH, 0, left], [0, size[0] / HEIGHT, top]])
        seen = cv2.warpAffine(scene, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        frames.append(np.clip(seen + rng.normal(0, 2, seen.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)
