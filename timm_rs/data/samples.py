"""One view of every dataset: encoded images and labels by index, whatever they are stored in."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import IterableDataset

from timm_rs.data.listed_images import ListedImages
from timm_rs.errors import UserError
from timm_rs.transforms.raw import Stretch

Order: TypeAlias = npt.NDArray[np.int64]


class Samples:
    """A dataset of images and class indices, read one at a time and in any order, from any process.

    `classes` maps the names of the classes to their indices; it is empty where the data only has numbers.
    """

    classes: dict[Any, int]
    left_out: Sequence[tuple[str, str]] = ()  # what lies in the data and is not among them: name, and why
    listed: str = ''  # a sentence for people where the data was listed before, and not now

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> tuple[bytes | Image.Image, Any]:
        """The encoded image (or a decoded one, where the dataset has no other) and its label.

        Raises OSError (or tarfile's errors) for what cannot be read.
        """
        raise NotImplementedError

    def open(self, index: int) -> tuple[bytes | Image.Image | Stretch, Any]:
        """The same for `decode.open_picture`, which reads of raw pixels what it needs."""
        return self.read(index)

    def name(self, index: int) -> str:
        """What people find the image by: its path, or its name within an archive, or just its number."""
        raise NotImplementedError

    def all_names(self) -> Iterable[str]:
        """The names of all images, in order; quicker than one by one where they are listed."""
        return map(self.name, range(len(self)))

    def targets(self) -> list[int]:
        """The class index of every image, without reading any. Raises UserError where labels come with the images."""
        raise NotImplementedError

    def epoch_order(self, rng: np.random.Generator) -> Order:
        """The indices of all images, shuffled for one epoch: every image once."""
        return rng.permutation(len(self))

    @property
    def epoch_length(self) -> int:
        """Images in an epoch."""
        return len(self)

    def following(self, index: int) -> int:
        """The image that stands in for a bad one."""
        return (index + 1) % len(self)


AnyDataset: TypeAlias = Samples | IterableDataset[Any]  # what data is opened as: by index, or as timm streams it


class TimmSamples(Samples):
    """The samples of timm's `ImageDataset`: folders, tar files, and Hugging Face datasets (`hfds/`)."""

    def __init__(self, dataset: ImageDataset):
        self.dataset, self.reader = dataset, dataset.reader
        self.classes = dict(getattr(self.reader, 'class_to_idx', None)
                            or getattr(self.reader, 'class_name_to_idx', None) or {})
        self.left_out = getattr(self.reader, 'left_out', ())
        self.listed = getattr(self.reader, 'listed', '')

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[bytes, Any]:
        file, target, *_ = self.reader[index]
        with file:
            return file.read(), target

    def name(self, index: int) -> str:
        if hasattr(self.reader, 'dataset'):  # hfds/, where the row of a file name has the image in it
            return self._hugging_face_paths[index].as_py() or f'image {index}'
        return str(self.reader.filename(index, absolute=True))

    def all_names(self) -> Iterable[str]:
        return self.reader.paths if isinstance(self.reader, ListedImages) else super().all_names()

    @functools.cached_property
    def _hugging_face_paths(self) -> Any:
        import pyarrow.compute
        table = self.reader.dataset.with_format('arrow')[:]
        return pyarrow.compute.struct_field(table.column(self.reader.image_key), 'path')

    def targets(self) -> list[int]:
        if hasattr(self.reader, 'iter_targets'):
            return list(self.reader.iter_targets())
        if hasattr(self.reader, 'targets'):
            return list(map(int, self.reader.targets))
        return [int(target) for _, target in self.reader.samples]


class TorchvisionSamples(Samples):
    """The samples of a torchvision dataset (`torch/`): files where it lists them, otherwise the images it decodes."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.classes = dict(getattr(dataset, 'class_to_idx', None) or {})
        self.files = getattr(dataset, 'samples', None)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> tuple[bytes | Image.Image, Any]:
        if self.files is None:
            image, target = self.dataset[index]
            return image, target
        path, target = self.files[index]
        return Path(path).read_bytes(), target

    def name(self, index: int) -> str:
        return str(self.files[index][0]) if self.files is not None else f'image {index}'

    def targets(self) -> list[int]:
        for name in ('targets', 'labels', '_labels'):  # torchvision has no one name for them
            if (found := getattr(self.dataset, name, None)) is not None:
                return [int(target) for target in found]
        raise UserError(f'{type(self.dataset).__name__} of torchvision does not list its labels')


class Subset(Samples):
    """Some of the samples of another dataset, at `indices`, in that order."""

    def __init__(self, samples: Samples, indices: Sequence[int]):
        self.samples, self.indices = samples, np.asarray(indices, np.int64)
        self.classes, self.left_out, self.listed = samples.classes, samples.left_out, samples.listed

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[bytes | Image.Image, Any]:
        return self.samples.read(int(self.indices[index]))

    def open(self, index: int) -> tuple[bytes | Image.Image | Stretch, Any]:
        return self.samples.open(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.samples.name(int(self.indices[index]))

    def targets(self) -> list[int]:
        targets = self.samples.targets()
        return [targets[index] for index in self.indices]

    def epoch_order(self, rng: np.random.Generator) -> Order:
        """As the whole dataset would be read, which for shards is from front to back, without the others."""
        place = np.full(len(self.samples), -1)
        place[self.indices] = np.arange(len(self))
        order = place[self.samples.epoch_order(rng)]
        return order[order >= 0]


class Relabelled(Samples):
    """The samples of another dataset, with class indices as `classes` has them by name."""

    def __init__(self, samples: Samples, classes: dict[Any, int]):
        """Every class of `samples` must be in `classes`."""
        self.samples, self.classes = samples, classes
        self.left_out, self.listed = samples.left_out, samples.listed
        known = {str(name): index for name, index in classes.items()}
        self.index_of = {index: known[str(name)] for name, index in samples.classes.items()}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[bytes | Image.Image, Any]:
        source, label = self.samples.read(index)
        return source, self._now(label)

    def open(self, index: int) -> tuple[bytes | Image.Image | Stretch, Any]:
        source, label = self.samples.open(index)
        return source, self._now(label)

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def all_names(self) -> Iterable[str]:
        return self.samples.all_names()

    def targets(self) -> list[int]:
        return list(map(self._now, self.samples.targets()))

    def _now(self, label: Any) -> Any:
        """An index as `classes` has it, or of an image with tags all of them."""
        return tuple(sorted(map(self._now, label))) if isinstance(label, tuple) else self.index_of[int(label)]

    def epoch_order(self, rng: np.random.Generator) -> Order:
        return self.samples.epoch_order(rng)


def as_samples(dataset: Any) -> Samples:
    """What `create_datasets` opened, as `Samples`. Raises UserError for streams, which have no order to read by."""
    if isinstance(dataset, Samples):
        return dataset
    if isinstance(dataset, IterableDataset):
        raise UserError('this dataset is a stream, whose images have no index; use a folder, a tar, local shards, '
                        'hfds/ or torch/')
    return TimmSamples(dataset) if isinstance(dataset, ImageDataset) else TorchvisionSamples(dataset)
