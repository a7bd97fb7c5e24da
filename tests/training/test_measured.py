"""An evaluation says what it measured, and the card of a model credits nothing else with it."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
import yaml
from conftest import TINY, write_images

from timm_rs.errors import UserError
from timm_rs.publish.card import dataset_name, model_card
from timm_rs.publish.folder import write_folder
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.measured import create_setting
from timm_rs.training.trained import read_run

SETTING = ['--model-ema', '--crop-pct', 1.0]
OWN = dict(data='pets', split='validation', image='32 px', crop='1', interpolation='bicubic')


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A copy of the finished run, free to be changed."""
    return shutil.copytree(tiny_run, tmp_path / 'run')


@pytest.fixture
def evaluate(run, finished, tiny_run):
    """The record of an evaluation of `finished`, on the data of its training unless it is told another."""
    def call(*arguments, data=tiny_run.parent / 'pets'):
        result = run(*TINY, *SETTING, '--data-dir', data, '--eval', finished / 'model_best.pth.tar', *arguments)
        assert result.code == 0, result.err
        return json.loads((finished / 'model_best.eval.json').read_text())
    return call


def card_of(folder):
    trained = read_run(folder)
    return trained, model_card(trained, 'org/tiny', 'mit', dataset_name(trained), 'resnetrs50')


def row_of(card):
    """The table of the results, heading -> cell, with the data and its split in cells of their own."""
    heads, _, cells = re.search(r'(\| top-1.*)\n(.*)\n(.*)', card).groups()
    row = dict(zip(heads.strip('| ').split(' | '), cells.strip('| ').split(' | '), strict=True))
    data, split, *images = row.pop('data').split(', ')
    return row | dict(data=data, split=split.removeprefix('split '), images=''.join(images))


def header_of(card):
    return yaml.safe_load(card.split('---\n')[1])['model-index'][0]['results'][0]['dataset']


def test_the_record_says_all_and_no_path(evaluate, finished):
    record = evaluate()
    assert {name: record[name] for name in (
        'data', 'split', 'num_classes', 'num_samples', 'input_size', 'img_size', 'crop_pct', 'interpolation',
        'preprocessing', 'weights', 'checkpoint')} == dict(
            data='pets', split='validation', num_classes=3, num_samples=15, input_size=[3, 32, 32], img_size=32,
            crop_pct=1.0, interpolation='bicubic', preprocessing='timm', weights='ema', checkpoint='model_best.pth.tar')
    assert str(finished.parent) not in json.dumps(record)


@pytest.mark.parametrize(('arguments', 'said'), [
    ([], {}),
    (['--img-size', 48], dict(image='48 px')),
    (['--crop-pct', 0.5], dict(crop='0.5')),
    (['--interpolation', 'nearest'], dict(interpolation='nearest')),
    (['--val-split', 'train'], dict(split='train', images='24 images')),
    (['--mean', 0.5, 0.5, 0.5], {}),
    (['--preprocessing', 'tf', '--train-interpolation', 'bicubic'], {}),
], ids=['same', 'size', 'crop', 'interpolation', 'split', 'mean', 'preprocessing'])
def test_the_card_has_the_setting_of_the_evaluation(evaluate, finished, arguments, said):
    record = evaluate(*arguments)
    trained, card = card_of(finished)
    row = row_of(card)
    assert {name: row[name] for name in (*OWN, 'images')} == OWN | dict(images='15 images') | said
    assert row['top-1 (%)'] == f'{record["top1"]:.3f}' and trained.metrics['top1'] == record['top1']
    assert ('The results are not those of the validation in training' in card) == bool(arguments)
    assert ('so they flatter it' in card) == (row['split'] == 'validation')
    assert ('with mean (0.5, 0.5, 0.5)' in card) == ('--mean' in arguments)
    assert ("TensorFlow's crop and resize" in card) == ('tf' in arguments)
    assert header_of(card)['split'] == row['split']


@pytest.mark.parametrize(('folder', 'name'), [
    ('strays', 'strays'), ('elsewhere/pets', 'pets (another folder than that of the training)')])
def test_other_data_is_not_called_that_of_the_training(evaluate, finished, folder, name):
    write_images(finished.parent / folder / 'validation', dict.fromkeys(('cat', 'dog', 'eel'), 2), seed=9)
    evaluate(data=finished.parent / folder)
    trained, card = card_of(finished)
    assert row_of(card)['data'] == header_of(card)['name'] == name and trained.images == 6
    assert 'trained on pets:' in card and 'flatter' not in card
    write_folder(trained, finished.parent / 'published', 'org/tiny', dataset='org/pets-1k')
    published = (finished.parent / 'published/README.md').read_text()
    assert row_of(published)['data'] == name.replace('pets', 'org/pets-1k') and 'trained on org/pets-1k' in published


def test_classes_that_the_data_lack_are_counted(finished):
    trained, _ = card_of(finished)
    setting = dataclasses.replace(trained.measured_on, num_classes=2)
    card = model_card(dataclasses.replace(trained, measured_on=setting), 'org/tiny', 'mit', 'pets', 'resnetrs50')
    assert 'pets, split validation, 2 of the 3 classes, 15 images' in card


@pytest.mark.parametrize('change', [
    lambda record: [record.pop(name) for name in ('data', 'split', 'preprocessing')],
    lambda record: record.clear(),
    lambda record: record.update(checkpoint_sha256='0' * 64),
    lambda record: record.update(weights='raw'),
], ids=['older', 'by hand', 'of another checkpoint', 'of other weights'])
def test_a_record_that_does_not_say_is_not_used(finished, change):
    path = finished / 'model_best.eval.json'
    record = json.loads(path.read_text())
    record['top1'] = 12.345
    change(record)
    path.write_text(json.dumps(record))
    trained, card = card_of(finished)
    assert '12.345' not in card and row_of(card) | OWN == row_of(card) and row_of(card)['images'] == ''
    assert 'eval.json' not in trained.files and trained.metrics
    (finished / 'summary.csv').unlink()
    assert card_of(finished)[0].metrics == {}


def test_a_run_that_went_on_has_not_been_evaluated(evaluate, finished):
    evaluate()
    path = finished / 'model_best.pth.tar'
    content = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(content | dict(epoch=content['epoch'] + 5), path)
    path.with_name(path.name + '.sha256').unlink()
    assert card_of(finished)[0].images is None


@pytest.mark.parametrize('text', ['{', '[]', '3', '{"top1": "x"'])
def test_a_damaged_record_is_one_line(finished, text):
    (finished / 'model_best.eval.json').write_text(text)
    with pytest.raises(UserError, match='is damaged'):
        read_run(finished)


@pytest.mark.parametrize(('recipe', 'name'), [
    (dict(dataset='torch/timm_rs/voc', data_dir='VOCdevkit/VOC2012'), 'VOC2012'),
    (dict(dataset='folders', data_dir='my_masks'), 'my_masks'),
    (dict(dataset='torch/timm_rs/voc', builtin_data='scenes', data_dir='data/scenes'), 'scenes'),
    (dict(dataset='torch/cifar100', data_dir='cifar'), 'cifar100')])
def test_data_is_called_as_its_folder_and_not_as_its_layout(recipe, name):
    config = dict(input_size=(3, 32, 32), crop_pct=1.0, interpolation='bicubic', mean=(0.5,) * 3, std=(0.5,) * 3)
    assert create_setting(Recipe(**recipe), config).data == name
