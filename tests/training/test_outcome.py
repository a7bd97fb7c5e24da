"""What a finished run has come to, and the runs of which nothing can be said."""

import json
import shutil

import pytest

from timm_rs.errors import UserError
from timm_rs.training.outcome import read_outcome


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A copy of a finished run, free to be changed."""
    return shutil.copytree(tiny_run, tmp_path / 'run')


def change(path, *pairs):
    text = path.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)


def test_the_number_is_that_of_the_evaluation(finished):
    record = json.loads((finished / 'model_best.eval.json').read_text())
    outcome = read_outcome(finished)
    assert (outcome.value, outcome.metric, outcome.images) == (record['top1'], 'top-1 (%)', 15)
    assert (outcome.task, outcome.data, outcome.split) == ('classification', 'pets', 'validation')
    assert outcome == read_outcome(finished / 'model_best.pth.tar') and outcome.run == str(finished)
    assert (outcome.start, outcome.source, outcome.is_named) == ('from scratch', 'nothing', False)
    named = read_outcome(finished, 'mine')
    assert (named.start, named.source, named.is_named) == ('mine', 'nothing', True)


@pytest.mark.parametrize(('key', 'value', 'name'), [
    ('initial_checkpoint: ', 'runs/digits/model_best.pth.tar', 'digits'),
    ('initial_checkpoint: ', 'runs/digits/checkpoint-3.pth.tar', 'checkpoint-3'),
    ('pretrained_path: ', 'weights/rs50.safetensors', 'rs50.safetensors'),
    ('pretrained: ', 'true', 'resnetrs, pretrained')])
def test_an_initialisation_is_called_as_the_run_or_file_it_came_from(finished, key, value, name):
    before = next(line for line in (finished / 'args.yaml').read_text().splitlines() if line.startswith(key))
    change(finished / 'args.yaml', (before + '\n', f'{key}{value}\n'))
    assert read_outcome(finished).start == name


def test_a_run_that_ended_early_is_finished(finished):
    change(finished / 'args.yaml', ('epochs: 2\n', 'epochs: 5\n'))
    with pytest.raises(UserError, match='not finished, after 2 of 5 epochs'):
        read_outcome(finished)
    change(finished / 'args.yaml', ('patience: 0\n', 'patience: 1\n'))
    assert read_outcome(finished).images == 15


def none_evaluated(run):
    (run / 'model_best.eval.json').unlink()


def went_on(run):
    shutil.copy(run / 'last.pth.tar', run / 'model_best.pth.tar')
    with open(run / 'model_best.pth.tar', 'ab') as file:
        file.write(b'\0')


def unfinished(run):
    rows = (run / 'summary.csv').read_text().splitlines()
    (run / 'summary.csv').write_text('\n'.join(rows[:-1]) + '\n')


def not_finite(run):
    record = json.loads((run / 'model_best.eval.json').read_text())
    (run / 'model_best.eval.json').write_text(json.dumps(record | dict(top1=float('nan'))))


@pytest.mark.parametrize(('damage', 'words'), [
    (none_evaluated, r'measure that: python train.py --recipe .*args.yaml --eval .*model_best.pth.tar'),
    (went_on, r'model_best.eval.json does not exist, or is not of model_best.pth.tar as it is now'),
    (unfinished, 'is not finished, after 1 of 2 epochs: its command goes on with --resume auto'),
    (not_finite, 'model_best.eval.json: top-1 is nan'),
    (lambda run: (run / 'model_best.eval.json').write_text('{'), 'model_best.eval.json is damaged'),
    (lambda run: (run / 'summary.csv').write_text('a,b\n1,2\n'), 'its last row has no epoch'),
    (lambda run: (run / 'summary.csv').unlink(), 'summary.csv cannot be read: No such file'),
    (lambda run: (run / 'args.yaml').unlink(), 'args.yaml does not exist'),
    (lambda run: [path.unlink() for path in run.glob('*.tar')], 'holds no model_best.pth.tar')])
def test_a_run_that_says_nothing_is_refused_in_words(finished, damage, words):
    damage(finished)
    with pytest.raises(UserError, match=words):
        read_outcome(finished)
