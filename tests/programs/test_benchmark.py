import csv
import re
from pathlib import Path

import pytest
from conftest import TINY_CLIPS, failure, load_tool

benchmark = load_tool('benchmark')
RECIPE = ['--model', 'resnetrs_50', '--img-size', '16', '--workers', '0', '--aa', 'rand-m10-n2-p1.0', '-b', '8']


def test_loaders_take_turns_and_rows_say_where_they_come_from(capsys, image_folder, tmp_path):
    benchmark.main(['loader', *RECIPE, '--data-dir', str(image_folder), '--images', '16', '--rounds', '2',
                    '--randaugment', 'tf', '--preprocessing', 'tf', '--train-interpolation', 'bicubic',
                    '--csv', str(tmp_path / 'results/loader.csv')])
    out = capsys.readouterr().out
    assert 'resnetrs_50 at 16 px, 0 workers, 16 images per turn, 2 rounds' in out
    with open(tmp_path / 'results/loader.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    augmentations = 'timm augmentation', 'released RandAugment', 'released RandAugment and crops'
    names = [f'{loader}, {name}' for name in augmentations for loader in ('timm', 'fast')] + [
        f'fast, timm augmentation, {what}' for what in ('decode scaled', 'packed', 'packed raw')]
    assert [row['loader'] for row in rows] == names
    assert all((float(row['cpu_ratio_to_timm_max']) == 1) == (row['loader'][:4] == 'timm') for row in rows)
    assert all(re.search(rf'^{name} +[0-9.]+ \(', out, re.M) for name in names)
    assert float(rows[1]['cpu_ms_min']) > 0
    assert float(rows[1]['psnr_db_median']) > 50
    assert float(rows[-1]['image_kb']) == 1.2  # 20 x 20 pixels
    assert all(row['versions'].startswith('python 3') and row['hardware'] and row['commit'] for row in rows)


def test_without_a_policy_no_augmentation_is_called_after_one(image_folder, tmp_path):
    benchmark.main(['loader', *RECIPE, '--data-dir', str(image_folder), '--images', '8', '--rounds', '1', '--no-pack',
                    '--randaugment', 'tf', '--preprocessing', 'tf', '--train-interpolation', 'bicubic', '--aa', '',
                    '--csv', str(tmp_path / 'loader.csv')])
    assert [(row['loader'], row['aa']) for row in read_rows(tmp_path / 'loader.csv')] == [(name, '') for name in (
        'timm, timm augmentation', 'fast, timm augmentation', 'timm, released crops', 'fast, released crops',
        'fast, timm augmentation, decode scaled')]


def test_clips_are_measured_by_where_their_frames_come_from(capsys, clips_run, tmp_path):
    benchmark.main(['loader', *TINY_CLIPS, '--frame-stride', '1', '--data-dir', str(clips_run.parent / 'clips'),
                    '--images', '4', '--rounds', '1', '--csv', str(tmp_path / 'clips.csv')])
    out = capsys.readouterr().out
    assert 'resnetrs3d at 24 px, 0 workers, 4 clips per turn, 1 rounds' in out
    rows = read_rows(tmp_path / 'clips.csv')
    assert [row['source'] for row in rows] == [
        'files', 'files, packed', 'JPEG frames, packed', 'JPEG frames in folders']
    assert all(row['frames'] == '3x1' and row['source'] in out and float(row['clips_per_core_s_min']) == pytest.approx(
        1000 / float(row['cpu_ms_max']), rel=2e-3) for row in rows)
    assert float(rows[0]['cpu_share_of_files_median']) == 1 != float(rows[2]['cpu_share_of_files_median'])


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_models_take_turns_and_finished_rows_are_not_measured_again(capsys, tmp_path):
    argv = ['train', '--models', 'test_efficientnet@32', 'test_resnet@32', '--batch-size', '4', '--rounds', '2',
            '--images', '8', '--device', 'cpu', '--csv', str(tmp_path / 'train.csv'), '--resume']
    benchmark.main(argv)
    assert 'x speed of test_efficientnet@32' in capsys.readouterr().out
    rows = read_rows(tmp_path / 'train.csv')
    assert [(row['model'], row['base'], row['steps'], row['rounds']) for row in rows] == [
        (name, 'test_efficientnet@32', '2', '2') for name in ('test_efficientnet', 'test_resnet')]
    for row in rows:
        step_ms, latency_s = float(row['step_ms_median']), float(row['latency_1024_s_median'])
        assert step_ms > 0 and latency_s == pytest.approx(1024 / 4 * step_ms / 1000, rel=1e-3)
        assert float(row['step_ms_min']) <= step_ms <= float(row['step_ms_max'])
        assert float(row['peak_memory_gib']) > 0 and row['versions'].startswith('python 3') and row['commit']
    benchmark.main(argv)
    assert capsys.readouterr().out == f'1 of 1 groups are in {tmp_path / "train.csv"} already\n'
    assert read_rows(tmp_path / 'train.csv') == rows


def test_lists_of_setups_take_turns_of_their_own(capsys, tmp_path):
    argv = ['train', '--models', 'test_resnet@32', '--setups', 'timm', 'eager', '--setups', 'timm', 'foreach',
            '--batch-size', '4', '--rounds', '1', '--device', 'cpu', '--csv', str(tmp_path / 'train.csv'), '--resume']
    benchmark.main(argv)
    assert [row['setup'] for row in read_rows(tmp_path / 'train.csv')] == ['timm', 'eager', 'timm', 'foreach']
    assert capsys.readouterr().out.count('x speed of timm') == 2
    benchmark.main(argv)
    assert capsys.readouterr().out == f'2 of 2 groups are in {tmp_path / "train.csv"} already\n'


def test_a_batch_that_fits_is_found_and_memory_is_measured_without_a_clock(capsys, tmp_path):
    benchmark.main(['memory', '--models', 'test_resnet', 'test_resnet', '--start-batch-size', '1', '--device', 'cpu',
                    '--csv', str(tmp_path / 'memory.csv')])
    row, = read_rows(tmp_path / 'memory.csv')
    assert (row['img_size'], row['batch_size']) == ('160', '1') and 'halved from 1' in row['protocol']
    assert float(row['peak_memory_gib']) > 0 and 'step_ms_median' not in row
    assert 'GiB' in capsys.readouterr().out


def test_backends_of_inference_are_compared(capsys, tmp_path):
    benchmark.main(['infer', '--models', 'test_resnet@32', '--batch-size', '4', '--rounds', '2', '--device', 'cpu',
                    '--backends', 'eager', 'folded', '--csv', str(tmp_path / 'infer.csv')])
    assert [row['setup'] for row in read_rows(tmp_path / 'infer.csv')] == ['eager', 'folded']
    assert 'x speed of eager' in capsys.readouterr().out


@pytest.mark.parametrize(('argv', 'words'), [
    (['loader', '--images', '0'], '--images and --rounds must be at least 1'),
    (['loader', '--data-dir', 'nowhere'], 'data folder nowhere does not exist'),
    (['train'], 'one of the arguments --models --table3 --table7 --table3-and-7 --figure5 is '
     'required'),
    (['train', '--table3', '--batch-size', 'many'], '--batch-size (or auto)'),
    (['train', '--table3', '--rounds', '0'], '--rounds must be at least 1'),
    (['train', '--models', 'resnetrs50x'], 'unknown model resnetrs50x. Did you mean resnetrs50?'),
    (['infer', '--table7', '--device', 'tpu'], 'unknown device tpu: use cpu, cuda or cuda:N'),
    (['train', '--table3', '--csv', f'{__file__}/train.csv'], 'test_benchmark.py/train.csv cannot be written'),
    (['train', '--table3', '--csv', str(Path(__file__).parent)], 'programs cannot be written: Is a directory'),
    (['infer', '--table7', '--backends', 'fast'], 'unknown back-end fast: there are eager'),
])
def test_bad_arguments_are_one_line(capsys, argv, words):
    assert words in failure(benchmark, capsys, *argv)
