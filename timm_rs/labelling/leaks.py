"""Images of a pool that are images of the validation data again: by their bytes, their looks, or a model's features."""

from typing import Any, NamedTuple

import torch

from timm_rs.data.samples import Samples
from timm_rs.labelling.teacher import Answers, Teacher, batches_of
from timm_rs.progress import track

MAX_BITS = 4  # of 64, in which the looks of one image may differ
RARE = 0.01  # share of validation images that may have such a neighbour among themselves


class Leak(NamedTuple):
    """An image of the pool that is a validation image again.

    Attributes:
        place: of the image, among those that were compared.
        reference: the name of the validation image.
        kind: 'same bytes', 'same looks' or 'same features'.
        distance: bits of the hash of looks, or 1 - cosine of features, that differ.
    """

    place: int
    reference: str
    kind: str
    distance: float


class References:
    """The images that no pool should have. What counts as near is calibrated on them.

    Different images may look alike or have like features, digits for one. So two images count as one only where they
    are nearer than 99 % of the validation images are to each other; features, half as far.

    Attributes:
        names: of the images.
        bits: of the hashes of looks that may differ; -1: looks tell nothing here.
        distance: 1 - cosine of features up to which they are the same.
    """

    def __init__(self, names: list[str], content: torch.Tensor, looks: torch.Tensor, features: torch.Tensor,
                 mirrored: torch.Tensor):
        self.names = names
        self.by_content = {tuple(row): index for index, row in reversed(list(enumerate(content.tolist())))}
        self.features = torch.cat([features, mirrored])
        self.signs = as_signs(looks).to(features.device)
        apart = nearest_other(lambda rows: (64 - self.signs[rows] @ self.signs.T) / 2, len(names))
        self.bits = next((bits for bits in range(MAX_BITS, -1, -1)
                          if (apart <= bits).float().mean() <= RARE), -1)
        apart = nearest_other(lambda rows: 1 - features[rows] @ features.T, len(names))
        positive = apart[apart > 1e-5]  # rather than equal images among them
        self.distance = float(positive.quantile(RARE)) / 2 if len(positive) else 0.0

    def find(self, answers: Answers) -> list[Leak]:
        """Which of the images in `answers` are references again, each by its surest sign."""
        assert answers.features is not None
        signs = as_signs(answers.looks).to(self.signs.device)
        bits, by_looks, apart, by_features = (column.tolist() for distances in (
            (64 - signs @ self.signs.T) / 2, 1 - answers.features @ self.features.T) for column in distances.min(1))
        found = []
        for place, content in enumerate(answers.content.tolist()):
            if place in answers.reasons:
                continue
            if (which := self.by_content.get(tuple(content))) is not None:
                found.append(Leak(place, self.names[which], 'same bytes', 0.0))
            elif bits[place] <= self.bits:
                found.append(Leak(place, self.names[by_looks[place]], 'same looks', bits[place]))
            elif apart[place] <= self.distance:
                which = by_features[place] % len(self.names)
                found.append(Leak(place, self.names[which], 'same features', max(0.0, apart[place])))
        return found


def look_at_references(teacher: Teacher, sets: list[Samples]) -> References:
    """What `teacher` sees of the images of all `sets`; bad ones are left out."""
    parts: list[list[Any]] = [[], [], [], [], []]
    for samples in sets:
        batches = -(-len(samples) // teacher.batch_size)
        looks = teacher.look_at(samples, batches_of(range(len(samples)), teacher.batch_size), True, True)
        for answers in track(looks, 'validation images', total=batches):
            good = [index for index in range(len(answers.names)) if index not in answers.reasons]
            parts[0] += [answers.names[index] for index in good]
            for part, column in zip(
                    parts[1:], (answers.content, answers.looks, answers.features, answers.mirrored), strict=True):
                part.append(column[good])  # type: ignore[index]
    return References(parts[0], *map(torch.cat, parts[1:]))


def as_signs(looks: torch.Tensor) -> torch.Tensor:
    """(N,) hashes of 64 bits as (N, 64) of 1 and -1, whose products count the bits that are equal."""
    return ((looks[:, None] >> torch.arange(64)) & 1).float() * 2 - 1


def nearest_other(distances: Any, count: int, rows: int = 1024) -> torch.Tensor:
    """(count,) how far each is from the nearest other; `distances` gives rows of the whole (count, count) at a time."""
    nearest = []
    for begin in range(0, count, rows):
        some = torch.arange(begin, min(begin + rows, count))
        part = distances(some)
        part[torch.arange(len(some)), some] = float('inf')
        nearest.append(part.min(1).values)
    return torch.cat(nearest)
