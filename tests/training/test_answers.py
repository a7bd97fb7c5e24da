"""What a model says of each image of a validation set, in tables."""

import csv

import numpy as np
import pytest
import torch

from timm_rs.data.loader import TransformedSamples
from timm_rs.data.sampler import EvalBatches
from timm_rs.data.samples import Samples
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.training.answers import NOBODY, Answers, Said, class_rows

FILES = ['a/1.png', 'b,"2".png', 'c\n3.png', '\udcff.png', '$4$.png', 'shard.tar/5.jpg', 'Ω.png']


class Files(Samples):
    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def read(self, index):
        return None, 0


class Blue:
    """A transform that makes every image blue."""

    def with_target(self, source, target, seed):
        return np.full((16, 16, 3), (0, 0, 200), np.uint8), target


def answers_of(names, classes, device=None):
    dataset = TransformedSamples(Files(names), Blue(), int, ((16, 16, 3), -1), replace=False)
    return Answers(device or Device('cpu'), dataset, classes)


@pytest.mark.parametrize('processes', [1, 2, 3, 8])
def test_every_image_stands_at_its_place_for_any_number_of_processes(processes):
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 4), torch.tensor([0, 1, -1, 3, 2, 1, 0])  # the third cannot be read
    shares = []
    for rank in range(processes):
        answers = answers_of(FILES, list('abcd'))
        answers.add(torch.zeros(1, 4), torch.zeros(1).long())  # of a pass before
        answers.start()
        for batch in EvalBatches(7, 2, rank, processes):
            places = [ticket.sample for ticket in batch]
            answers.add(logits[places], torch.where(torch.tensor(places) < 0, -1, labels[places]))
        shares.append(torch.cat(answers.batches, 1).numpy())
    answers.device.gather = lambda own: shares if (own[0] == shares[-1]).all() else []
    said = answers.gather()
    probability, guess = logits.softmax(1).max(1)
    is_there = labels >= 0
    assert said.truth.tolist() == labels.tolist()
    assert said.guess.tolist() == torch.where(is_there, guess, NOBODY).tolist()
    assert said.probability[is_there] == pytest.approx(probability[is_there].numpy())


def test_files_may_be_called_anything_and_what_was_written_is_read_again(tmp_path):
    answers = answers_of(FILES, ['cat', 'dog'])
    said = Said(np.array([0, 1, 0, 1, NOBODY, 0, 0]), np.array([0, 0, 1, 1, NOBODY, 0, 1]),
                np.array([0.9, 0.8, 0.75, 1, 0.5, 0.6, 0.99]))
    answers.write(tmp_path, said)
    with open(tmp_path / 'predictions.csv', newline='', errors='surrogateescape') as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == FILES
    assert rows[1] == dict(file=FILES[1], truth='dog', **{'class': 'cat'}, probability='0.800000')
    assert list(rows[4].values()) == [FILES[4], '', '', '']
    (tmp_path / 'predictions.csv').write_text((tmp_path / 'predictions.csv').read_text(
        errors='surrogateescape').replace('\udcff', 'x'))
    again = answers.read(tmp_path)
    assert again.truth.tolist() == said.truth.tolist() and again.guess.tolist() == said.guess.tolist()
    assert again.probability[again.truth >= 0] == pytest.approx(said.probability[said.truth >= 0])
    answers.draw(tmp_path, again)
    assert {'confusion.png', 'mistakes.png'} <= {path.name for path in tmp_path.iterdir()}


def test_without_mistakes_there_is_no_picture_of_them(tmp_path):
    answers = answers_of(FILES, ['cat'])
    (tmp_path / 'mistakes.png').write_text('of before')
    said = Said(np.zeros(7, int), np.zeros(7, int), np.ones(7))
    answers.write(tmp_path, said)
    answers.draw(tmp_path, said)
    assert {path.name for path in tmp_path.iterdir()} == {'predictions.csv', 'classes.csv', 'confusion.png'}


@pytest.mark.parametrize('text', [None, '', 'file\n', 'file,truth,class,probability\na,cat,emu,1\n',
                                  'file,truth,class,probability\na,cat,cat,1\n', 'file,truth,class,probability\na,b'])
def test_what_is_not_of_this_data_is_not_read(text, tmp_path):
    if text is not None:
        (tmp_path / 'predictions.csv').write_text(text)
    assert answers_of(FILES, ['cat']).read(tmp_path) is None


def test_classes_have_counts_accuracies_and_what_they_are_taken_for():
    truth, guess = np.array([0, 0, 0, 0, 1, 1, NOBODY]), np.array([0, 1, 2, 2, 1, 1, NOBODY])
    rows = class_rows(Said(truth, guess, np.ones(7)).confusion(), ['cat', 'dog', 'eel', 'fox'])
    assert [list(map(str, row.values())) for row in rows] == [
        ['cat', '4', '1', '25.000', '1', 'eel'], ['dog', '2', '2', '100.000', '3', ''],
        ['eel', '0', '0', '', '2', ''], ['fox', '0', '0', '', '0', '']]


def test_a_folder_that_takes_nothing_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'predictions\.csv could not be written: Not a directory'):
        answers_of(FILES, ['cat']).write(tmp_path / 'file/a', Said(np.zeros(7, int), np.zeros(7, int), np.ones(7)))
