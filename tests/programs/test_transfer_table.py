import csv
import shutil

import pytest
from conftest import failure, load_tool

tool = load_tool('transfer_table')


@pytest.fixture
def runs(tiny_run, tmp_path):
    """Two finished runs of one recipe, with another seed each, and one that started from the first."""
    for number, name in enumerate(('a', 'b', 'c')):
        folder = shutil.copytree(tiny_run, tmp_path / name)
        text = (folder / 'args.yaml').read_text().replace('\nseed: 42\n', f'\nseed: {42 + number}\n')
        assert f'\nseed: {42 + number}\n' in text
        (folder / 'args.yaml').write_text(text.replace(
            "initial_checkpoint: ''", f"initial_checkpoint: '{tmp_path}/a/last.pth.tar'") if name == 'c' else text)
    return tmp_path


def test_runs_become_a_table_a_csv_and_a_figure(runs, capsys):
    tool.main([*(str(runs / name) for name in 'abc'), '--csv', str(runs / 't.csv'), '--figure', str(runs / 't.svg')])
    out, err = capsys.readouterr()
    head, _, row = out.splitlines()
    assert head == '| task | metric | from scratch | a |' and not err
    assert row.startswith('| classification, pets (validation, 15 images) | top-1 (%) | ')
    assert row.count('± 0 (n = 2)') == row.count('(n = 1)') == 1
    with open(runs / 't.csv', newline='') as file:
        assert [(line['start'], line['runs']) for line in csv.DictReader(file)] == [('from scratch', '2'), ('a', '1')]
    assert (runs / 't.svg').read_text().count('<svg') == 1


def test_an_initialisation_can_be_named_and_differing_recipes_are(runs, capsys):
    text = (runs / 'c/args.yaml').read_text()
    (runs / 'c/args.yaml').write_text(text.replace('\nepochs: 2\n', '\nepochs: 1\n'))
    tool.main([f'none={runs}/a', f'a run={runs}/c'])
    head, _, _, _, note = capsys.readouterr().out.splitlines()
    assert head == '| task | metric | none | a run |'
    assert note == 'The recipes of classification, pets (validation, 15 images) differ in epochs.'


def test_the_command_that_a_refusal_names_measures_the_run(runs, tiny_run, run, capsys):
    (runs / 'a/model_best.eval.json').unlink()
    said = failure(tool, capsys, runs / 'a')
    words = said.partition('python train.py ')[2].split()
    assert run(*words).code == 0 and len(words) == 4
    tool.main([str(runs / 'a')])
    assert '(n = 1)' in capsys.readouterr().out


@pytest.mark.parametrize(('argv', 'words'), [
    (('{}/gone',), '/gone does not exist: give the folder of a run'),
    (('{}/a', '{}/a'), 'of the same seed: leave one out'),
    (('{}/a', '--figure', 'x.pdf'), 'ends with .png or .svg'),
    (('{}/a', '--csv', '{}/no/x.csv'), 'cannot be written: No such file')])
def test_what_cannot_be_tabled_is_one_line(runs, capsys, argv, words):
    assert words in failure(tool, capsys, *(word.format(runs) for word in argv))
