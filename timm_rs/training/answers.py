"""What a model says of each sample of a validation set, and where it is wrong: tables and pictures."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from timm_rs.data.class_names import names_of
from timm_rs.data.loader import Batches, Loader, TransformedSamples
from timm_rs.data.sampler import Ticket
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.files import read_csv, write_csv
from timm_rs.tasks.multilabel import average_precisions
from timm_rs.tasks.task import Task
from timm_rs.training.sheets import Confusion, Tile, confusion_picture, save_picture, sheet

PREDICTIONS, CLASSES = 'predictions.csv', 'classes.csv'
CONFUSION, MISTAKES, SAMPLES = 'confusion.png', 'mistakes.png', 'samples.png'
COLUMNS = ('file', 'truth', 'class', 'probability')
TAG_COLUMNS = ('file', 'truth', 'said')  # and a probability for each class
NUM_MISTAKES = 25  # of mistakes.png
NOBODY = -1  # the class of a sample that could not be read


class Said(NamedTuple):
    """Of every sample, in the order of the data: (N,) int64, (N,) int64, (N,) float64 in 0..1.

    What could not be read is of class `NOBODY`, in truth and in what the model says.
    """

    truth: npt.NDArray[np.int64]
    guess: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]

    def confusion(self) -> Confusion:
        """Who is taken for whom, and how often."""
        kept = self.truth != NOBODY
        (truth, guess), counts = np.unique([self.truth[kept], self.guess[kept]], axis=1, return_counts=True)
        return Confusion(truth, guess, counts)


class SaidTags(NamedTuple):
    """Of every sample, in the order of the data: (N, classes) bool, and (N, classes) float64 in 0..1.

    What could not be read has no tag, and nan for a probability.
    """

    truth: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float64]

    @property
    def guess(self) -> npt.NDArray[np.bool_]:
        return self.probability >= 0.5


class Answers:
    """Likeliest classes and their probabilities, kept on the device while a validation set passes.

    Nothing is drawn at random, and the host does not wait. `names` are those of the model's outputs.
    """

    picture = CONFUSION  # the first that is drawn

    def __init__(self, device: Device, dataset: TransformedSamples, names: list[str]):
        self.device, self.dataset, self.names = device, dataset, names
        self.batches: list[torch.Tensor] = []

    def start(self) -> None:
        """Forget the pass before."""
        self.batches = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """A batch: (N, classes) and (N,), where labels below 0 are of padding and of samples that cannot be read."""
        probability, guess = logits.float().softmax(1).max(1)
        self.batches.append(torch.stack([labels.float(), guess.float(), probability]))

    def gather(self) -> Any:
        """Those of all processes, which must call it together: what is said of every sample."""
        own = torch.cat(self.device.to_cpu(self.batches), dim=1).cpu().numpy()
        shares, num_samples = self.device.gather([own]), len(self.dataset)
        whole = np.empty((len(own), num_samples))
        for rank, share in enumerate(shares):  # as `data.sampler.EvalBatches` deals them out
            place = whole[:, rank::len(shares)]
            place[:] = share[:, :place.shape[1]]
        return self.said(whole)

    def said(self, whole: npt.NDArray[np.float64]) -> Any:
        """What the rows that `add` keeps, here of all samples, stand for."""
        whole[:2, whole[0] < 0] = NOBODY
        return Said(whole[0].astype(np.int64), whole[1].astype(np.int64), whole[2])

    def write(self, folder: Path, said: Any) -> None:
        """Write predictions.csv and classes.csv. Raises UserError when they cannot be; the files before are intact."""
        columns, rows, classes = self.tables(said)
        names = self.dataset.samples.all_names()
        try:
            folder.mkdir(parents=True, exist_ok=True)  # it may have been removed, and comes back
            write_csv(folder / PREDICTIONS, [dict(zip(columns, (name, *row), strict=True))
                                             for name, row in zip(names, rows, strict=True)], columns)
            write_csv(folder / CLASSES, classes)
        except OSError as error:
            raise UserError(f'{folder / PREDICTIONS} could not be written: {error.strerror or error}') from error

    def tables(self, said: Any) -> tuple[Sequence[str], Iterable[Sequence[str]], list[dict[str, Any]]]:
        """The columns of predictions.csv, its rows without their file, and the rows of classes.csv."""
        rows = (('', '', '') if truth == NOBODY else (self.names[truth], self.names[guess], f'{probability:.6f}')
                for truth, guess, probability in zip(*said, strict=True))
        return COLUMNS, rows, class_rows(said.confusion(), self.names)

    def read(self, folder: Path) -> Any | None:
        """What `write` wrote; None where that is not there, or of other data."""
        index_of = {name: index for index, name in enumerate(self.names)} | {'': NOBODY}
        try:
            rows = read_csv(folder / PREDICTIONS)
            truth, guess = (np.array([index_of[row[name]] for row in rows], np.int64) for name in ('truth', 'class'))
            probability = np.array([float(row['probability'] or 0) for row in rows])
        except (OSError, ValueError, KeyError, csv.Error):
            return None
        return Said(truth, guess, probability) if len(rows) == len(self.dataset) else None

    def draw(self, folder: Path, said: Any) -> None:
        """Draw confusion.png, and mistakes.png where there are any. Raises OSError when they cannot be written."""
        save_picture(folder / CONFUSION, confusion_picture(said.confusion(), self.names))
        self.draw_mistakes(folder, said.truth != said.guess, said.probability, lambda index: (
            f'is {self.names[said.truth[index]]}',
            f'said {self.names[said.guess[index]]} {100 * said.probability[index]:.1f} %'))

    def draw_mistakes(self, folder: Path, is_wrong: npt.NDArray[np.bool_], sureness: npt.NDArray[np.float64],
                      lines: Callable[[int], tuple[str, ...]]) -> None:
        """Draw mistakes.png, with some `lines` below each, of the samples (N,) that are wrong; without any, none."""
        wrong = np.flatnonzero(is_wrong)
        worst = wrong[np.argsort(-sureness[wrong], kind='stable')][:NUM_MISTAKES].tolist()
        if not worst:
            (folder / MISTAKES).unlink(missing_ok=True)
            return
        tiles = [Tile(self.dataset[Ticket(index)][0], (*lines(index), Path(self.dataset.samples.name(index)).name))
                 for index in worst]
        save_picture(folder / MISTAKES, sheet(
            tiles, f'{len(worst)} of {len(wrong)} mistakes, the surest first, as the model sees them', columns=5))


class TagAnswers(Answers):
    """The same of any number of classes: the probability of each."""

    picture = MISTAKES

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """A batch: (N, classes) both, where targets below 0 are of padding and of samples that cannot be read."""
        self.batches.append(torch.cat([targets, logits.float()], 1).T)

    def said(self, whole: npt.NDArray[np.float64]) -> SaidTags:
        truth, logits = np.split(whole.T, 2, axis=1)
        return SaidTags(truth > 0, np.where(truth < 0, np.nan, torch.from_numpy(logits).sigmoid().numpy()))

    def tables(self, said: SaidTags) -> tuple[Sequence[str], Iterable[Sequence[str]], list[dict[str, Any]]]:
        def joined(tags: npt.NDArray[np.bool_]) -> str:
            return ';'.join(self.names[index] for index in np.flatnonzero(tags))
        columns = *TAG_COLUMNS, *self._columns()
        rows = (('',) * (len(columns) - 1) if np.isnan(own[0]) else
                (joined(truth), joined(guess), *map('{:.6f}'.format, own))
                for truth, guess, own in zip(said.truth, said.guess, said.probability, strict=True))
        return columns, rows, tag_rows(said, self.names)

    def _columns(self) -> list[str]:
        return [f'p_{name}' for name in self.names]

    def read(self, folder: Path) -> SaidTags | None:
        try:
            rows = read_csv(folder / PREDICTIONS)
            probability = np.array([[float(row[name] or 'nan') for name in self._columns()] for row in rows])
            truth = np.array([[name in row['truth'].split(';') for name in self.names] for row in rows])
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return None
        return SaidTags(truth, probability) if len(rows) == len(self.dataset) else None

    def draw(self, folder: Path, said: SaidTags) -> None:
        """Draw mistakes.png, each image with the tag that the model is most wrong about. Raises OSError."""
        sureness = np.where(said.truth != said.guess, np.abs(said.truth - said.probability), 0.0)
        worst = sureness.argmax(1)

        def lines(index: int) -> tuple[str, ...]:
            tag = worst[index]
            what = 'missed' if said.truth[index, tag] else 'added'
            return (f'is {", ".join(self.names[place] for place in np.flatnonzero(said.truth[index])) or "none"}',
                    f'{what} {self.names[tag]}, said {100 * said.probability[index, tag]:.1f} %')
        self.draw_mistakes(folder, sureness.max(1) > 0, sureness.max(1), lines)


def open_answers(task: Task, loader: Batches | None, classes: dict[Any, int], num_outputs: int, device: Device
                 ) -> Answers | None:
    """What keeps the answers of a model with `num_outputs` for the batches of `loader`.

    None where samples have no classes, or their place does not tell which they are: timm's loader passes over bad
    ones, and the batches of several TPU hosts are one.
    """
    kind = Answers if task.is_of_classes else TagAnswers if task.is_of_tags else None
    if kind is None or not isinstance(loader, Loader) or device.is_lazy and device.world_size > 1:
        return None
    return kind(device, loader.dataset, names_of(classes, num_outputs))


def class_rows(confusion: Confusion, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class how many samples there are, how many are recognised, in %, how many the model takes for it.

    And the class that it is most often taken for, if it ever is.
    """
    number, (truth, guess, counts) = len(names), confusion
    is_right = truth == guess
    images, correct, predicted = (np.bincount(classes, of, number).astype(int) for classes, of in (
        (truth, counts), (truth, counts * is_right), (guess, counts)))
    mistaken = {row: names[column] for row, column, _ in reversed(confusion.mistakes())}  # the most frequent comes last
    return [{
        'class': name, 'images': images[index], 'correct': correct[index],
        'accuracy': f'{100 * correct[index] / images[index]:.3f}' if images[index] else '',
        'predicted': predicted[index], 'mistaken_for': mistaken.get(index, '')} for index, name in enumerate(names)]


