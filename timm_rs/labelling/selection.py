"""Which pseudo labels a student sees: those that the teacher is sure of, the same number of each class if wanted."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from timm_rs.data.listing import some
from timm_rs.data.pseudo_labels import read_manifest, write_selection
from timm_rs.errors import UserError
from timm_rs.files import save_figure, write_csv
from timm_rs.labelling.units import Units

TINY = 10  # images of a class, below which a warning is due
COLUMNS = ('class', 'name', 'count', 'kept', 'threshold', 'copies', 'mean_confidence')


class Choice(NamedTuple):
    """What was chosen of one class.

    Attributes:
        entries: places of its images, with those that stand more than once.
        sure: images that the teacher gives this class with enough confidence.
        kept: different images among the entries.
        threshold: the lowest confidence among them, nan without any.
        mean_confidence: of the entries, nan without any.
    """

    entries: Any
    sure: int
    kept: int
    threshold: float
    mean_confidence: float


def choose(confidences: Any, min_confidence: float, per_class: int | None, rng: np.random.Generator) -> Choice:
    """Of the images of one class, by their `confidences` (n,), exactly the `per_class` surest; None: all.

    Images of equal confidence are drawn. Where there are too few, each is taken as often as the next, and who is taken
    once more is drawn.
    """
    sure = np.flatnonzero(confidences >= min_confidence)
    order = rng.permutation(len(sure))
    sure = sure[order[np.argsort(-confidences[sure[order]], kind='stable')]]
    kept = sure[:per_class]
    entries = kept
    if per_class is not None and len(kept):
        entries = np.concatenate([np.repeat(kept, per_class // len(kept)),
                                  rng.permutation(kept)[:per_class % len(kept)]])
    chosen = confidences[entries].astype(np.float64)
    return Choice(np.sort(entries), len(sure), len(kept), float(confidences[kept].min()) if len(kept) else float('nan'),
                  float(chosen.mean()) if len(chosen) else float('nan'))


def select(folder: Path, min_confidence: float = 0.3, per_class: int | None = None, seed: int = 0,
           keep_leaks: bool = False) -> list[dict[str, Any]]:
    """Choose among the labels in `folder`, write what training reads, and a table of classes as rows.

    Bad images never are among the chosen; leaks only with `keep_leaks`. Raises UserError where labels are missing or
    damaged, or nothing can be written.
    """
    manifest = read_manifest(folder)
    ids, shares, usable = _read_labels(folder, manifest, keep_leaks)
    confidences = shares[:, 0]
    rows, chosen = [], []
    for index in range(manifest['num_classes']):
        own = np.flatnonzero(usable & (ids[:, 0] == index))
        choice = choose(confidences[own], min_confidence, per_class, np.random.default_rng((seed, index)))
        chosen.append(own[choice.entries])
        name = manifest['classes'][index] if manifest['classes'] else f'class {index}'
        rows.append(dict(zip(COLUMNS, (
            index, name, choice.sure, choice.kept, choice.threshold, len(choice.entries) - choice.kept,
            choice.mean_confidence), strict=True)))
    entries = np.sort(np.concatenate(chosen)).astype(np.int64)
    try:
        write_csv(folder / 'selection.csv', rows, COLUMNS)
        _draw(rows, folder / 'selection.png')
        # Last, since where this is nobody selects again unasked: a kill must not leave it without the two above.
        write_selection(folder, dict(entries=entries, ids=ids[entries], probabilities=shares[entries]), dict(
            min_confidence=min_confidence, per_class=per_class, seed=seed, keep_leaks=keep_leaks))
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror or error}') from error
    return rows


def _read_labels(folder: Path, manifest: dict[str, Any], keep_leaks: bool) -> tuple[Any, Any, Any]:
    """Of all images: ids (n, k), probabilities (n, k), and which may be chosen (n,)."""
    units = Units(folder, manifest)
    parts = []
    for number in range(len(units)):
        unit = units.read(number)
        if unit is None:
            raise UserError(f'{units.path(number)} is missing or damaged: run the same tools/pseudo_label.py label '
                            'again, which makes it')
        usable = np.ones(len(unit.ids), bool)
        usable[unit.bad] = False
        usable[unit.leaks] &= keep_leaks
        parts.append((unit.ids, unit.probabilities, usable))
    ids, shares, usable = map(np.concatenate, zip(*parts, strict=True))
    return ids, shares, usable


def warnings_of(rows: list[dict[str, Any]]) -> list[str]:
    """What a person should know of the table of classes."""
    found = []
    for what, names in (
            ('no image', [str(row['name']) for row in rows if not row['kept']]),
            (f'fewer than {TINY} images', [str(row['name']) for row in rows if 0 < row['kept'] < TINY])):
        if names:
            found.append(f'{len(names)} of {len(rows)} classes have {what}: {some(names)}')
    return found


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Images and copies of each class, and their mean confidence, the largest class first, as PNG."""
    from matplotlib.figure import Figure  # heavy, and only needed here
    rows = sorted(rows, key=lambda row: -row['count'])
    places = range(len(rows))
    figure = Figure(figsize=(9, 5.5), layout='constrained')
    amounts, confidence = figure.subplots(2, 1, sharex=True)
    kept = [row['kept'] for row in rows]
    amounts.bar(places, kept, width=1.0, label='kept')
    amounts.bar(places, [row['copies'] for row in rows], bottom=kept, width=1.0, label='copies')
    amounts.step(places, [row['count'] for row in rows], where='mid', color='black', label='sure enough')
    amounts.set(ylabel='images')
    amounts.legend()
    confidence.plot(places, [row['mean_confidence'] for row in rows], '.', label='mean confidence')
    confidence.plot(places, [row['threshold'] for row in rows], '.', label='lowest confidence')
    confidence.set(xlabel='classes, the largest first', ylabel='confidence', ylim=(0, 1.03))
    confidence.legend()
    if len(rows) <= 20:
        confidence.set_xticks(list(places), [str(row['name']) for row in rows], rotation=45, ha='right')
        confidence.set_xlabel('')
    for panel in (amounts, confidence):
        panel.grid(alpha=0.3)
    save_figure(path, figure)
