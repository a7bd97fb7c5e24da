"""Videos through the whole program: training, resuming to the same bits, views, and what is refused."""

import json
import os
import signal

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, TINY_CLIPS, assert_equal, load_tool
from videos import encode, write_frames

from timm_rs.data.loader import create_eval_loader
from timm_rs.device.torch_device import Device
from timm_rs.programs.train import main
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.video import Video
from timm_rs.training import train

COLOURS = {'blue': (40, 60, 250), 'red': (250, 60, 40)}


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Two classes, files and folders of frames, and one file of each split that is none."""
    root = tmp_path_factory.mktemp('videos')
    for split, count in (('train', 7), ('validation', 4)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f'{index}.mp4').write_bytes(encode(8 + index, colour=colour))
            write_frames(root / split / name / 'frames', 9, colour)
        (root / split / 'red/broken.mp4').write_bytes(encode()[:1200])
    return root


@pytest.mark.parametrize('packed', [False, True], ids=['folder', 'shards'])
def test_a_run_stopped_within_an_epoch_ends_as_the_one_that_was_not(run, videos, tmp_path, monkeypatch, packed):
    data = videos
    if packed:
        data = tmp_path / 'packed'
        load_tool('pack_dataset').main([str(videos), str(data), '--frames', '--workers', '0', '--shards', '3'])
    updates = train.train_updates
    stops = []

    def stopping(training, loader, device, position, progress):
        for reported in updates(training, loader, device, position, progress):
            if position.update in stops:
                stops.remove(position.update)
                os.kill(os.getpid(), signal.SIGTERM)
            yield reported
    monkeypatch.setattr(train, 'train_updates', stopping)
    arguments = [*TINY_CLIPS, '--data-dir', data, '--drop', 0.3, '--drop-path', 0.2, '--mixup', 0.2, '--model-ema',
                 '--resume', 'auto', '--channels-last', '--log-interval', 1]
    whole = run(*arguments, '--experiment', 'whole')
    assert whole.code == 0, whole.err
    assert f'{16 if packed else 17} training videos' in whole.out
    assert whole.out.count('train/red/broken.mp4: truncated') == (0 if packed else 1)
    stops += [2, 5]
    codes = [run(*arguments, '--experiment', 'part').code for _ in range(3)]
    assert codes == [143, 143, 0]
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        first, second = (torch.load(tmp_path / 'runs' / folder / name, weights_only=True) for folder in (
            'whole', 'part'))
        del first['args'], second['args']
        assert_equal(first, second, name)
    assert (tmp_path / 'runs/whole/summary.csv').read_bytes() == (tmp_path / 'runs/part/summary.csv').read_bytes()


@pytest.fixture(scope='module')
def finished(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    main([*TINY_CLIPS, '--data-dir', str(videos), '--output', str(folder), '--experiment', 'run'])
    return folder / 'run'


def evaluation(run, finished, videos, *arguments):
    result = run(*TINY_CLIPS, '--data-dir', videos, '--eval', finished / 'last.pth.tar', *arguments)
    assert result.code == 0, result.err
    return json.loads((finished / 'last.eval.json').read_text()), result.out


def test_evaluation_says_what_it_is_of(run, finished, videos):
    found, out = evaluation(run, finished, videos, '--eval-clips', 2, '--eval-crops', 3, '--eval-img-size', 32)
    assert {name: found[name] for name in (
        'num_samples', 'num_bad', 'num_missing', 'views', 'frames', 'img_size')} == dict(
        num_samples=10, num_bad=1, num_missing=0, views='2x3', frames='3x2', img_size=32)
    assert '10 videos at 32 px' in out and 'broken.mp4: truncated' in out


def test_views_are_averaged_per_video_in_any_batches_and_any_number_of_processes(run, finished, videos):
    """The numbers of the program are those of a plain loop over videos and views."""
    many, _ = evaluation(run, finished, videos, '--eval-clips', 2, '--eval-crops', 3, '--validation-batch-size', 4)
    few, _ = evaluation(run, finished, videos, '--eval-clips', 2, '--eval-crops', 3, '--validation-batch-size', 13)
    assert many['loss'] == pytest.approx(few['loss'], rel=1e-5) and many['top1'] == few['top1']
    recipe = Recipe(task='video', model='resnetrs3d', data_dir=str(videos), color_jitter=0.0, batch_size=4, workers=0,
                    train_interpolation='bilinear', task_knobs=dict(video=dict(
                        num_frames=3, eval_clips=2, eval_crops=3)))
    task, state = Video(recipe), torch.load(finished / 'last.pth.tar', weights_only=True)
    _, samples, _ = task.create_datasets(recipe, need_training=False)
    model = timm.create_model('resnetrs3d', layers=(1, 1, 1, 1), width=0.125, num_classes=2, num_frames=3).eval()
    model.load_state_dict(state['state_dict'])
    config = dict(input_size=(3, 24, 24), mean=(0.0,) * 3, std=(1.0,) * 3)
    transform, losses = task.create_transform(recipe, config, is_training=False), []
    for index in range(len(samples)):
        source, label = samples.read(index)
        if samples.name(index).endswith('broken.mp4'):
            continue
        views = torch.from_numpy(transform(source, 0)).movedim(-1, 1).float() / 255
        with torch.no_grad():
            losses.append(-model(views).softmax(1).mean(0)[label].log().item())
    assert many['loss'] == pytest.approx(np.mean(losses), rel=1e-4) and many['num_samples'] == len(losses)
    seen = []
    for rank in range(3):
        device = Device('cpu')
        device.rank, device.world_size = rank, 3
        for views, labels in create_eval_loader(samples, recipe, config, task, 2, device).host_batches():
            assert views.shape == (6 * len(labels), 3, 3, 24, 24) and views.dtype == torch.uint8
            seen += [(label, view.sum().item()) for label, view in zip(
                labels.tolist(), views.unflatten(0, (-1, 6)).long(), strict=True) if label >= 0]
    assert len(seen) == len(losses) and len(set(seen)) >= 9


def test_what_a_list_misses_is_counted_and_written_down(run, finished, videos, tmp_path):
    for split in ('train', 'validation'):
        (tmp_path / split).symlink_to(videos / split)
        lines = [f'{name}/{index}.mp4 {name}' for name in COLOURS for index in range(4)]
        (tmp_path / f'{split}.txt').write_text('\n'.join([*lines, 'red/gone.mp4 red', 'blue/lost.mp4 blue']))
    result = run(*TINY_CLIPS, '--data-dir', tmp_path, '--experiment', 'listed', '--epochs', 1)
    assert result.code == 0, result.err
    assert 'left out of the training data: 2 named by the list, but not there' in result.out
    assert '8 training videos' in result.out
    assert 'red/gone.mp4,"named by the list, but not there"' in (
        tmp_path / 'runs/listed/bad_samples.csv').read_text()
    found, _ = evaluation(run, finished, tmp_path)
    assert (found['num_samples'], found['num_missing'], found['num_bad']) == (8, 2, 0)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--cutmix', 1.0], 'cutmix 1.0 (it is made for images, and would take frames for columns): leave out cutmix'),
    (['--reprob', 0.2], 'reprob 0.2 (it is made for images'), (['--aa', 'rand-m9-n2'], 'aa rand-m9-n2 (the authors'),
    (['--color-jitter', 0.4], 'color_jitter 0.4 (the authors have none for clips): --color-jitter 0.0'),
    (['--train-interpolation', 'random'], 'train_interpolation random (as the authors have it): '
                                          '--train-interpolation bilinear'),
    (['--loader', 'timm'], "loader timm (timm's reads images): leave out loader"),
    (['--device', 'xla'], 'device xla: give cpu or cuda'), (['--eval-crops', 2], '--eval-crops 2: give 1 or 3'),
    (['--model-kwargs', 'layers=(1,1,1,1)', 'num_frames=8'], 'num_frames in model_kwargs: give --num-frames'),
    (['--model', 'resnet18', '--model-kwargs'], 'resnet18 takes images, and task video has clips: take resnetrs3d_50'),
    (['--input-size', 3, 24, 32], 'square clips'), (['--ratio', 2, 1], 'scale must be a range'),
    (['--task', 'classification', '--num-frames'], 'unrecognized arguments|num-frames'),
])
def test_what_clips_do_not_have_is_refused(run, videos, arguments, message):
    result = run(*TINY_CLIPS, '--data-dir', videos, *arguments)
    assert result.code == 2
    assert any(part in result.err for part in message.split('|')), result.err
    assert result.err.strip().splitlines()[-1].count('error') == 1


def test_a_network_for_clips_asks_for_the_task(run, image_folder):
    result = run(*TINY, '--model', 'resnetrs3d', '--data-dir', image_folder)
    assert result.code == 2 and '--task video' in result.err
