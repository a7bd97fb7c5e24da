"""What a run and an evaluation leave for people who want to know which images are wrong."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, assert_equal, write_images
from forks import in_two_processes
from PIL import Image

import timm_rs.training.run
from timm_rs.errors import UserError
from timm_rs.programs import pack_dataset, train
from timm_rs.training.answers import Answers

LEFT = ('predictions.csv', 'classes.csv', 'confusion.png')


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def accuracy(rows):
    known = [row for row in rows if row['truth']]
    return 100 * sum(row['truth'] == row['class'] for row in known) / len(known)


def test_predictions_are_those_of_the_best_checkpoint_and_eval_says_the_same(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder]
    result = run(*arguments, '--experiment', 'a', '--model-ema', '--model-ema-decay', 0.5, '--epochs', 3, '--lr', 0.05)
    assert result.code == 0, result.err
    folder = tmp_path / 'runs/a'
    rows = rows_of(folder / 'predictions.csv')
    assert [row['file'] for row in rows] == sorted(map(str, (image_folder / 'validation').rglob('*.jpg')))
    assert all(row['file'].split('/')[-2] == row['truth'] for row in rows)
    best = max(float(row['eval_top1']) for row in rows_of(folder / 'summary.csv'))
    assert accuracy(rows) == pytest.approx(best)
    classes = rows_of(folder / 'classes.csv')
    assert [row['class'] for row in classes] == ['cat', 'dog', 'eel'] and {row['images'] for row in classes} == {'5'}
    assert sum(int(row['correct']) for row in classes) == round(best * 15 / 100)
    assert (folder / 'mistakes.png').exists() == (best < 100)

    evaluated = run(*arguments, '--eval', folder)
    assert evaluated.code == 0 and str(folder / 'model_best.eval') in evaluated.out, evaluated.err
    for name in LEFT:
        assert (folder / 'model_best.eval' / name).read_bytes() == (folder / name).read_bytes(), name
    shutil.rmtree(folder / 'model_best.eval')
    (folder / 'model_best.eval.json').unlink()
    elsewhere = run(*arguments, '--eval', folder, '--eval-output', tmp_path / 'b/c')
    assert elsewhere.code == 0, elsewhere.err
    assert {*LEFT} <= {path.name for path in (tmp_path / 'b/c/model_best.eval').iterdir()}
    assert json.loads((tmp_path / 'b/c/model_best.eval.json').read_text())['top1'] == pytest.approx(best)
    assert not (folder / 'model_best.eval').exists() and not (folder / 'model_best.eval.json').exists()
    (tmp_path / 'file').write_text('')
    refused = run(*arguments, '--eval', folder, '--eval-output', tmp_path / 'file')
    assert refused.code == 2 and refused.err.count('\n') == 1 and '--eval-output FOLDER' in refused.err


def test_a_resumed_run_leaves_the_same(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--lr', 0.05, '--epochs', 3]
    assert run(*arguments, '--experiment', 'whole').code == 0
    assert run(*arguments, '--epochs', 1, '--experiment', 'part').code == 0
    assert run(*arguments, '--experiment', 'part', '--resume', 'auto', '--allow-recipe-change').code == 0
    for name in LEFT:
        assert (tmp_path / 'runs/part' / name).read_bytes() == (tmp_path / 'runs/whole' / name).read_bytes(), name


def test_two_processes_leave_each_image_once_at_its_place(run, image_folder, tmp_path):
    # 15 images over two processes: one share is padded.
    assert in_two_processes([*TINY, '--data-dir', image_folder, '--batch-size', 4, '--epochs', 1, '--output',
                             tmp_path / 'runs', '--experiment', 'two']) == [0, 0]
    folder = tmp_path / 'runs/two'
    assert run(*TINY, '--data-dir', image_folder, '--eval', folder).code == 0
    two, one = (rows_of(place / 'predictions.csv') for place in (folder, folder / 'model_best.eval'))
    for row, other in zip(two, one, strict=True):
        assert float(row.pop('probability')) == pytest.approx(float(other.pop('probability')), abs=1e-5)
        assert row == other
    assert len({row['file'] for row in two}) == 15 and (folder / 'samples.png').exists()


def test_pictures_and_tables_do_not_change_a_bit_of_training(run, image_folder, tmp_path, monkeypatch):
    arguments = [*TINY, '--data-dir', image_folder, '--epochs', 7, '--aa', 'rand-m9-n2', '--reprob', 0.5, '--drop', 0.2,
                 '--mixup', 0.2, '--color-jitter-prob', 0.5]
    assert run(*arguments, '--experiment', 'with').code == 0
    monkeypatch.setattr(timm_rs.training.run, 'draw_samples', lambda *_: None)
    monkeypatch.setattr(timm_rs.training.run, 'open_answers', lambda *_: None)
    assert run(*arguments, '--experiment', 'without').code == 0
    assert not (tmp_path / 'runs/without/samples.png').exists()
    one, other = (torch.load(tmp_path / 'runs' / name / 'last.pth.tar', weights_only=True)
                  for name in ('with', 'without'))
    assert one['place']['update'] == 21
    for name in one.keys() - {'args'}:
        assert_equal(one[name], other[name], name)


def test_samples_are_the_first_images_as_the_network_gets_them(run, image_folder, tmp_path, monkeypatch):
    seen = []
    genuine = timm_rs.training.run.draw_samples

    def drawing(path, loader, *rest):
        seen.extend(images for images, _ in loader.host_batches())
        genuine(path, loader, *rest)
    monkeypatch.setattr(timm_rs.training.run, 'draw_samples', drawing)
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1, '--aa', 'rand-m9-n2')
    assert result.code == 0, result.err
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / 'runs/a/samples.png')))
    for place, pixels in enumerate(torch.cat(seen)[:16]):
        top, left = 34 + place // 4 * (160 + 18 + 8), 8 + place % 4 * 168
        shown = sheet[top:top + 160:5, left:left + 160:5]
        assert torch.equal(shown, pixels.permute(1, 2, 0)), place


@pytest.mark.parametrize('what', ['bad', 'packed', 'one class', 'no validation', 'timm'])
def test_any_data_leaves_what_can_be_told_of_it(run, image_folder, tmp_path, what):
    extra = []
    if what == 'bad':
        (image_folder / 'validation/dog/2.jpg').write_bytes(b'no image')
    elif what == 'packed':
        pack_dataset.main([str(image_folder), str(tmp_path / 'packed')])
        image_folder = tmp_path / 'packed'
    elif what == 'one class':
        for split in ('train', 'validation'):
            shutil.rmtree(image_folder / split)
            write_images(image_folder / split, dict(cat=8))
    else:
        extra = ['--val-split', ''] if what == 'no validation' else ['--loader', 'timm']
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--epochs', 1, *extra)
    assert result.code == 0 and 'warning' not in result.out, result
    folder = tmp_path / 'runs/a'
    assert (folder / 'samples.png').exists() == (what != 'timm')
    assert all((folder / name).exists() == (what not in ('no validation', 'timm')) for name in LEFT)
    if what == 'bad':
        blank, = (row for row in rows_of(folder / 'predictions.csv') if not row['class'])
        assert blank['file'].endswith('dog/2.jpg') and (blank['truth'], blank['probability']) == ('', '')
        assert [row['images'] for row in rows_of(folder / 'classes.csv')] == ['5', '4', '5']
    elif what == 'packed':
        names = [row['file'] for row in rows_of(folder / 'predictions.csv')]
        assert len(set(names)) == 15 and all('.tar/' in name and name.endswith('.jpg') for name in names)
    elif what == 'one class':
        assert rows_of(folder / 'classes.csv')[0]['accuracy'] == '100.000'


def test_what_cannot_be_written_or_drawn_loses_no_checkpoint(run, image_folder, tmp_path, monkeypatch):
    genuine, calls = Answers.write, []

    def write(self, folder, said):
        calls.append(said)
        if len(calls) == 1:
            raise UserError('predictions.csv could not be written: disk full')
        genuine(self, folder, said)
    monkeypatch.setattr(Answers, 'write', write)
    monkeypatch.setattr(Answers, 'draw', lambda *_: 1 / 0)
    monkeypatch.setattr(timm_rs.training.run, 'draw_samples', lambda *_: 1 / 0)
    result = run(*TINY, '--data-dir', image_folder, '--experiment', 'a', '--lr', 0)  # the first epoch is the best
    assert result.code == 0, result.err
    assert 'disk full. Training goes on' in result.out and result.out.count('could not be drawn: division by zero') == 2
    assert calls[0] is calls[1] and len(rows_of(tmp_path / 'runs/a/predictions.csv')) == 15
    assert (tmp_path / 'runs/a/checkpoint-0.pth.tar').exists()


def test_a_run_of_before_goes_on_and_is_told_what_it_lacks(run, image_folder, tmp_path):
    arguments = [*TINY, '--data-dir', image_folder, '--experiment', 'a', '--lr', 0]
    assert run(*arguments, '--epochs', 1).code == 0
    folder = tmp_path / 'runs/a'
    for name in LEFT:
        (folder / name).unlink()
    for path in folder.glob('*.pth.tar'):  # which had top-5 of three classes, too
        content = torch.load(path, weights_only=True)
        content['summary'][0]['eval_top5'] = 100.0
        torch.save(content, path)
        path.with_name(f'{path.name}.sha256').unlink()
    result = run(*arguments, '--resume', 'auto', '--allow-recipe-change')
    assert result.code == 0, result.err
    assert f'--eval {folder} makes it' in result.out
    assert [row['eval_top5'] for row in rows_of(folder / 'summary.csv')] == ['100.0', '']


@pytest.mark.parametrize('number', [5, 6])
def test_top5_is_nowhere_with_five_classes_and_everywhere_with_six(run, tmp_path, number):
    for split in ('train', 'validation'):
        write_images(tmp_path / 'images' / split, dict.fromkeys('abcdef'[:number], 2))
    arguments = [*TINY, '--data-dir', tmp_path / 'images', '--experiment', 'a', '--epochs', 1]
    refused = run(*arguments, '--eval-metric', 'top5')
    if number == 5:
        assert (refused.code, refused.err) == (
            2, 'error: eval_metric top5 is always 100 % with at most five classes: take top1 or loss\n')
        assert run(*arguments).code == 0
    else:
        assert refused.code == 0, refused.err
    folder = tmp_path / 'runs/a'
    result = run(*arguments, '--eval', folder)
    assert ('top-5' in result.out) == ('top5' in (folder / 'model_best.eval.json').read_text()) == (
        'top5' in (folder / 'summary.csv').read_text()) == (number == 6)


def test_of_videos_too_there_are_samples_and_mistakes(clips_run):
    assert {*LEFT, 'samples.png'} <= {path.name for path in clips_run.iterdir()}
    assert len(rows_of(clips_run / 'predictions.csv')) == 8


def test_help_names_the_folder_of_an_evaluation(capsys):
    with pytest.raises(SystemExit):
        train.main(['--help'])
    assert '--eval-output FOLDER' in capsys.readouterr().out
