"""A teacher, and what it says of images."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from timm_rs.data.loader import Loader, TransformedSamples, num_workers
from timm_rs.data.sampler import PADDING, Ticket
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.inference.source import Source
from timm_rs.transforms.create import create_transform


class Answers(NamedTuple):
    """What a teacher says of N images, on the CPU but for features.

    Attributes:
        images: their indices.
        names: of the images.
        reasons: why an image could not be used, by its place; all else says nothing of those.
        logits: (N, classes), float32.
        features: (N, channels), float32, of length 1, where the teacher is; those of the mirrored images in
            `mirrored`. None unless wanted.
        content: (N, 2) int64, half of the SHA-256 of the encoded image.
        looks: (N,) int64, a difference hash of 64 bits of what the teacher sees.
    """

    images: list[int]
    names: list[str]
    reasons: dict[int, str]
    logits: torch.Tensor
    features: torch.Tensor | None
    mirrored: torch.Tensor | None
    content: torch.Tensor
    looks: torch.Tensor


class Teacher:
    """A model in evaluation mode, with its own size, crop and normalisation."""

    def __init__(self, source: Source, device: Device, batch_size: int, workers: int, dtype: torch.dtype | None = None):
        """`dtype` of mixed precision, or None for float32."""
        self.source, self.device, self.batch_size, self.dtype = source, device, batch_size, dtype
        self.workers = num_workers(workers)
        self.model = source.model.to(device.torch_device)
        self.transform = create_transform(source.recipe, source.data_config, is_training=False)

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)

    def weights_sha256(self) -> str:
        """Of the names, kinds and bytes of all weights and buffers."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def look_at(self, samples: Samples, batches: Iterable[range], features: bool = False, mirrored: bool = False
                ) -> Iterator[Answers]:
        """Batch by batch, those of `samples` that `batches` asks for, a little ahead of time.

        All batches are filled up to one shape, so that no answer depends on the rest.
        """
        asked: deque[range] = deque()
        loader = self._loader(samples, self._tickets(batches, asked))
        problems: dict[str, str] = {}
        for images, told in loader:
            problems.update(loader.take_problems())  # those of the next batch come early
            with self.device.autocast(self.dtype):
                maps = self.model.forward_features(images)
                logits = self.model.forward_head(maps)
                seen = self._features(maps) if features else None
                mirror = self._features(self.model.forward_features(images.flip(3))) if mirrored else None
            batch = asked.popleft()
            count = len(batch)
            names = [samples.name(index) for index in batch]
            told = told[:count].cpu()
            yield Answers(
                list(batch), names, {index: problems[names[index]] for index in range(count) if told[index, 0] == BAD},
                logits[:count].float().cpu(), None if seen is None else seen[:count],
                None if mirror is None else mirror[:count], told[:, 1:3], told[:, 3])

    def _tickets(self, batches: Iterable[range], asked: deque[range]) -> Iterator[list[Ticket]]:
        for batch in batches:
            asked.append(batch)
            yield [Ticket(index) for index in batch] + [Ticket(PADDING)] * (self.batch_size - len(batch))

    def _features(self, maps: torch.Tensor) -> torch.Tensor:
        pooled = self.model.forward_head(maps, pre_logits=True).float().flatten(1)
        return torch.nn.functional.normalize(pooled)

    def _loader(self, samples: Samples, batches: Iterator[list[Ticket]]) -> Loader:
        channels, height, width = self.source.data_config['input_size']
        dataset = FingerprintedSamples(
            samples, self.transform, fingerprint, ((height, width, channels), torch.tensor([BAD, 0, 0, 0])),
            replace=False)
        return Loader(dataset, batches, self.source.data_config, self.workers, self.device)


GOOD, BAD = 1, 0  # what a row of fingerprints is of; the rest of a batch, too, is 0


class FingerprintedSamples(TransformedSamples):
    """Images with fingerprints for targets: (4,) int64, what it is of, half a SHA-256, a hash of the looks."""

    def __init__(self, samples: Samples, *others: Any, **options: Any):
        super().__init__(_WithSource(samples), *others, **options)

    def __getitem__(self, ticket: Ticket) -> tuple[Any, Any, Any]:
        pixels, told, problems = super().__getitem__(ticket)
        if told[0] == GOOD:
            told[3] = looks_of(pixels)
        return pixels, told, problems


class _WithSource(Samples):
    """The samples of another dataset, each with its source for a label."""

    def __init__(self, samples: Samples):
        self.samples, self.classes = samples, {}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[bytes | Image.Image, bytes]:
        source, _ = self.samples.read(index)
        return source, source.tobytes() if isinstance(source, Image.Image) else source

    def name(self, index: int) -> str:
        return self.samples.name(index)


def fingerprint(content: bytes) -> torch.Tensor:
    """(4,) int64: GOOD, half of the SHA-256 of `content`, and room for a hash of the looks."""
    half = np.frombuffer(hashlib.sha256(content).digest()[:16], '<i8')
    return torch.tensor([GOOD, *half.tolist(), 0])


def looks_of(pixels: Any) -> int:
    """The difference hash of pixels (H, W, C) uint8: where brightness rises, on 8 x 9 places; 64 bits as an int64."""
    grey = Image.fromarray(np.asarray(pixels, np.float32).mean(2).astype(np.uint8))
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    return int(np.packbits(small[:, 1:] > small[:, :-1]).view('<i8')[0])


def batches_of(images: range, batch_size: int) -> Iterator[range]:
    """`images` in parts of `batch_size`, the last with the rest."""
    for begin in range(images.start, images.stop, batch_size):
        yield range(begin, min(begin + batch_size, images.stop))
