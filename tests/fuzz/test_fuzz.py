"""Mutated files, thousands of each kind: read as by others or refused by name, each in 2 seconds and 1 GB.

`pytest -m fuzz` runs the same cases each time; TIMM_RS_FUZZ=100000 that many of each kind (-k images for one).
"""

import contextlib
import io
import os
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_images
from mutations import mutate, mutate_json, mutate_yaml
from PIL import Image
from safetensors.torch import save_file

from timm_rs.data.bad_samples import READ_ERRORS
from timm_rs.data.datasets import open_split
from timm_rs.data.shards.encoding import IMAGES, RAW
from timm_rs.data.shards.packing import pack
from timm_rs.data.shards.reading import open_shards
from timm_rs.errors import UserError
from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file, to_yaml
from timm_rs.training.checkpoint import read_checkpoint
from timm_rs.transforms.decode import FORMATS, BadImage, open_picture

SECONDS, BYTES, KEY = 2, 1 << 30, 0
# About 2 minutes in all.
COUNTS = dict(images=30_000, recipes=5000, packed_folders=4000, raw_folders=4000, archives=10_000, checkpoints=10_000)


class Images:
    """What ours reads must be what Pillow reads."""

    def __init__(self, folder):
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((40, 30))
        self.seeds = []
        for kind, options in (
                ('JPEG', {}), ('JPEG', dict(progressive=True)), ('JPEG', dict(restart_marker_blocks=1)), ('PNG', {}),
                ('WEBP', {}), ('WEBP', dict(lossless=True)), ('BMP', {}), ('GIF', {}), ('PPM', {}), ('TIFF', {}),
                *(('TIFF', dict(compression=name)) for name in ('jpeg', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits'))):
            self.seeds.append(self.encode(photo, kind, **options))
        for mode, kinds in {'L': 'JPEG PNG TIFF', 'CMYK': 'JPEG TIFF', 'P': 'PNG GIF BMP TIFF', 'LA': 'PNG',
                            'F': 'TIFF', 'RGBA': 'PNG WEBP TIFF', 'I': 'TIFF', 'I;16': 'TIFF PNG'}.items():
            image = photo.convert('L').convert(mode) if ';' in mode else photo.convert(mode)
            self.seeds += [self.encode(image, kind) for kind in kinds.split()]
        self.seeds.append(self.encode(photo.convert('1'), 'TIFF', compression='group4'))

    @staticmethod
    def encode(image, kind, **options):
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    def make(self, rng):
        return mutate(rng, *(self.seeds[index] for index in rng.integers(len(self.seeds), size=2)))

    def read(self, data):
        with contextlib.suppress(BadImage):
            return open_picture(data).pixels()

    def check(self, data, pixels):
        if pixels is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            image = Image.open(io.BytesIO(data), formats=list(FORMATS))
            if image.mode.startswith('I'):  # 16 bits keep their high byte, which Pillow clips
                return
            np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))


class Recipes:
    def __init__(self, folder):
        self.path = folder / 'recipe.yaml'
        recipes = sorted((ROOT / 'train_recipes').rglob('*.yaml'))
        self.seeds = [*(path.read_text() for path in recipes), to_yaml(Recipe())]

    def make(self, rng):
        first, second = (self.seeds[index] for index in rng.integers(len(self.seeds), size=2))
        content = mutate_yaml(rng, first).encode(errors='surrogatepass')
        return mutate(rng, content, second.encode()) if rng.random() < 0.3 else content

    def read(self, data):
        self.path.write_bytes(data)
        with contextlib.suppress(RecipeError):
            to_yaml(Recipe(**read_file(self.path)))  # as --show does

    def check(self, data, result):
        pass


class PackedFolders:
    """Manifest, index, list of splits or a shard of a packed folder changed."""

    kind = IMAGES

    def __init__(self, folder):
        write_images(folder / 'images', dict(cat=2, dog=2), suffix='jpg')
        self.root = folder / 'packed'
        pack(open_split(Recipe(data_dir=str(folder / 'images'), val_split=''), 'train', False), self.root, 'train',
             num_shards=2, kind=self.kind)
        self.files = {path: path.read_bytes() for path in sorted(self.root.iterdir())}

    def make(self, rng):
        path, other = (list(self.files)[index] for index in rng.integers(len(self.files), size=2))
        data = self.files[path]
        if path.suffix == '.json' and rng.random() < 0.8:
            return path, mutate_json(rng, data.decode()).encode()
        return path, mutate(rng, data, self.files[other])

    def read(self, case):
        changed, data = case
        for path, content in self.files.items():
            path.write_bytes(data if path == changed else content)
        for split in ('train', 'train-{000000..000001}.tar'):
            with contextlib.suppress(UserError):
                samples = open_shards(self.root, split)
                for index in range(len(samples) if samples else 0):
                    with contextlib.suppress(OSError):
                        samples.read(index)
                    with contextlib.suppress(OSError, BadImage):
                        open_picture(samples.open(index)[0]).pixels()
                    samples.name(index)

    def check(self, case, result):
        for path in self.root.iterdir():  # an index that was made
            if path not in self.files:
                path.unlink()


class RawFolders(PackedFolders):
    """The same of raw pixels."""

    kind = RAW


class Archives(PackedFolders):
    """A tar of images changed."""

    def __init__(self, folder):
        super().__init__(folder)
        self.path = folder / 'images.tar'
        self.seeds = []
        for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
            with tarfile.open(self.path, 'w', format=kind) as archive:
                archive.add(folder / 'images', 'images')
                archive.add(folder / 'images/cat/0.jpg', 'images/cat/' + 'a.jpg'.rjust(
                    40 if kind == tarfile.USTAR_FORMAT else 160, 'é'))
            self.seeds.append(self.path.read_bytes())

    def make(self, rng):
        return mutate(rng, *(self.seeds[index] for index in rng.integers(len(self.seeds), size=2)))

    def read(self, data):
        self.path.write_bytes(data)
        with contextlib.suppress(UserError):
            samples = open_split(Recipe(data_dir=str(self.path), val_split=''), 'train', is_training=False)
            for index in range(len(samples)):
                with contextlib.suppress(*READ_ERRORS):
                    samples.read(index)


class Checkpoints:
    def __init__(self, folder):
        weights = {name: torch.ones(3, 4) for name in ('a.weight', 'b.weight')}
        content = dict(state_dict=weights, epoch=3, args=dict(lr=0.1))
        self.seeds = {}
        for name, save in (('a.pth.tar', lambda path: torch.save(content, path)),
                           ('old.pth', lambda path: torch.save(content, path, _use_new_zipfile_serialization=False)),
                           ('a.safetensors', lambda path: save_file(weights, path))):
            save(folder / name)
            self.seeds[folder / name] = (folder / name).read_bytes()

    def make(self, rng):
        path, other = (list(self.seeds)[index] for index in rng.integers(len(self.seeds), size=2))
        return path, mutate(rng, self.seeds[path], self.seeds[other])

    def read(self, case):
        path, data = case
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            read_checkpoint(path)

    def check(self, case, result):
        pass


KINDS = dict(images=Images, recipes=Recipes, packed_folders=PackedFolders, raw_folders=RawFolders,
             archives=Archives, checkpoints=Checkpoints)


def peak_memory():
    """Bytes; Linux starts to count anew when it is told so."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith('VmHWM'))


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='memory is measured as Linux does')
@pytest.mark.parametrize('kind', KINDS)
def test_mutated_files_are_read_or_refused(kind, tmp_path):
    tested = KINDS[kind](tmp_path)
    count = int(os.environ.get('TIMM_RS_FUZZ', COUNTS[kind]))
    slowest = largest = (0, 0)
    for number in range(count):
        case = tested.make(np.random.default_rng([KEY, number]))
        Path('/proc/self/clear_refs').write_text('5')
        before, start = peak_memory(), time.process_time()
        try:
            result = tested.read(case)
            seconds, size = time.process_time() - start, peak_memory() - before
            assert seconds < SECONDS, f'{seconds:.1f} s'
            assert size < BYTES, f'{size >> 20} MiB'
            tested.check(case, result)
        except Exception as error:
            raise AssertionError(f'case {number} of {kind}, default_rng([{KEY}, {number}])') from error
        slowest, largest = max(slowest, (seconds, number)), max(largest, (size, number))
    print(f'{count} {kind}: at most {slowest[0]:.2f} s (case {slowest[1]}), {largest[0] >> 20} MiB (case {largest[1]})')


def test_the_same_number_is_the_same_case(tmp_path):
    for kind, make in KINDS.items():
        (tmp_path / kind).mkdir()
        tested = make(tmp_path / kind)
        first, second, other = (tested.make(np.random.default_rng([KEY, number])) for number in (7, 7, 8))
        assert first == second != other
