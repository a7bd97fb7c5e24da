"""What raw pixels will take, before they are packed."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from timm_rs.data.samples import Samples
from timm_rs.data.shards import raw_size as raw_size_module
from timm_rs.data.shards.encoding import IMAGES, RAW
from timm_rs.data.shards.packing import pack
from timm_rs.data.shards.raw_size import RawSize, check_disk, raw_size
from timm_rs.errors import UserError


class Noise(Samples):
    """JPEGs of noise of different sizes, every seventh of them bad."""

    classes = dict(cat=0)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, index):
        content = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (30 + index % 5, 60, 3), np.uint8)
        Image.fromarray(pixels).save(content, 'JPEG')
        return (b'bad' if index % 7 == 6 else content.getvalue()), 0

    def name(self, index):
        return f'{index}.jpg'


@pytest.mark.parametrize(('count', 'tolerance'), [(5, 0), (60, 0), (300, 0.03)])
def test_the_size_is_that_of_the_shards(tmp_path, count, tolerance):
    size = raw_size(Noise(count), 20)
    assert (size.num_images, size.looked_at) == (count, min(count, 100))
    for kind, expected in ((RAW, size.num_bytes), (IMAGES, size.as_jpegs)):
        packed = pack(Noise(count), tmp_path / kind, 'train', 20, num_shards=1, kind=kind)
        assert packed.num_bytes - 1024 == pytest.approx(expected, rel=tolerance, abs=0)  # 1024 end a tar


def test_the_number_of_shards_follows_the_size(tmp_path, monkeypatch):
    assert RawSize(27_000_000_001, 1, 100, 10**6).num_shards == 101
    assert RawSize(10, 1, 100, 10**6).num_shards == 8 and RawSize(10, 1, 3, 3).num_shards == 3
    monkeypatch.setattr(raw_size_module, 'SHARD_BYTES', 10_000)
    packed = pack(Noise(60), tmp_path, 'train', 20, kind=RAW)
    assert packed.num_shards == raw_size(Noise(60), 20).num_shards > 8
    assert packed.num_bytes / packed.num_shards == pytest.approx(10_000 + 1024, rel=0.1)


def disk(monkeypatch, free):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**15, 0, free))


SIZES = dict(train=RawSize(40 * 10**9, 8 * 10**9, 100, 120_000), validation=RawSize(10**9, 2 * 10**8, 7, 7))


def test_a_line_says_how_much_and_how_much_is_free(tmp_path, monkeypatch):
    disk(monkeypatch, 380 * 10**9)
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there/train-000000.tar').write_bytes(bytes(2_500_000))
    assert check_disk(SIZES, tmp_path / 'not/there') == [
        'train: about 40.0 GB as raw pixels, 5.0 times as much as JPEGs of quality 90 (by 100 of 120,000 images); '
        '380.0 GB are free',
        'validation: about 1.0 GB as raw pixels, 5.0 times as much as JPEGs of quality 90 (by 7 of 7 images); '
        '380.0 GB are free']
    assert ', of which 2.5 MB are there; ' in check_disk(SIZES, tmp_path / 'there')[0]
    assert not (tmp_path / 'not').exists()


@pytest.mark.parametrize(('free', 'fits'), [(41 * 10**9, True), (37 * 10**9, True), (36 * 10**9, False), (0, False)])
def test_a_disk_that_is_clearly_too_small_is_refused(tmp_path, monkeypatch, free, fits):
    disk(monkeypatch, free)
    if fits:
        check_disk(SIZES, tmp_path)
    else:
        with pytest.raises(UserError, match=re.escape(f'about 41.0 GB more, and {raw_size_module.in_words(free)} are')):
            check_disk(SIZES, tmp_path)


def test_what_is_there_needs_no_more(tmp_path, monkeypatch):
    pack(Noise(20), tmp_path, 'train', 20, kind=RAW)
    disk(monkeypatch, 5)
    check_disk(dict(train=raw_size(Noise(20), 20)), tmp_path)
