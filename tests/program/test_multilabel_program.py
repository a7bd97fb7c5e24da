"""Images with tags go through the whole programs: training, faults, evaluation, prediction, export, the Hub."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import TINY, failure, load_tool
from forks import check_killed_and_resumed, in_two_processes
from sklearn.metrics import average_precision_score
from tagged_data import COLOURS, write_tagged

from timm_rs import load_run
from timm_rs.api import predict as predict_images
from timm_rs.programs import train
from timm_rs.publish.folder import write_folder
from timm_rs.training.trained import read_run

ARGUMENTS = [*TINY, '--task', 'multilabel', '--lr', '0.05', '--smoothing', '0', '--hflip', '0']
HARDER = ['--mixup', '0.2', '--cutmix', '1', '--reprob', '0.3', '--loss', 'asymmetric', '--workers', '2', '--amp',
          '--amp-dtype', 'bfloat16', '--model-ema', '--model-ema-decay', '0.5', '--grad-accum-steps', '2',
          '--batch-size', '4']


def rows_of(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(tmp_path):
    return ['--data-dir', str(write_tagged(tmp_path / 'data'))]


@pytest.fixture(scope='module')
def tags_run(tmp_path_factory):
    """The folder of a finished run, with its data in `data` beside it."""
    folder = tmp_path_factory.mktemp('tags')
    train.main([*ARGUMENTS, '--data-dir', str(write_tagged(folder / 'data')), '--output', str(folder),
                '--experiment', 'run', '--epochs', '3', '--crop-pct', '1'])
    return folder / 'run'


def test_a_run_leaves_what_it_says_of_each_tag_and_eval_says_the_same(run, tags_run):
    rows = rows_of(tags_run / 'predictions.csv')
    images = tags_run.parent / 'data/validation'
    assert [row['file'] for row in rows] == [str(images / f'{index}.png') for index in range(7)]
    truth, probability = (np.array([[of(row, name) for name in sorted(COLOURS)] for row in rows]) for of in (
        lambda row, name: name in row['truth'].split(';'), lambda row, name: float(row[f'p_{name}'])))
    tags = rows_of(tags_run.parent / 'data/validation.csv')
    assert [set(row['truth'].split(';')) for row in rows] == [set(row['tags'].split(';')) for row in tags]
    for row, said in zip(rows, probability >= 0.5, strict=True):
        assert row['said'] == ';'.join(np.array(sorted(COLOURS))[said])
    precisions = [100 * average_precision_score(truth[:, index], probability[:, index]) for index in range(3)]
    classes = rows_of(tags_run / 'classes.csv')
    assert [float(row['ap']) for row in classes] == pytest.approx(precisions, abs=1e-2)
    assert [int(row['images']) for row in classes] == truth.sum(0).tolist()
    best = max(float(row['eval_map']) for row in rows_of(tags_run / 'summary.csv'))
    assert best == pytest.approx(np.mean(precisions), abs=1e-2)
    assert (tags_run / 'samples.png').exists() and not (tags_run / 'confusion.png').exists()
    assert (tags_run / 'mistakes.png').exists() == bool((truth != (probability >= 0.5)).any())

    result = run(*ARGUMENTS, '--crop-pct', '1', '--data-dir', tags_run.parent / 'data', '--eval', tags_run,
                 '--eval-output', tags_run.parent / 'again')
    assert result.code == 0 and f'mAP {best:.3f} %' in result.out, result.err
    again = tags_run.parent / 'again'
    for name in ('predictions.csv', 'classes.csv'):
        assert (again / 'model_best.eval' / name).read_bytes() == (tags_run / name).read_bytes(), name
    assert json.loads((again / 'model_best.eval.json').read_text())['map'] == pytest.approx(best)


@pytest.mark.parametrize('more', [[], pytest.param(HARDER, marks=pytest.mark.slow)], ids=['plain', 'harder'])
def test_it_is_killed_and_resumes_to_the_bit(run, data, more, tmp_path):
    folder, arguments = tmp_path / 'runs', [*ARGUMENTS, *data, *more]
    assert run(*arguments, '--experiment', 'whole').code == 0
    check_killed_and_resumed(run, arguments, folder / 'whole', folder / 'cut',
                             ('summary.csv', 'predictions.csv', 'classes.csv'))


def test_pictures_of_an_epoch_before_are_drawn_from_its_table(run, data, tmp_path):
    assert run(*ARGUMENTS, *data, '--epochs', '1', '--experiment', 'a').code == 0
    folder = tmp_path / 'runs/a'
    assert not (folder / 'confusion.png').exists()
    (folder / 'mistakes.png').unlink()
    again = run(*ARGUMENTS, *data, '--epochs', '1', '--experiment', 'a', '--resume', 'auto')
    assert again.code == 0 and (folder / 'mistakes.png').exists(), again.err


def test_two_processes_say_what_one_does_and_name_a_bad_image(run, data, tmp_path):
    (tmp_path / 'data/validation/3.png').write_bytes(b'')
    assert in_two_processes([*ARGUMENTS, *data, '--batch-size', 4, '--epochs', 1, '--output', tmp_path / 'runs',
                             '--experiment', 'two']) == [0, 0]
    folder = tmp_path / 'runs/two'
    assert run(*ARGUMENTS, *data, '--eval', folder).code == 0
    row, = rows_of(folder / 'summary.csv')
    results = json.loads((folder / 'model_best.eval.json').read_text())
    assert results['num_samples'] == 6 and results['map'] == pytest.approx(float(row['eval_map']), abs=1e-9)
    two, one = (rows_of(place / 'predictions.csv') for place in (folder, folder / 'model_best.eval'))
    assert list(two[3].values())[1:] == [''] * 5 and [row['truth'] for row in two] == [row['truth'] for row in one]
    for row, other in zip(two[:3] + two[4:], one[:3] + one[4:], strict=True):
        assert float(row['p_red']) == pytest.approx(float(other['p_red']), abs=1e-5)


def test_left_out_images_are_told(run, data, tmp_path):
    root = tmp_path / 'data'
    text = (root / 'train.csv').read_text()
    (root / 'train.csv').write_text(text.replace('\n9.png', '\ngone.png'))
    result = run(*ARGUMENTS, *data, '--epochs', 1, '--experiment', 'a')
    assert result.code == 0, result.err
    assert ('left out of the training data: 1 named by the list, but not there (gone.png); 1 without a row in the '
            f'table, or a text of tags beside it ({root}/train/9.png)') in result.out
    names = {row['name'] for row in rows_of(tmp_path / 'runs/a/bad_samples.csv')}
    assert names == {'gone.png', f'{root}/train/9.png'}


@pytest.mark.parametrize(('table', 'words'), [
    ('file,tags\n0.png,red blue\n', 'may be one tag or several'),
    ('file,tags\n../0.png,red\n', 'is not within'),
    ('file,red\n0.png,maybe\n', '0 or 1 is wanted')])
def test_bad_tables_end_in_one_line(run, data, table, words, tmp_path):
    (tmp_path / 'data/train.csv').write_text(table)
    result = run(*ARGUMENTS, *data)
    assert result.code == 2 and words in result.err and result.err.count('\n') == 1, result.err


# ---- in use -----------------------------------------------------------------------------------------------------

def lines_for(tags_run, capsys, *arguments):
    load_tool('predict').main([str(arguments[0] if arguments else tags_run), str(tags_run.parent / 'data/validation'),
                               *map(str, arguments[1:])])
    return capsys.readouterr().out.splitlines()


def test_predict_tells_all_tags_that_are_likely_enough(tags_run, tmp_path, capsys):
    lines = lines_for(tags_run, capsys, tags_run, '--csv', tmp_path / 'p.csv', '--min-score', '0.5')
    wanted = {row['file']: row for row in rows_of(tags_run / 'predictions.csv')}
    assert len(lines) == 7
    for line in lines:
        name, said = line.split(': ')
        tags = {} if said == 'no class of 50 % or more' else dict(tag.split(' ', 1) for tag in said.split(', '))
        assert set(tags) == set(filter(None, wanted[name]['said'].split(';')))
        assert all(float(share.split()[0]) == pytest.approx(100 * float(wanted[name][f'p_{tag}']), abs=0.06)
                   for tag, share in tags.items())
    assert {row['image'] for row in rows_of(tmp_path / 'p.csv')} == wanted.keys()  # those without a tag, too
    everything = lines_for(tags_run, capsys, tags_run, '--min-score', '0')
    assert all(line.count(' %') == 3 for line in everything)
    first = lines_for(tags_run, capsys, tags_run, '--min-score', '0', '--top-k', 1)
    assert all(line.count(' %') == 1 for line in first)
    found = list(predict_images(load_run(tags_run), tags_run.parent / 'data/validation', min_score=0))
    assert all(len(prediction.classes) == 3 for prediction in found)


def test_bad_images_are_named_by_predict(tags_run, tmp_path, capsys):
    (tmp_path / 'bad.png').write_bytes(b'')
    with pytest.raises(SystemExit):
        load_tool('predict').main([str(tags_run), str(tmp_path / 'bad.png')])
    assert capsys.readouterr().err == f'{tmp_path}/bad.png: empty file\n'


def test_a_file_and_a_published_folder_predict_as_the_run_does(tags_run, tmp_path, capsys):
    wanted = lines_for(tags_run, capsys, tags_run)
    load_tool('export').main([str(tags_run), '--format', 'torch_export', '--output', str(tmp_path / 'a.pt2')])
    write_folder(read_run(tags_run), tmp_path / 'published', 'org/tags')
    capsys.readouterr()
    assert lines_for(tags_run, capsys, tmp_path / 'a.pt2') == wanted
    assert lines_for(tags_run, capsys, tmp_path / 'published') == wanted
    card = (tmp_path / 'published/README.md').read_text()
    assert '.sigmoid()' in card and 'softmax' not in card and 'mAP (%)' in card and 'value:' in card
    assert json.loads((tmp_path / 'published/config.json').read_text())['problem_type'] == 'multi_label_classification'


@pytest.mark.slow
def test_the_code_of_a_card_tells_the_tags(tags_run, tmp_path, monkeypatch, capsys):
    write_folder(read_run(tags_run), tmp_path / 'published', 'org/tags')
    shutil.copy(tags_run.parent / 'data/validation/0.png', tmp_path / 'image.jpg')
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / 'published/README.md').read_text().replace('hf-hub:org/tags', 'local-dir:published')
    codes = card.replace("'org/tags'", "'published'").split('```python\n')[1:]
    rows = {row['file']: row for row in rows_of(tags_run / 'predictions.csv')}
    said = rows[str(tags_run.parent / 'data/validation/0.png')]['said'].split(';')
    indices = [sorted(COLOURS).index(name) for name in filter(None, said)]
    for code, wanted in zip(codes, (f'tensor({indices})\n', ''.join(f'{name}\n' for name in said)), strict=True):
        exec(code.split('```')[0], {})
        assert capsys.readouterr().out == wanted


def test_no_pseudo_labels_come_from_it(tags_run, tmp_path, capsys):
    assert 'pseudo labels are of one each' in failure(
        load_tool('pseudo_label'), capsys, 'label', tags_run.parent / 'data/train', tmp_path / 'labels', '--teacher',
        tags_run)


def test_scan_finds_bad_images_by_the_layout(data, tmp_path, capsys):
    (tmp_path / 'data/train/4.png').write_bytes(b'')
    with pytest.raises(SystemExit) as stop:
        load_tool('scan_dataset').main([str(tmp_path / 'data'), '--dataset', 'tags'])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and f'{tmp_path}/data/train/4.png' in out and '23 images, 1 bad' in out
