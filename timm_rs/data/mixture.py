"""Labelled and pseudo-labelled images together, and the one form that their targets have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from timm_rs.data.samples import Samples


class PseudoLabel(NamedTuple):
    """What a teacher says of an image: its likeliest classes, (k,) integers, and their probabilities, (k,) float16."""

    ids: npt.NDArray[np.integer[Any]]
    probabilities: npt.NDArray[np.float16]


class Mixture(Samples):
    """Labelled images and, after them, entries of a pool with pseudo labels.

    Attributes:
        labelled, pool: the images of both kinds.
        entries: (m,) indices of the pool, in which an image may stand more than once.
        ids, probabilities: (m, k), the pseudo label of each entry.
        ratio: pseudo-labelled images for each labelled one.
        fingerprint: of the entries and their labels.
    """

    def __init__(self, labelled: Samples, pool: Samples, entries: npt.NDArray[np.int64],
                 ids: npt.NDArray[np.integer[Any]], probabilities: npt.NDArray[np.float16], ratio: int,
                 fingerprint: str = ''):
        self.labelled, self.pool, self.entries, self.ids, self.probabilities = (
            labelled, pool, entries, ids, probabilities)
        self.ratio, self.fingerprint = ratio, fingerprint
        self.classes, self.left_out, self.listed = labelled.classes, labelled.left_out, labelled.listed

    def __len__(self) -> int:
        return len(self.labelled) + len(self.entries)

    @property
    def epoch_length(self) -> int:
        """One pass over the labelled images, and `ratio` of the pool for each."""
        return len(self.labelled) * (1 + self.ratio)

    @property
    def top_k(self) -> int:
        return self.ids.shape[1]

    def read(self, index: int) -> tuple[Any, Any]:
        entry = index - len(self.labelled)
        return self.labelled.read(index) if entry < 0 else self._pseudo_labelled(entry, self.pool.read)

    def open(self, index: int) -> tuple[Any, Any]:
        entry = index - len(self.labelled)
        return self.labelled.open(index) if entry < 0 else self._pseudo_labelled(entry, self.pool.open)

    def _pseudo_labelled(self, entry: int, read: Callable[[int], tuple[Any, Any]]) -> tuple[Any, PseudoLabel]:
        source, _ = read(int(self.entries[entry]))
        return source, PseudoLabel(self.ids[entry], self.probabilities[entry])

    def name(self, index: int) -> str:
        entry = index - len(self.labelled)
        return self.labelled.name(index) if entry < 0 else self.pool.name(int(self.entries[entry]))

    def targets(self) -> list[int]:
        """The labels, then the likeliest classes."""
        return [*self.labelled.targets(), *map(int, self.ids[:, 0])]

    def following(self, index: int) -> int:
        """The next image of the same kind."""
        own = len(self.labelled)
        return (index + 1) % own if index < own else own + (index - own + 1) % len(self.entries)

    def plan(self, num_epochs: int) -> str:
        """What an epoch is, in words."""
        passes = num_epochs * len(self.labelled) * self.ratio / len(self.entries)
        return (f'an epoch is one pass over {len(self.labelled):,} labelled images, with {self.ratio} pseudo-labelled '
                f'ones beside each; {num_epochs} epochs pass the {len(self.entries):,} of the pool {passes:.3g} times')


class SparseTargets:
    """Labels and pseudo labels as tensors (2, k), float32: k class ids and their probabilities.

    The rest of the probability stands for all other classes alike. So a label with smoothing s is its class with
    1 - s + s/K, exactly what label smoothing means; pseudo labels are the teacher's k likeliest classes.
    """

    def __init__(self, encode: Callable[[Any], int], num_classes: int, top_k: int, smoothing: float,
                 temperature: float = 1.0, hard: bool = False):
        """`temperature` flattens pseudo labels (p^(1/T)); `hard` makes labels, with smoothing, of them.

        `encode` checks a label and gives its class.
        """
        self.encode, self.num_classes, self.top_k, self.smoothing = encode, num_classes, top_k, smoothing
        self.temperature, self.hard = temperature, hard

    def __call__(self, label: Any) -> torch.Tensor:
        is_pseudo = isinstance(label, PseudoLabel)
        if is_pseudo and not self.hard:
            ids, shares = label.ids, label.probabilities.astype(np.float64)
            others = self.num_classes - self.top_k
            rest = max(0.0, 1 - shares.sum()) / max(others, 1)
            shares, rest = shares ** (1 / self.temperature), rest ** (1 / self.temperature)
            shares /= shares.sum() + others * rest
        else:
            first = self.encode(int(label.ids[0]) if is_pseudo else label)
            ids = (first + np.arange(self.top_k)) % self.num_classes  # the others have what the rest has
            shares = np.full(self.top_k, self.smoothing / self.num_classes)
            shares[0] += 1 - self.smoothing
        return torch.from_numpy(np.stack([ids, shares]).astype(np.float32))


def dense_targets(sparse: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, 2, k) of `SparseTargets` as probabilities (N, num_classes), float32, on the same device."""
    ids, shares = sparse[:, 0].long(), sparse[:, 1]
    rest = (1 - shares.sum(1, keepdim=True)).clamp(min=0) / max(num_classes - ids.shape[1], 1)
    return rest.expand(-1, num_classes).scatter(1, ids, shares)
