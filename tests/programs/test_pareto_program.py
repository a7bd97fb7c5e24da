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
    assert err == 'left out, because no accuracy was published for them: resnet50@224\n'
    measured, line, papers, *_ = out.splitlines()
    assert measured == 'measured here: training step, fp32, eager, a CPU'
    assert line == '  ResNet-RS 152@224 (82.8 %) is 2.50 times as fast as EfficientNet B4@380 (82.9 %)'
    assert papers == "not measured here: the paper's training step, V100, fp32"
    assert (tmp_path / 'f.svg').read_text().count('<svg') == 1


def test_timms_files_have_panels_between_ours_and_the_papers(pareto, tmp_path, capsys):
    (tmp_path / 'train.csv').write_text(HEADER + ''.join(
        f'train,{setup},fp32,a CPU,resnetrs_50,160,9,9,9\n' for setup in ('eager', 'fused')))
    for name, model in (('a.csv', 'resnetrs50'), ('b.csv', 'tf_efficientnet_b0'), ('c.csv', 'resnetrs50')):
        size = 160 if model == 'resnetrs50' else 224
        (tmp_path / name).write_text('model,infer_img_size,infer_samples_per_sec,layout\n'
                                     f'{model},{size},100,nhwc\n{model},32,100,nhwc\n')
    a, b, c = (str(tmp_path / name) for name in ('a.csv', 'b.csv', 'c.csv'))
    pareto.main([str(tmp_path / 'train.csv'), 'setup=fused', '--timm-benchmark', a, b, 'layout=nhwc',
                 '--timm-benchmark', c, '--paper-latency', 'v100', '--output', str(tmp_path / 'f.svg')])
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if 'measured' in line] == [
        'measured here: training step, fp32, fused, a CPU',
        *(f"measured with timm's benchmark.py: inference, {name}.csv" for name in 'abc'),
        "not measured here: the paper's training step, V100, fp32"]
    assert err == ('left out, because no accuracy was published for them: resnetrs_50@32, tf_efficientnet_b0@32\n')


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], 'nothing to draw: give a CSV of tools/benchmark.py'),
    (['gone.csv'], 'gone.csv cannot be read: No such file or directory'),
    (['setup=eager'], "'setup=eager' stands before all files"),
    (['--timm-benchmark', 'gone.csv', 'work=train'], 'gone.csv cannot be read: No such file or directory'),
    (['--paper-latency', 'v100', '--output', 'x.pdf'], 'ends with .png or .svg'),
])
def test_what_cannot_be_drawn_is_one_line(pareto, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in failure(pareto, capsys, '--output', 'x.svg', *arguments)
