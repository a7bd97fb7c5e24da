"""The files beside shards that say what they hold, checked as they are read: SPLIT-manifest.json and _info.json."""

import re
from pathlib import Path
from typing import Any, TypeGuard

from timm_rs.data.shards.index import BLOCK, MAX_CLASSES
from timm_rs.errors import UserError
from timm_rs.files import read_json


def manifest_path(root: Path, split: str) -> Path:
    return root / f'{split}-manifest.json'


def packed_splits(root: Path) -> list[str]:
    return sorted(path.name.removesuffix('-manifest.json') for path in root.glob('*-manifest.json'))


def read_manifest(root: Path, split: str) -> dict[str, Any]:
    """What `pack` wrote: settings, classes and shards. Raises UserError where it did not write that."""
    path = manifest_path(root, split)
    manifest = read_json(path)
    if not {'settings', 'classes', 'shards'} <= manifest.keys():
        raise UserError(f'{path} is not a manifest of tools/pack_dataset.py')
    if problem := _problem(split, **{name: manifest[name] for name in ('settings', 'classes', 'shards')}):
        raise UserError(f'{path} is damaged: {problem}; copy it again, or pack into another folder')
    return manifest


def read_info(root: Path) -> dict[str, Any]:
    """`_info.json` as timm reads it; {} where there is none. Raises UserError where it cannot be read."""
    path = next((root / name for name in ('_info.json', 'info.json') if (root / name).exists()), None)
    info = read_json(path) if path else {}
    splits = info.get('splits', {})
    if not isinstance(splits, dict) or not all(isinstance(split, dict) for split in splits.values()):
        raise UserError(f'{path}: splits must be a JSON object of objects')
    for name, split in splits.items():
        files = split.get('filenames')
        if not isinstance(files, list) or not files or not all(isinstance(file, str) and '\0' not in file
                                                               for file in files):
            raise UserError(f'{path}: split {name} needs filenames, a list of names')
        if not isinstance(split.get('alt_label', ''), str):
            raise UserError(f'{path}: alt_label of split {name} must be a key, got {split["alt_label"]!r}')
    return info


def _problem(split: str, settings: Any, classes: Any, shards: Any) -> str:
    """What cannot be in a manifest; empty where all can."""
    if not all(isinstance(part, dict) for part in (settings, classes, shards)):
        return 'settings, classes and shards must be JSON objects'
    if not _is_count(settings.get('num_shards')) or len(shards) > settings['num_shards']:
        return f'it has {len(shards)} shards of {settings.get("num_shards")!r}'
    for name, index in classes.items():
        if not _is_count(index) or index >= MAX_CLASSES:
            return f'class {name} has the index {index!r}'
    for shard, entry in shards.items():
        if not re.fullmatch(rf'{re.escape(split)}-\d+\.tar', shard):  # or it would be a file elsewhere
            return f'{shard!r} is no name of a shard'
        if not isinstance(entry, dict):
            return f'what it says of {shard}'
        samples, size = entry.get('samples'), entry.get('bytes')
        if not _is_count(samples) or not _is_count(size) or samples * BLOCK > size:
            return f'the samples and bytes of {shard}'
        if not isinstance(entry.get('sha256'), str):
            return f'the sha256 of {shard}'
        bad = entry.get('bad')
        if not isinstance(bad, list) or not all(
                isinstance(row, list) and [*map(type, row)] == [str, str] for row in bad):
            return f'the bad images of {shard}'
    return ''


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 53
