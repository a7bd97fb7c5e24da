import csv
import math

import pytest
from conftest import failure, load_tool

from timm_rs.inference.export import Exported, as_source, export_metadata
from timm_rs.inference.predict import predict as predict_all
from timm_rs.inference.source import open_model
from timm_rs.publish.folder import write_folder
from timm_rs.tasks import create_task
from timm_rs.training.trained import read_run


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


def test_videos_are_predicted_as_they_were_evaluated(predict, clips_run, tmp_path, capsys):
    """Files, folders of frames and folders of both; every frame of every view counts, as at the end of training."""
    places = [str(clips_run.parent / 'clips/validation/blue'), str(clips_run.parent / 'clips/validation/red')]
    predict.main([str(clips_run), *places, '--csv', str(tmp_path / 'p.csv'), '--pictures', str(tmp_path / 'strips')])
    out, err = capsys.readouterr()
    assert err == '' and len(out.splitlines()) == 8 and f'{places[0]}/frames: ' in out
    with open(tmp_path / 'p.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[0] == 'video' and len(rows) == 16
    losses = [-math.log(float(row['probability'])) for row in rows if f'/{row["class_name"]}/' in row['video']]
    with open(clips_run / 'summary.csv', newline='') as file:
        last = list(csv.DictReader(file))[-1]
    assert sum(losses) / 8 == pytest.approx(float(last['eval_loss']), rel=1e-4)
    assert sorted(path.name for path in (tmp_path / 'strips').iterdir()) == sorted(
        f'{name}{again}.png' for name in ('0', '1', '2', 'frames') for again in ('', '-2'))


def test_a_published_folder_of_a_network_for_clips_says_of_which_frames(predict, clips_run, tmp_path, capsys):
    write_folder(read_run(clips_run), tmp_path / 'folder', 'me/clips')
    video = str(clips_run.parent / 'clips/validation/red/2.mp4')
    said = []
    for model in (clips_run, tmp_path / 'folder'):
        predict.main([str(model), video])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    (tmp_path / 'folder/args.yaml').unlink()
    assert 'its args.yaml, which says of which frames, is not here' in failure(
        predict, capsys, tmp_path / 'folder', video)


def test_an_exported_network_for_clips_takes_the_frames_of_its_run(clips_run, tmp_path):
    trained = open_model(str(clips_run))
    metadata = export_metadata(trained, 'onnx', 'fp32', 0, None)
    source = as_source(tmp_path / 'clips.onnx', Exported(metadata, trained.model))
    task = create_task(source.recipe)
    assert (task.knobs.num_frames, task.knobs.frame_stride) == (3, 1)
    one, = predict_all(source, [str(clips_run.parent / 'clips/validation/red/2.mp4')])
    assert one.frames.shape == (3, 24, 24, 3)


KINDS = {'clips of videos': 'clips_run', 'images': 'tiny_run'}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('name', 'message'), [
    ('a.{}', 'a.{} is a'), ('http://x/a.{}?size=1', 'a.{}?size=1 is a'), ('folder', 'there are no')])
def test_the_other_kind_is_refused_in_a_sentence(predict, kind, name, message, request, tmp_path, capsys, monkeypatch):
    """Images for a network for clips, and videos for one for images; nothing is fetched for it."""
    of_videos = kind != 'images'
    suffix = ('JPG' if of_videos else 'Mp4')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / ('notes.txt' if of_videos else f'a.{suffix}')).write_bytes(b'')
    said = failure(predict, capsys, request.getfixturevalue(KINDS[kind]), name.format(suffix))
    assert message.format(suffix) in said and f'takes {"video" if of_videos else "image"}s' in said


@pytest.mark.parametrize('teacher', ['run', 'folder'])
def test_a_network_for_clips_is_no_teacher_of_images(clips_run, tmp_path, image_folder, capsys, teacher):
    if teacher == 'folder':
        write_folder(read_run(clips_run), tmp_path / 'folder', 'me/clips')
    model = clips_run if teacher == 'run' else tmp_path / 'folder'
    assert 'takes clips of videos, and pools are of images' in failure(
        load_tool('pseudo_label'), capsys, 'label', image_folder, tmp_path / 'labels', '--teacher', model)


@pytest.mark.parametrize(('arguments', 'words'), [
    (['resnetrs_51', 'x.png'], 'unknown model resnetrs_51'),
    (['gone.onnx', 'x.png'], 'gone.onnx does not exist'),
    (['gone/model_best.pth.tar', 'x.png'], 'gone/model_best.pth.tar does not exist'),
    (['resnetrs', 'x.png'], "no weights are published for 'resnetrs'"),
    (['resnetrs', 'x.png', '--top-k', '0'], '--top-k and --batch-size must be at least 1'),
    (['resnetrs', 'x.png', '--img-size', '-5'], 'argument --img-size: must be between 1 and 16384, got -5'),
    (['resnetrs', 'x.png', '--num-classes', '0'], 'argument --num-classes: must be at least 1, got 0'),
    (['resnetrs', 'x.png', '--csv', 'none/p.csv'], '--csv none/p.csv: there is no folder none'),
])
def test_what_cannot_be_done_is_one_line(predict, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in failure(predict, capsys, *arguments)
