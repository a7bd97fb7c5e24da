import pytest
from conftest import failure, load_tool

HEADER = 'work,setup,precision,hardware,model,img_size,latency_1024_s_median,latency_1024_s_min,latency_1024_s_max\n'


@pytest.fixture(scope='module')
def pareto():
    return load_tool('pareto')


def test_rows_become_a_figure_and_its_speedups_lines(pareto, tmp_path, capsys):
    rows = [('tf_efficientnet_b4,380', 30), ('resnetrs_152,224', 12), ('resnet50,224', 3)]
    (tmp_path / 'train.csv').write_text(HEADER + ''.join(
        f'train,eager,fp32,a CPU,{point},{seconds},{seconds},{seconds}\n' for point, seconds in rows))
    pareto.main([str(tmp_path / 'train.csv'), '--output', str(tmp_path / 'f.svg'), '--paper-latency', 'v100'])
    out, err = capsys.readouterr()
    assert err == 'left out, for want of a published accuracy: resnet50@224\n'
    measured, line, papers, *_ = out.splitlines()
    assert measured == 'measured here: training step, fp32, eager, a CPU'
    assert line == '  ResNet-RS 152@224 (82.8 %) is 2.50 times as fast as EfficientNet B4@380 (82.9 %)'
    assert papers == "not measured here: the paper's training step, V100, fp32"
    assert (tmp_path / 'f.svg').read_text().count('<svg') == 1


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], 'nothing to draw: give a CSV of tools/benchmark.py'),
    (['gone.csv'], 'gone.csv cannot be read: No such file or directory'),
    (['--paper-latency', 'v100', '--output', 'x.pdf'], 'ends with .png or .svg'),
])
def test_what_cannot_be_drawn_is_one_line(pareto, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in failure(pareto, capsys, '--output', 'x.svg', *arguments)
