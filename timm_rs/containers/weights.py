"""Checkpoints of torch and safetensors files: tensors and plain values, no code, no more of them than the file has."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch

from timm_rs.containers.archives import check_growth, damage_as_user_error, is_zip, open_zip
from timm_rs.errors import UserError

TORCH_SUFFIXES = ('.tar', '.pth', '.pt', '.bin')


def check_weights(path: Path) -> None:
    """Raise UserError for weights in a container that no library would write; a look at the outside only."""
    is_npz = path.suffix == '.npz'
    if is_npz or path.suffix != '.safetensors' and is_zip(path):
        with damage_as_user_error(path), open_zip(path, compressed=is_npz):
            pass


def check_weights_in(folder: Path) -> None:
    """The same for all weights directly in a folder, of which timm reads one."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.suffix in TORCH_SUFFIXES:
            check_weights(path)


def load_weights_file(path: Path, mmap: bool = False) -> Any:
    """What a checkpoint holds, on the CPU; of a .safetensors file, its tensors as `state_dict`.

    With `mmap`, tensors of torch's files stay on disk until they are read.

    Only tensors and plain values are made (`weights_only=True`), and `argparse.Namespace`, in which timm and
    torchvision keep their arguments: a name for a dict. Raises UserError for what is refused, and whatever torch and
    safetensors raise for what is damaged.
    """
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file
        return {'state_dict': load_file(path)}
    check_weights(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.filterwarnings('ignore', 'Validating sparse tensor')  # torch 2.14, of what is looked at below
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    check_growth(path, _tensor_bytes(path, content))
    return content


def _tensor_bytes(path: Path, content: Any) -> int:
    """Bytes of all tensors, as if each had its own memory: strides can make a thousand gigabytes of one number."""
    total, seen, left = 0, set[int](), [content]
    while left:
        value = left.pop()
        if id(value) in seen:  # a list can be in itself
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_meta:
                raise UserError(f'checkpoint {path} is refused: it has tensors that are sparse or without data')
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value
        elif isinstance(value, argparse.Namespace):
            left.append(vars(value))
    return total
