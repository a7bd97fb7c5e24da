"""HDF5: numbers that lie in the file itself, in the sizes that the file has room for."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_rs.containers.archives import check_growth, damage_as_user_error
from timm_rs.errors import UserError

FILTERS = (1, 2, 3)  # deflate, shuffle, checksum: part of HDF5; others are libraries that a file asks for
DEEPEST = 20


@contextmanager
def open_hdf5(path: Path, top: str = '', only: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The datasets of an HDF5 file by their names, below its group `top` if there is one, or `only` some of them.

    Raises UserError for a file that names others (external storage, virtual datasets, links other than to its own
    objects), holds anything but numbers, is compressed by anything but HDF5's own deflate or too much, nests in
    itself, or is damaged; ImportError without h5py.
    """
    import h5py
    with damage_as_user_error(path), h5py.File(path, 'r') as file:
        start = _node(path, file, top) if top and top in file else file
        datasets = dict(_datasets(path, start, '', only=only))
        check_growth(path, sum(_size(data) for data in datasets.values()))
        yield datasets


def _datasets(
        path: Path, group: Any, prefix: str, depth: int = 0, only: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    import h5py
    if depth > DEEPEST:
        raise UserError(f'{path} is refused: its groups nest deeper than {DEEPEST}, or in themselves')
    for name in (name for name in group if not only or name in only):
        node = _node(path, group, name)
        if isinstance(node, h5py.Group):
            yield from _datasets(path, node, f'{prefix}{name}/', depth + 1)
            continue
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in 'fiu' or node.shape is None:
            raise UserError(f'{path} is refused: {prefix}{name} in it holds something other than numbers')
        settings = node.id.get_create_plist()
        filters = {settings.get_filter(index)[0] for index in range(settings.get_nfilters())}
        wrong = ('lies in other files' if node.external or node.is_virtual else
                 'is compressed in a way that is not part of HDF5' if not filters <= {*FILTERS} else '')
        if wrong:
            raise UserError(f'{path} is refused: {prefix}{name} in it {wrong}')
        yield prefix + name, node


def _node(path: Path, group: Any, name: str) -> Any:
    """What a group has under a name, if it lies in the group itself."""
    import h5py
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise UserError(f'{path} is refused: {name} in it is a link to somewhere else')
    return group[name]


def _size(data: Any) -> int:
    """Bytes to hold a dataset, or one chunk of it, which is unpacked as a whole."""
    return max(data.nbytes, math.prod(data.chunks or (0,)) * data.dtype.itemsize)
