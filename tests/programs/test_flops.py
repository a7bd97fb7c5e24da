import csv
import subprocess
import sys

import pytest
from conftest import ROOT, failure, load_tool

from timm_rs.models import PAPER_POINTS
from timm_rs.models.complexity import Complexity

SCRIPT = ROOT / 'tools' / 'flops.py'
SMALL = ['resnetrs', '--depth', '26', '--width', '0.25']
HEADER = ['model', 'img_size', 'params_m', 'gmacs', 'gflops', 'macts']


@pytest.fixture(scope='module')
def flops():
    return load_tool('flops')


def test_row_has_the_figures_of_the_scaling_grid(flops, capsys):
    flops.main(SMALL)
    header, row = (line.split('  ') for line in capsys.readouterr().out.splitlines())
    assert [cell.strip() for cell in header if cell] == HEADER
    model, img_size, params_m, gmacs, gflops, macts = (cell.strip() for cell in row if cell.strip())
    assert (model, img_size, params_m) == ('resnetrs depth=26 width=0.25', '224', '1.745')
    assert float(gflops) == pytest.approx(0.34, abs=0.005)
    assert float(gmacs) == pytest.approx(float(gflops) / 2, abs=0.001)
    assert float(macts) > 0


def test_csv_holds_what_the_markdown_table_shows(flops, capsys, tmp_path):
    flops.main(['test_resnet', 'test_vit', '--markdown', '--csv', str(tmp_path / 'flops.csv')])
    header, rule, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in [header, *lines]]
    assert set(rule) == set('|-: ')
    with open(tmp_path / 'flops.csv', newline='') as file:
        assert list(csv.reader(file)) == cells
    assert [row[0] for row in cells] == ['model', 'test_resnet', 'test_vit']


def test_img_size_reaches_networks_of_fixed_size_too(flops, capsys):
    flops.main(['test_vit', '--img-size', '64'])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ['test_vit', '64']


@pytest.mark.parametrize(('argv', 'size', 'gmacs'), [
    ([], '32x224x224', 88.02), (['--img-size', '256'], '32x256x256', 114.96),
    (['--num-frames', '64'], '64x224x224', 176.03)])
def test_clips_are_counted_by_their_frames(flops, capsys, argv, size, gmacs):
    flops.main(['resnetrs3d_50', *argv])
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ['resnetrs3d_50', size, '42.555'] and float(row[3]) == pytest.approx(gmacs, abs=0.01)


def test_frames_are_for_networks_that_take_clips(flops, capsys):
    assert 'num_frames=16: the model takes images' in failure(flops, capsys, 'test_resnet', '--num-frames', 16)
    assert 'num_frames=0: give at least 1' in failure(flops, capsys, 'resnetrs3d_50', '--num-frames', 0)


def test_without_model_the_papers_points_are_counted(flops, capsys, monkeypatch):
    cost = Complexity(params=2_000_000, macs=1_500_000_000, activations=3_000_000, uncounted={})
    monkeypatch.setattr(flops, 'count', lambda *arguments: (cost, '160'))
    flops.main([])
    _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [row[0] for row in rows] == list(PAPER_POINTS)
    assert rows[0][1:] == ['160', '2.000', '1.500', '3.000', '3.000']


def test_what_is_not_counted_is_one_line_on_stderr(flops, capsys, monkeypatch):
    uncounted = {'aten::lstm': 36, 'aten::fft_fft2': 2}
    cost = Complexity(params=1, macs=1, activations=1, uncounted=uncounted)
    monkeypatch.setattr(flops, 'count', lambda *arguments: (cost, '160'))
    flops.main(['resnet18'])
    assert capsys.readouterr().err == 'resnet18: not counted: aten::fft_fft2 x2, aten::lstm x36\n'


def test_unknown_model_names_the_nearest(flops, capsys):
    error = failure(flops, capsys, 'resnetrs_51')
    assert error.startswith("error: unknown model 'resnetrs_51'")
    assert 'resnetrs_50' in error


def test_unknown_tag_names_the_nearest(flops, capsys):
    assert 'resnetrs_50.tf_i160_in1k' in failure(flops, capsys, 'resnetrs_50.tf_i161_in1k')


@pytest.mark.parametrize('size', [0, -224])
def test_img_size_must_be_positive(flops, capsys, size):
    assert f'--img-size {size}: give a positive' in failure(flops, capsys, 'resnet18', '--img-size', size)


@pytest.mark.parametrize('models', [[], ['resnetrs_50'], ['resnetrs', 'resnetrs_50']])
def test_width_and_depth_are_for_the_generic_model(flops, capsys, models):
    assert 'only for resnetrs or resnetrs3d' in failure(flops, capsys, *models, '--width', 0.5, '--depth', 26)


@pytest.mark.parametrize(('argv', 'message'), [
    (['--depth', 51], 'depth=51 is unknown'), (['--width', 0], 'use a width of at least 1/32')])
def test_impossible_networks_are_one_line(flops, capsys, argv, message):
    assert message in failure(flops, capsys, 'resnetrs', *argv)


def test_unwritable_csv_is_found_before_anything_is_counted(flops, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(flops, 'count', lambda *args: pytest.fail('counted first'))
    path = tmp_path / 'missing' / 'flops.csv'
    error = failure(flops, capsys, 'resnet18', '--csv', path)
    assert error == f'error: --csv {path}: No such file or directory\n'
    assert 'is a folder' in failure(flops, capsys, 'resnet18', '--csv', tmp_path)


def test_failure_keeps_the_old_csv(flops, capsys, tmp_path):
    path = tmp_path / 'flops.csv'
    path.write_text('old')
    failure(flops, capsys, 'resnetrs', '--depth', 51, '--csv', path)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_script_runs_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, '-W', 'error', SCRIPT, *SMALL], cwd=tmp_path, capture_output=True,
                          text=True, check=False, env={'PYTHONPATH': str(SCRIPT.parents[1])})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith('resnetrs depth=26 width=0.25')
    assert done.stderr == ''  # no progress bar: not a terminal
