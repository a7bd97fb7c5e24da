"""The data of the small runs that tools/stress_resume.py disturbs."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_dataset

from timm_rs.benchmark.stress_kinds import KINDS
from timm_rs.data.pool import open_pool, pool_fingerprint
from timm_rs.data.pseudo_labels import MANIFEST, write_selection
from timm_rs.data.samples import TimmSamples
from timm_rs.data.scenes import voc_xml
from timm_rs.data.shards.encoding import FRAMES
from timm_rs.data.shards.packing import pack
from timm_rs.data.videos import open_folder
from timm_rs.transforms.frames import write_video

SPLITS = {'train': 9, 'validation': 5}  # samples of each of three classes
COLOURS = 135 * np.eye(3, dtype=int)  # which tell the classes


def class_files(split: Path, count: int) -> Iterator[tuple[Path, int, int]]:
    """Paths, without suffix, of `count` files in a new folder of `split` for each of three classes; class, number."""
    for label in range(3):
        (split / str(label)).mkdir(parents=True)
        for index in range(count):
            yield split / f'{label}/{index}', label, index


def write_images(folder: Path) -> None:
    """The same few images as folders of classes and as shards, in `folder`/data; pseudo labels in `folder`/labels."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for path, label, _ in class_files(folder / 'data' / split, count):
            pixels = rng.integers(0, 120, (24, 24, 3)) + COLOURS[label]
            Image.fromarray(pixels.astype(np.uint8)).save(path.with_suffix('.jpg'))
        pack(TimmSamples(create_dataset('', root=str(folder / 'data' / split))), folder / 'data', split,
             short_side=0, num_shards=3)
    write_labels(folder / 'labels', folder / 'data/train')


def write_labels(folder: Path, pool: Path) -> None:
    """Labels for a pool of images, as tools/pseudo_label.py writes them."""
    samples = open_pool(str(pool))
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(dict(
        pool=str(pool), data_dir=None, split='train', num_images=len(samples),
        pool_sha256=pool_fingerprint(samples, str(pool)), num_classes=3, classes=['0', '1', '2'], top_k=2)))
    classes = np.arange(len(samples))[:, None] + [0, 1]
    write_selection(folder, dict(entries=classes[:, 0], ids=(classes % 3).astype(np.uint16),
                                 probabilities=np.full(classes.shape, 0.4, np.float16)), {})


def write_videos(folder: Path) -> None:
    """The same few videos as files in `folder`/videos, and as shards of their frames in `folder`/frames."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for path, label, index in class_files(folder / 'videos' / split, count):
            clip = rng.integers(0, 120, (6 + index, 24, 32, 3)) + COLOURS[label]
            write_video(path.with_suffix('.mp4'), clip.astype(np.uint8))
        pack(open_folder(str(folder / 'videos' / split)), folder / 'frames', split, num_shards=3, kind=FRAMES)


def write_pixels(folder: Path) -> None:
    """Noise with masks of three classes and with depths, in `folder`/pixels, as `folders` and `depth_folders`."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for kind, shape, (low, high), dtype in (
                ('images', (24, 32, 3), (0, 256), np.uint8), ('masks', (24, 32), (0, 3), np.uint8),
                ('depth', (24, 32), (500, 9000), np.uint16)):
            target = folder / 'pixels' / kind / split
            target.mkdir(parents=True)
            for index in range(3 * count):
                Image.fromarray(rng.integers(low, high, shape).astype(dtype)).save(target / f'{index}.png')
    (folder / 'pixels/classes.txt').write_text('ground\nred\ngreen\n')


def write_boxes(folder: Path) -> None:
    """Noise with none, one or two squares of three colours, in `folder`/boxes, as `voc_boxes`."""
    rng, colours = np.random.default_rng(0), ('red', 'green', 'blue')
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (folder / 'boxes' / name).mkdir(parents=True)
    (folder / 'boxes/classes.txt').write_text('\n'.join(colours))
    for split, count in SPLITS.items():
        names = [f'{split}_{index}' for index in range(3 * count)]
        (folder / f'boxes/ImageSets/Main/{split}.txt').write_text('\n'.join(names))
        for index, name in enumerate(names):
            pixels, things = rng.integers(0, 120, (48, 64, 3)), []
            for left in (0, 32)[:index % 3]:
                label, side = int(rng.integers(3)), int(rng.integers(12, 27))
                pixels[:side, left:left + side] += COLOURS[label]
                things.append((colours[label], left, 0, left + side, side))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'boxes/JPEGImages/{name}.jpg')
            (folder / f'boxes/Annotations/{name}.xml').write_text(voc_xml(f'{name}.jpg', 64, 48, things))


def write_tags(folder: Path) -> None:
    """Noise in none to three colours, in `folder`/tags, with texts of their names beside it."""
    rng, colours = np.random.default_rng(0), np.array(['red', 'green', 'blue'])
    for split, count in SPLITS.items():
        (folder / 'tags' / split).mkdir(parents=True)
        for index in range(3 * count):
            has = rng.random(3) < 0.5
            pixels = rng.integers(0, 120, (24, 24, 3)) + COLOURS[has].sum(0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'tags/{split}/{index}.png')
            (folder / f'tags/{split}/{index}.txt').write_text('\n'.join(colours[has]))


WRITERS = dict(images=write_images, videos=write_videos, pixels=write_pixels, boxes=write_boxes, tags=write_tags)


def write_data(folder: Path, kinds: Iterable[str]) -> None:
    """Write the data of all `kinds` into `folder`. Raises OSError; UserError without PyAV where videos are wanted."""
    for data in dict.fromkeys(KINDS[kind].data for kind in kinds):
        WRITERS[data](folder)
