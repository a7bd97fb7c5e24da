"""Packed samples, at any index."""

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from timm_rs.data.samples import Order, Samples
from timm_rs.data.shards.encoding import IMAGES, OF_IMAGES
from timm_rs.data.shards.index import (
    COMPRESSED,
    IMAGE_KEYS,
    MAX_CLASSES,
    RAW_KEY,
    VIDEO_KEYS,
    Index,
    NotOneNumber,
    cached_index,
    index_path,
    packed_keys,
    pread,
    stat_of,
)
from timm_rs.data.shards.manifest import manifest_path, packed_splits, read_info, read_manifest
from timm_rs.errors import UserError, needing
from timm_rs.transforms.raw import OpenFile, Stretch

SHUFFLE_BUFFER = 4096  # samples
OPEN_SHARDS = 32  # files kept open per process
_RAW = f'.{RAW_KEY}'.encode()
_NOT_A_FILE = re.compile(r'pipe:|[A-Za-z][A-Za-z0-9+.-]*:/|.*::|-$')


class ShardSamples(Samples):
    """The samples of local shards in `root`, in the order of the shards.

    `packed`: the shards were made by `pack`, whose keys keep the dots of the original names as `%2E`. `skipped` counts
    samples that are in the shards but have no image or no usable label.
    """

    def __init__(self, root: Path, index: Index, classes: dict[Any, int] | None = None, packed: bool = False,
                 buffer: int = SHUFFLE_BUFFER):
        self.root, self.index, self.classes, self.packed, self.buffer = root, index, classes or {}, packed, buffer
        self.skipped = int(index.skipped.sum())
        self._ends = np.cumsum(index.counts)
        self._name_ends = np.cumsum(index.name_lengths)
        self._open = functools.lru_cache(OPEN_SHARDS)(OpenFile)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open=functools.lru_cache(OPEN_SHARDS)(OpenFile))

    def __len__(self) -> int:
        return len(self.index.offsets)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label. Raises OSError where the shard is gone or ends early."""
        length = int(self.index.lengths[index])
        content = pread(self._file(index).file, length, int(self.index.offsets[index]))
        if len(content) != length:
            raise OSError(f'{self.name(index)}: the shard ends after {len(content)} of the image\'s {length} bytes')
        return content, int(self.index.targets[index])

    def open(self, index: int) -> tuple[bytes | Stretch, int]:
        """The same, but of an image of raw pixels nothing is read yet. Raises OSError where the shard is gone."""
        end = int(self._name_ends[index])
        if self.index.names[end - len(_RAW):end].tobytes() != _RAW:
            return self.read(index)
        stretch = Stretch(self._file(index), int(self.index.offsets[index]), int(self.index.lengths[index]))
        return stretch, int(self.index.targets[index])

    def name(self, index: int) -> str:
        """SHARD/KEY.jpg, where the last part is what the original file was called if `pack` wrote the shard."""
        end = int(self._name_ends[index])
        start = end - int(self.index.name_lengths[index])
        name = self.index.names[start:end].tobytes().decode(errors='surrogateescape')
        return f'{self._shard(index)}/{_unquote(name) if self.packed else name}'

    def targets(self) -> list[int]:
        return self.index.targets.tolist()

    def epoch_order(self, rng: np.random.Generator) -> Order:
        """Shards shuffled, their samples in sequence, then mixed within `buffer`: reading stays near sequential.

        Every sample lands less than `buffer` places from where the sequence of shards has it.
        """
        shards = rng.permutation(len(self._ends))
        starts = self._ends - self.index.counts
        order = np.concatenate([np.arange(starts[shard], self._ends[shard]) for shard in shards])
        # A sample's place plus less than `buffer` is its sorting key, so it only passes samples that near to it.
        return order[np.argsort(np.arange(len(order)) + rng.uniform(0, self.buffer, len(order)), kind='stable')]

    def _file(self, index: int) -> OpenFile:
        return self._open(self.root / self._shard(index))

    def _shard(self, index: int) -> str:
        return str(self.index.shards[np.searchsorted(self._ends, index, 'right')])


def is_packed(root: str | Path) -> bool:
    """Whether `pack` has written into the folder."""
    return any(Path(root).glob('*-manifest.json'))


def open_shards(root: str | Path, split: str, input_key: str | None = None, target_key: str | None = None,
                are_videos: bool = False) -> ShardSamples | None:
    """The samples of a split, or None for what only a stream can read (remote, piped or compressed shards, labels
    that are more than one number).

    `split` is a name in the manifest of `pack` or in `_info.json`, or a pattern such as `name-{0000..0009}.tar`, as in
    timm, with its `input_key` and `target_key`. The headers of shards without a manifest are read once, and the result
    kept in `root` when that is writable. Raises UserError for shards that are missing, damaged, or not those of the
    manifest.
    """
    root = Path(root)
    if _NOT_A_FILE.match(str(root)) or (target_key and ',' in target_key):
        return None
    if manifest_path(root, split).exists():
        return _open_packed(root, split, are_videos)
    shards, label_key = _listed_shards(root, split)
    if any(_NOT_A_FILE.match(shard) or shard.endswith(COMPRESSED) for shard in shards):
        return None
    image_keys = (input_key or (VIDEO_KEYS if are_videos else IMAGE_KEYS)).split(';')
    label_key = target_key or label_key
    identity = json.dumps([shards, image_keys, label_key]).encode()
    try:
        index = cached_index(root, root / f'.index-{hashlib.sha256(identity).hexdigest()[:12]}.npz',
                              shards, image_keys, label_key)
    except NotOneNumber:
        return None
    if not index.counts.sum():
        label = f'the key {label_key} in .json' if label_key else '.cls with digits'
        raise UserError(f'no sample of {root}, split {split}, has both an image (.{", .".join(image_keys)}) and a '
                        f'label ({label})')
    return ShardSamples(root, index)


def _open_packed(root: Path, split: str, are_videos: bool) -> ShardSamples:
    manifest = read_manifest(root, split)
    if are_videos != (manifest['settings'].get('kind', IMAGES) not in OF_IMAGES):
        raise UserError(f'{root} has packed images: leave out --task video' if are_videos else
                        f'{root} has packed videos: give --task video')
    missing = manifest['settings']['num_shards'] - len(manifest['shards'])
    if missing:
        raise UserError(f'{root}: packing of {split} is not finished, {missing} shards are missing; '
                        'run the same tools/pack_dataset.py again to continue')
    for shard, entry in manifest['shards'].items():
        _check_size(root / shard, entry['bytes'])
    counts = [entry['samples'] for entry in manifest['shards'].values()]
    num_classes = 1 + max(manifest['classes'].values(), default=MAX_CLASSES)

    def fits(index: Index) -> bool:
        return index.counts.tolist() == counts and bool((index.targets < num_classes).all())

    index = cached_index(root, index_path(root, split), list(manifest['shards']), packed_keys(are_videos), '', fits,
                         by_time=False)  # a copied pack is as good, and its sizes are those of the manifest
    if not fits(index):
        raise UserError(f'{root}: the shards of {split} do not hold as many images, or other labels, than '
                        f'{manifest_path(root, split).name} says; copy them again, or pack into another folder')
    return ShardSamples(root, index, manifest['classes'], packed=True)


def _check_size(path: Path, expected: int) -> None:
    size = stat_of(path).st_size
    if size != expected:
        raise UserError(f'shard {path} has {size:,} bytes, but {expected:,} by its manifest; '
                        'copy it again, or remove it and run the same tools/pack_dataset.py again')


def _listed_shards(root: Path, split: str) -> tuple[list[str], str]:
    """File names, and the label's key in .json (empty for .cls), by timm's rules."""
    if 'tar' in split or '..' in split:
        pattern = split.partition('|')[0]  # after it comes a count, which timm needs and we know
        if _NOT_A_FILE.match(pattern):
            return [pattern], ''
        with needing(f'split {split}', 'webdataset'):
            from webdataset.shardlists import expand_urls
        return list(expand_urls(pattern)), ''
    info = read_info(root)
    splits = info.get('splits', {})
    if split not in splits:
        known = sorted({*splits, *packed_splits(root)})
        raise UserError(f'{root} has no split {split}: ' + (f'there is {", ".join(known)}' if known else (
            'it has no _info.json that lists splits; name the shards, as in shards-{0000..0009}.tar')))
    return list(splits[split]['filenames']), splits[split].get('alt_label', '')


def keys_of(samples: Samples) -> list[str]:
    """The key of each sample: its file's name, behind its number where names repeat."""
    stems = [os.path.splitext(os.path.basename(name))[0] for name in samples.all_names()]
    keys = [stem.replace('%', '%25').replace('.', '%2E') for stem in stems]  # a key ends at its first dot
    if len(set(keys)) == len(keys):
        return keys
    return [f'{number:07}/{key}' for number, key in enumerate(keys)]


def _unquote(name: str) -> str:
    return name.replace('%2E', '.').replace('%25', '%')