def tag_rows(said: SaidTags, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class how many images have it and how many the model gives it, average precision, and at a probability of
    0.5 precision and recall, all in %; empty where there is none."""
    is_read = ~np.isnan(said.probability[:, 0])
    truth, guess, probability = said.truth[is_read], said.guess[is_read], said.probability[is_read]
    images, predicted, hits = truth.sum(0), guess.sum(0), (truth & guess).sum(0)
    precisions = average_precisions(probability, truth)
    return [{
        'class': name, 'images': images[index], 'ap': f'{100 * precisions[index]:.3f}' if images[index] else '',
        'predicted': predicted[index],
        'precision': f'{100 * hits[index] / predicted[index]:.3f}' if predicted[index] else '',
        'recall': f'{100 * hits[index] / images[index]:.3f}' if images[index] else ''}
        for index, name in enumerate(names)]


def draw_samples(path: Path, loader: Batches, task: Task, classes: dict[Any, int], num_outputs: int, number: int = 16
                 ) -> None:
    """Draw the first `number` training images of an epoch as the network sees them, but for erasing, mixup and cutmix.

    Nothing else is drawn from the generators of random numbers. Not for timm's loader. Raises OSError when the
    picture cannot be written.
    """
    if not isinstance(loader, Loader):
        return
    tickets = (ticket for batch in loader.batches for ticket in batch)
    names = names_of(classes, num_outputs)
    tiles = []
    for _, ticket in zip(range(number), tickets, strict=False):
        pixels, target, _ = loader.dataset[ticket]
        tiles.append(Tile(pixels, tuple(filter(None, [task.caption(target, names)]))))
    what = [name for name, wanted in (('random erasing', loader.erase), ('mixup and cutmix', loader.mix)) if wanted]
    save_picture(path, sheet(tiles, f'the first {len(tiles)} training {task.noun}s, augmented'
                             + (f', before {" and ".join(what)}' if what else ''), columns=4))
