"""Detection goes through the whole program as classification does."""

import csv
import json

import pytest
from annotated_trees import write_voc_boxes
from conftest import TINY, failure, load_tool
from forks import check_killed_and_resumed, in_two_processes
from PIL import Image

ARGUMENTS = [*TINY, '--task', 'detection', '--img-size', '64', '--pyramid-channels', '8', '--head-channels', '8',
             '--sampled-boxes', '16', '--finest', '16', '--no-coarser-levels', '--scale-jitter', '0.5', '2.0',
             '--colour', '0.2', '--batch-size', '4', '--lr', '0.01', '--model-ema', '--model-ema-decay', '0.5']
HARDER = ['--detector', 'retinanet', '--workers', '2', '--amp', '--amp-dtype', 'bfloat16', '--grad-accum-steps', '2',
          '--clip-grad', '1', '--drop-path', '0.2', '--deterministic']


@pytest.fixture
def data(tmp_path):
    return ['--data-dir', str(write_voc_boxes(tmp_path / 'data'))]


@pytest.mark.slow
@pytest.mark.parametrize('more', [[], HARDER], ids=['faster_rcnn', 'retinanet, harder'])
def test_it_trains_is_killed_resumes_to_the_bit_and_evaluates(run, data, more, tmp_path):
    folder, arguments = tmp_path / 'runs', [*ARGUMENTS, *data, *more]
    whole = run(*arguments, '--experiment', 'whole')
    assert whole.code == 0, whole.err
    check_killed_and_resumed(run, arguments, folder / 'whole', folder / 'cut')

    evaluated = run(*arguments, '--eval', folder / 'whole/last.pth.tar')
    assert evaluated.code == 0, evaluated.err
    results = json.loads((folder / 'whole/last.eval.json').read_text())
    assert results['num_samples'] == 5 and {'ap', 'ap50', 'ap75', 'ap50_voc07'} < results.keys()
    assert all(results[name] >= 0 for name in ('ap', 'ap75'))  # not COCO's -1


@pytest.mark.slow
def test_two_processes_say_the_same_numbers_and_one_sees_a_bad_image(data, tmp_path):
    (tmp_path / 'data/Annotations/val_001.xml').write_text('')
    arguments = [*ARGUMENTS, *data, '--epochs', '1', '--output', tmp_path / 'runs', '--experiment', 'two']
    assert in_two_processes(arguments) == [0, 0]
    with open(tmp_path / 'runs/two/bad_samples.csv', newline='') as file:
        assert ['is no XML' in row['reason'] for row in csv.DictReader(file)] == [True]
    with open(tmp_path / 'runs/two/summary.csv', newline='') as file:
        row, = csv.DictReader(file)
    assert float(row['eval_ap50']) >= 0 and float(row['eval_ap50_voc07']) >= 0


def test_a_run_draws_boxes_and_is_refused_where_classes_of_images_are_wanted(run, data, tiny_run, tmp_path, capsys):
    started = run(*ARGUMENTS, *data, '--epochs', '1', '--experiment', 'a', '--initial-checkpoint',
                  tiny_run / 'last.pth.tar')
    assert started.code == 0 and 'gives the backbone; left out: fc.bias, fc.weight' in started.out, started.err
    folder, photo = tmp_path / 'runs/a', tmp_path / 'photo.png'
    Image.new('RGB', (50, 30), (200, 20, 20)).save(photo)
    load_tool('predict').main([str(folder), str(photo), '--pictures', str(tmp_path / 'drawn'), '--min-score', '0'])
    assert capsys.readouterr().out.endswith(f' %: {tmp_path}/drawn/photo.png\n')
    assert Image.open(tmp_path / 'drawn/photo.png').size == (50, 30)
    assert 'says it of boxes' in failure(
        load_tool('export'), capsys, folder, '--format', 'onnx', '--output', tmp_path / 'a.onnx')


@pytest.mark.parametrize(('more', 'words'), [
    (['--device', 'xla'], 'detection does not go with device xla'),
    (['--max-boxes', '0'], 'max_boxes must be between 1 and 10000'),
    (['--img-size', '50'], 'multiples of 32 pixels')])
def test_what_cannot_be_is_one_line(run, data, more, words):
    result = run(*ARGUMENTS, *data, *more)
    assert result.code == 2 and words in result.err and result.err.count('\n') == 1


def test_more_boxes_than_there_is_room_for_are_a_named_bad_sample(run, data, tmp_path):
    path = tmp_path / 'data/Annotations/train_000.xml'
    text = path.read_text()
    thing = text[text.index('<object>'):text.index('</object>') + 9]
    path.write_text(text.replace(thing, 3 * thing))
    result = run(*ARGUMENTS, *data, '--epochs', '1', '--max-boxes', '2', '--experiment', 'a')
    assert result.code == 0, result.err
    with open(tmp_path / 'runs/a/bad_samples.csv', newline='') as file:
        row, = csv.DictReader(file)
    assert row['name'].endswith('train_000.jpg')
    assert row['reason'] == 'it has 3 boxes, more than max_boxes, 2: raise that'
