"""A folder of pseudo labels as training reads it: the manifest of the labelling, and which labels are selected."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from timm_rs.containers.archives import load_array
from timm_rs.data.class_names import in_order
from timm_rs.data.listing import some
from timm_rs.data.mixture import Mixture
from timm_rs.data.pool import open_pool, pool_fingerprint
from timm_rs.data.samples import Samples
from timm_rs.errors import UserError, first_line
from timm_rs.files import atomic_write, read_json, sha256_of

MANIFEST = 'manifest.json'  # what was labelled, and by whom
SELECTION = 'selection.json'  # how was selected, and the SHA-256 of the arrays
ARRAYS = ('entries', 'ids', 'probabilities')  # selected-*.npy: (m,) indices of the pool; (m, k); (m, k)

MANIFEST_TYPES = dict(pool=str, data_dir=(str, type(None)), split=str, num_images=int, pool_sha256=str, num_classes=int,
                      classes=(list, type(None)), top_k=int)


def array_path(folder: Path, name: str) -> Path:
    return folder / f'selected-{name}.npy'


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises UserError unless it is one of tools/pseudo_label.py."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f'{folder} has no {MANIFEST}: label a pool first, tools/pseudo_label.py label POOL {folder}')
    manifest = read_json(path)
    for name, kind in MANIFEST_TYPES.items():
        if not isinstance(manifest.get(name), kind):  # type: ignore[arg-type]
            raise UserError(f'{path} is not a manifest of tools/pseudo_label.py: {name} is missing or of another kind')
    return manifest


def write_selection(folder: Path, arrays: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write `arrays`, named as in `ARRAYS`, and then what they are and how they were selected. Raises OSError."""
    for name in ARRAYS:
        with atomic_write(array_path(folder, name), 'wb') as file:
            np.save(file, arrays[name], allow_pickle=False)
    sums = {name: sha256_of(array_path(folder, name)) for name in ARRAYS}
    with atomic_write(folder / SELECTION, encoding='utf-8') as file:
        file.write(json.dumps(settings | sums, indent=1) + '\n')


def open_mixture(labelled: Samples, classes: dict[Any, int], num_classes: int, folder: Path, pool: str, ratio: int
                 ) -> Mixture:
    """`labelled` images, of `classes` (name -> index), with what is selected in `folder`.

    Args:
        pool: where its images are now; empty: where they were labelled.
        ratio: pseudo-labelled images for each labelled one.

    Raises UserError for labels that are not there, damaged, of other classes, or of another pool.
    """
    manifest = read_manifest(folder)
    if not (folder / SELECTION).is_file():
        raise UserError(f'nothing is selected in {folder} yet: tools/pseudo_label.py select {folder}')
    selection = read_json(folder / SELECTION)
    entries, ids, probabilities = (_read_array(folder, name, selection) for name in ARRAYS)
    if not len(entries):
        raise UserError(f'no image is selected in {folder}: lower --min-confidence of tools/pseudo_label.py select')
    if (entries.shape != ids.shape[:1] or ids.shape != probabilities.shape or ids.ndim != 2
            or int(ids.max()) >= manifest['num_classes'] or int(ids.min()) < 0
            or int(entries.min()) < 0 or int(entries.max()) >= manifest['num_images']
            or not np.isfinite(probabilities.sum(dtype=np.float64))):
        raise UserError(f'{folder} is damaged: its arrays do not fit each other; select again')
    ids = _in_classes(ids, manifest, classes, num_classes, folder)
    location = pool or manifest['pool']
    samples = open_pool(location, manifest['data_dir'], manifest['split'])
    if pool_fingerprint(samples, location) != manifest['pool_sha256']:
        raise UserError(f'{location} is not the pool that {folder} was made from: other images or other sizes; '
                        'give its place with --pseudo-pool, or label it again')
    _check_is_more(labelled, samples, location)
    identity = json.dumps([manifest['pool_sha256'], manifest['classes'], *(selection[name] for name in ARRAYS)])
    return Mixture(labelled, samples, entries, ids, probabilities, ratio,
                   hashlib.sha256(identity.encode()).hexdigest())


def _check_is_more(labelled: Samples, pool: Samples, location: str) -> None:
    """Raise UserError where every image of the pool is, by its path, one of the labelled ones."""
    real_folder = functools.cache(os.path.realpath)  # one of a million images costs too much

    def place(samples: Samples, index: int) -> tuple[str, str]:
        folder, name = os.path.split(samples.name(index))
        return real_folder(folder), name

    known = {place(labelled, index) for index in range(len(labelled))}
    if all(place(pool, index) in known for index in range(len(pool))):
        raise UserError(f'the pool {location} has no image but the labelled ones; label images that training does not '
                        'have, or train without --pseudo-dir')


def _in_classes(ids: Any, manifest: dict[str, Any], classes: dict[Any, int], num_classes: int, folder: Path) -> Any:
    """`ids` of the teacher's classes as indices of the data's, by name where both have names."""
    teachers = manifest['classes']
    if manifest['num_classes'] != num_classes:
        raise UserError(f'the teacher of {folder} has {manifest["num_classes"]} classes, the data has {num_classes}')
    if not teachers or not classes:
        return ids
    own = in_order(classes)
    if gone := sorted(set(teachers) - set(own)):
        raise UserError(f'the teacher of {folder} has classes that the data lacks: {some(gone)}; the data has '
                        f'{some(sorted(own))}')
    if teachers == own:
        return ids
    return np.array([own.index(name) for name in teachers])[ids]


def _read_array(folder: Path, name: str, selection: dict[str, Any]) -> Any:
    path = array_path(folder, name)
    try:
        array = load_array(path)
    except Exception as error:  # NumPy raises a dozen kinds for damaged headers
        raise UserError(f'{path} is missing or damaged ({first_line(error)}); select again') from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'iuf':
        raise UserError(f'{path} is not an array of numbers; select again')
    if selection.get(name) != sha256_of(path):
        raise UserError(f'{path} is not that of {folder / SELECTION}; select again')
    return array
