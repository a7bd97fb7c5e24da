import csv
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import failure, load_tool

from timm_rs.benchmark.rows import Cost, commit_of, photo, ratios, spread, take_turns, write_photos
from timm_rs.errors import UserError
from timm_rs.files import append_rows

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
    names = ['timm', 'fast', 'fast, decode scaled', 'fast, released crops', 'fast, packed']
    assert [row['loader'] for row in rows] == names
    assert all(re.search(rf'^{name} +[0-9.]+ \(', out, re.M) for name in names)
    assert float(rows[0]['cpu_ratio_to_timm_median']) == 1 and float(rows[1]['cpu_ms_min']) > 0
    assert float(rows[1]['psnr_db_median']) > 50
    assert all(row['versions'].startswith('python 3') and row['hardware'] and row['commit'] for row in rows)


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


def test_rows_join_those_of_before(tmp_path):
    path = tmp_path / 'rows.csv'
    append_rows(path, [dict(a=1)])
    append_rows(path, [dict(a=2, b='x, y')])
    assert path.read_text() == 'a,b\n1,\n2,"x, y"\n'
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='rows.csv cannot be written'):
        append_rows(tmp_path / 'file/rows.csv', [dict(a=1)])


def test_candidates_take_turns_and_warm_up():
    calls = []
    costs = take_turns({'a': lambda: calls.append('a') or 2, 'b': lambda: calls.append('b') or 1}, rounds=3)
    assert calls == ['a', 'b'] * 4
    assert {name: len(own) for name, own in costs.items()} == {'a': 3, 'b': 3}


def test_ratios_are_taken_within_rounds():
    slow, fast = [Cost(4, 8), Cost(9, 9)], [Cost(2, 2), Cost(3, 1)]
    assert ratios(slow, fast, 'cpu') == [2, 3] and ratios(slow, fast, 'wall') == [4, 9]
    assert spread([3.0, 1.0, 2.00004]) == dict(median=2.0, min=1.0, max=3.0)


def test_photos_are_the_same_every_time_and_as_large_as_imagenets(tmp_path):
    folder = write_photos(3, tmp_path / 'photos')
    files = sorted(folder.glob('train/0/*.jpg'))
    assert len(files) == 3 and all(80_000 < path.stat().st_size < 130_000 for path in files)
    stamp = folder.stat().st_mtime_ns
    assert write_photos(3, folder).stat().st_mtime_ns == stamp
    assert len(list(write_photos(2, folder).glob('train/0/*'))) == 2
    assert photo(np.random.default_rng(0), 10, 12).shape == (10, 12, 3)


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


def test_rows_that_are_added_do_not_make_the_code_dirty(tmp_path):
    def git(*arguments):
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments], cwd=tmp_path, check=True)
    assert commit_of(tmp_path) == 'unknown'
    (tmp_path / 'results').mkdir()
    for name in ('train.py', 'results/rows.csv'):
        (tmp_path / name).write_text('1\n')
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'a')
    (tmp_path / 'results/rows.csv').write_text('1\n2\n')
    assert re.fullmatch('[0-9a-f]+', commit_of(tmp_path))
    (tmp_path / 'train.py').write_text('2\n')
    assert commit_of(tmp_path).endswith('-dirty')
