"""Small data of every kind that a run can be tried on: images of classes, shards, pseudo labels, masks, depths."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_dataset

from timm_rs.data.pool import open_pool, pool_fingerprint
from timm_rs.data.pseudo_labels import MANIFEST, write_selection
from timm_rs.data.samples import TimmSamples
from timm_rs.data.shards.packing import pack


def write_data(folder: Path) -> None:
    """The same few images as folders of classes and as shards in data/, their labels in labels/, others in pixels/."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 9), ('validation', 5)):
        for label in range(3):
            target = folder / 'data' / split / str(label)
            target.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (24, 24, 3)) + 135 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(target / f'{index}.jpg')
        pack(TimmSamples(create_dataset('', root=str(folder / 'data' / split))), folder / 'data', split,
             short_side=0, num_shards=3)
    _write_labels(folder / 'labels', folder / 'data/train')
    _write_pixels(folder / 'pixels', rng)


def _write_labels(folder: Path, pool: Path) -> None:
    """Labels for a pool of images, as tools/pseudo_label.py writes them."""
    samples = open_pool(str(pool))
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(dict(
        pool=str(pool), data_dir=None, split='train', num_images=len(samples),
        pool_sha256=pool_fingerprint(samples, str(pool)), num_classes=3, classes=['0', '1', '2'], top_k=2)))
    classes = np.arange(len(samples))[:, None] + [0, 1]
    write_selection(folder, dict(entries=classes[:, 0], ids=(classes % 3).astype(np.uint16),
                                 probabilities=np.full(classes.shape, 0.4, np.float16)), {})


def _write_pixels(folder: Path, rng: np.random.Generator) -> None:
    """Noise with masks of three classes and with depths, as the layouts `folders` and `depth_folders` have them."""
    for split, count in (('train', 27), ('validation', 7)):
        for kind, shape, (low, high), dtype in (
                ('images', (24, 32, 3), (0, 256), np.uint8), ('masks', (24, 32), (0, 3), np.uint8),
                ('depth', (24, 32), (500, 9000), np.uint16)):
            (folder / kind / split).mkdir(parents=True)
            for index in range(count):
                numbers = rng.integers(low, high, shape).astype(dtype)
                Image.fromarray(numbers).save(folder / f'{kind}/{split}/{index}.png')
    (folder / 'classes.txt').write_text('ground\nred\ngreen\n')
