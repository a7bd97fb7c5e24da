import csv

import pytest
from conftest import failure, load_tool


@pytest.fixture(scope='module')
def predict():
    return load_tool('predict')


def test_folders_are_predicted_into_lines_and_rows(predict, tiny_run, tmp_path, capsys):
    images = tiny_run.parent / 'pets/validation'
    predict.main([str(tiny_run), str(images), '--top-k', '2', '--csv', str(tmp_path / 'p.csv')])
    out, err = capsys.readouterr()
    assert err == ''
    assert len(out.splitlines()) == 15
    with open(tmp_path / 'p.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert list(rows[0]) == ['image', 'rank', 'class_index', 'class_name', 'probability']
    assert (rows[1]['rank'], rows[0]['image']) == ('2', str(images / 'cat/0.png'))
    assert rows[0]['class_name'] == ('cat', 'dog', 'eel')[int(rows[0]['class_index'])]
    assert f'{rows[0]["image"]}: {rows[0]["class_name"]} {100 * float(rows[0]["probability"]):.1f} %' in out


def test_bad_images_are_named_and_the_exit_status_says_so(predict, tiny_run, tmp_path, capsys):
    (tmp_path / 'bad.png').write_bytes(b'')
    good = str(tiny_run.parent / 'pets/validation/cat/0.png')
    with pytest.raises(SystemExit) as exit_status:
        predict.main([str(tiny_run / 'last.pth.tar'), str(tmp_path / 'bad.png'), good])
    out, err = capsys.readouterr()
    assert exit_status.value.code == 1
    assert err == f'{tmp_path}/bad.png: empty file\n'
    assert out.startswith(good)


def test_an_exported_file_predicts_as_the_run_does(predict, tiny_run, tmp_path, capsys):
    load_tool('export').main([str(tiny_run), '--format', 'torch_export', '--batch-size', '1', '--output',
                              str(tmp_path / 'tiny.pt2')])
    images = str(tiny_run.parent / 'pets/validation/dog')
    capsys.readouterr()
    predict.main([str(tiny_run), images])
    by_run = capsys.readouterr().out
    predict.main([str(tmp_path / 'tiny.pt2'), images])
    assert capsys.readouterr().out == by_run


@pytest.mark.parametrize(('arguments', 'words'), [
    (['resnetrs_51', 'x.png'], 'unknown model resnetrs_51'),
    (['gone.onnx', 'x.png'], 'gone.onnx does not exist'),
    (['gone/model_best.pth.tar', 'x.png'], 'gone/model_best.pth.tar does not exist'),
    (['resnetrs', '.'], 'there are no images in the folder .'),
    (['resnetrs', 'x.png'], "no weights are published for 'resnetrs'"),
    (['resnetrs', 'x.png', '--top-k', '0'], '--top-k and --batch-size must be at least 1'),
    (['resnetrs', 'x.png', '--img-size', '-5'], 'argument --img-size: must be between 1 and 16384, got -5'),
    (['resnetrs', 'x.png', '--num-classes', '0'], 'argument --num-classes: must be at least 1, got 0'),
    (['resnetrs', 'x.png', '--csv', 'none/p.csv'], '--csv none/p.csv: there is no folder none'),
])
def test_what_cannot_be_done_is_one_line(predict, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in failure(predict, capsys, *arguments)
