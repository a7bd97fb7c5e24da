"""Accuracy against latency, and the paper's numbers behind it."""
import csv

import pytest
from conftest import EXPECTED

from timm_rs.errors import UserError
from timm_rs.models import PAPER_POINTS
from timm_rs.study.paper import PAPER, published
from timm_rs.study.pareto import Point, Source, dominated, measured_panels, paper_panel, speedups, timm_setup

TIMM = PAPER.with_name('timm_benchmarks.csv')
RECIPES = EXPECTED / 'paper_table.csv'


def point(family, label, seconds, top1, digitised=False):
    return Point(family, label, (seconds, seconds * 0.9, seconds * 1.1), top1, digitised)


def write_rows(path, *rows):
    base = dict(work='train', setup='eager', precision='fp32', device='cpu', hardware='a CPU')
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, [*base, 'model', 'img_size', *(
            f'latency_1024_s_{name}' for name in ('median', 'min', 'max'))])
        writer.writeheader()
        for model, size, seconds, *changes in rows:
            writer.writerow(base | dict(model=model, img_size=size, latency_1024_s_median=seconds,
                                        latency_1024_s_min=seconds, latency_1024_s_max=seconds) | dict(*changes))
    return path


def test_papers_table_has_all_points_and_agrees_with_the_recipes():
    rows = published()
    assert {(name.partition('.')[0], name.partition('_i')[2].partition('_')[0]) for name in PAPER_POINTS} <= set(rows)
    assert sum(row['family'] == 'EfficientNet' for row in rows.values()) == 8
    with open(RECIPES, newline='') as file:
        for recipe in csv.DictReader(file):
            row = rows.get((recipe['network'], recipe['img_size']))
            if row and row['source'] == 'Table 7' and recipe['source'].startswith('Tables 7'):
                assert float(row['top1']) == float(recipe['top1']), recipe['recipe']


def test_papers_table_says_what_was_read_off_a_figure():
    for row in published().values():
        expected = 'digitised' if row['source'] == 'Figure 5' else 'printed'
        assert (row['top1_is'], row['latency_is']) == (expected, expected)
        assert bool(row['v100_fp32_s']) == (expected == 'printed')


def test_speedups_of_the_papers_own_latencies_are_those_it_prints():
    by_clock = {clock: {(base.label, other.label): round(ratio, 1) for base, other, ratio in speedups(
        paper_panel(clock).points)} for clock in ('tpuv3', 'v100')}
    pairs = [('B2@260', '101@160'), ('B4@380', '152@224'), ('B5@456', '270@256'), ('B6@528', '350@256')]
    assert by_clock['v100'] == dict(zip(pairs, (2.1, 2.7, 2.2, 3.3), strict=True))  # Table 7
    assert by_clock['tpuv3'] == dict(zip(pairs, (1.8, 2.2, 1.9, 2.7), strict=True))


def test_dominated_is_what_another_beats_in_both():
    best, equal, worse, fast = (point('ResNet-RS', label, seconds, top1) for label, seconds, top1 in (
        ('a', 1, 80), ('b', 1, 80), ('c', 1, 79), ('d', 0.5, 70)))
    assert dominated([best, equal, worse, fast]) == {worse}


def test_speedup_pairs_have_the_nearest_accuracy_and_may_be_slower():
    base = point('EfficientNet', 'B', 2, 80)
    near, far = point('ResNet-RS', 'near', 4, 80.1), point('ResNet-RS', 'far', 1, 80.2)
    assert speedups([base, near, far]) == [(base, near, 0.5)]
    assert speedups([base, point('ResNet-RS', 'too far', 1, 80.3)]) == []


def test_measured_latencies_meet_published_accuracies_in_a_panel_per_kind(tmp_path):
    one = write_rows(tmp_path / 'one.csv', ('tf_efficientnet_b2', 260, 9.0), ('resnetrs_101.tf_i160_in1k', 160, 6.0),
                     ('resnet50', 224, 5.0), ('resnetrs_101', 160, 3.0, [('precision', 'bf16')]))
    two = write_rows(tmp_path / 'two.csv', ('resnetrs_101', 160, 4.5))  # measured again
    panels, unknown = measured_panels([Source(one), Source(two)])
    assert unknown == ['resnet50@224']
    assert [len(panel.points) for panel in panels] == [2, 1]
    (_, other, ratio), = speedups(panels[0].points)
    assert (other.label, other.top1, ratio) == ('101@160', 80.3, 2)
    assert panels[0].title == 'measured here: training step, fp32, eager\na CPU'
    kept, _ = measured_panels([Source(one, dict(precision='bf16'))])
    assert [panel.title.partition('\n')[0] for panel in kept] == ['measured here: training step, bf16, eager']


@pytest.mark.parametrize(('content', 'words'), [
    ('', 'has no rows'),
    ('model,img_size\nresnetrs_50,160\n', 'has no column latency_1024_s_median: give a CSV of tools/benchmark.py'),
    ('model,img_size,latency_1024_s_median\nresnetrs_50,160,fast\n', 'the latency of resnetrs_50@160 is no number'),
    ('model,img_size,latency_1024_s_median,latency_1024_s_min,latency_1024_s_max\nresnetrs_50,160,-1,-1,-1\n',
     'resnetrs_50@160 has the latencies -1.0'),
    ('model,img_size,latency_1024_s_median\nresnet50,224,1\n', 'no rows to draw'),
])
def test_files_that_cannot_be_drawn_are_named(content, words, tmp_path):
    (tmp_path / 'x.csv').write_text(content)
    with pytest.raises(UserError, match=words):
        measured_panels([Source(tmp_path / 'x.csv')])


def test_every_file_chooses_its_own_rows(tmp_path):
    one = write_rows(tmp_path / 'one.csv', ('resnetrs_50', 160, 2), ('resnetrs_101', 160, 3, [('setup', 'folded')]))
    panels, _ = measured_panels([Source(one, dict(setup='folded')), Source(one, dict(setup='eager'))])
    assert [[point.label for point in panel.points] for panel in panels] == [['101@160'], ['50@160']]
    with pytest.raises(UserError, match='one.csv has no rows to draw: none with .* and setup compiled'):
        measured_panels([Source(one), Source(one, dict(setup='compiled'))])
    with pytest.raises(UserError, match='one.csv has no column set to choose rows by'):
        measured_panels([Source(one, dict(set='eager'))])


def test_a_file_of_timms_gives_the_panel_that_its_rows_give_in_the_excerpt(tmp_path):
    name = 'benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv'
    with open(TIMM, newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['file'] == name]
    columns = ['model', 'train_samples_per_sec', 'train_img_size']
    (tmp_path / name).write_text('\n'.join(map(','.join, [
        columns, *([row[column] for column in columns] for row in rows), ('resnet50', '1', '224'),
        ('resnetrs50.tf_in1k', '', '160')])))
    panels, unknown = measured_panels([Source(TIMM, dict(work='train'), timm=True)])
    assert measured_panels([Source(tmp_path / name, timm=True)]) == (panels, unknown)
    assert unknown == ['resnetrs_350@288']  # of other families nothing is said
    assert panels[0].title == "measured by timm's author: training step, amp, nhwc, torch 1.12\nRTX 3090"
    by_label = {point.label: point for point in panels[0].points}
    assert by_label['152@256'].latency == (1024 / 282.26,) * 3
    assert [(base.label, other.label, round(ratio, 2)) for base, other, ratio in speedups(panels[0].points)] == [
        ('B4@380', '152@256', 1.17), ('B5@456', '270@256', 1.29), ('B6@528', '270@256', 2.29)]


def test_excerpt_of_timms_numbers_says_where_each_is_from():
    with open(TIMM, newline='') as file:
        rows = list(csv.DictReader(file))
    assert len({row['file'] for row in rows}) == 4
    for row in rows:
        setup = timm_setup(row['file'])
        assert {name: row[name] for name in ('hardware', 'torch', 'precision')}.items() <= setup.items()
        assert row['layout'] + '+compile' * (row['compiled'] == 'True') == setup['setup']
        assert f"by {row['measured_by']}" == setup['measured'] == "by timm's author"
        assert len(row['commit']) == 12


@pytest.mark.parametrize(('name', 'words'), [
    ('benchmark-infer-amp-nchw-pt291-cu128-4090-dynamo.csv', ('RTX 4090', 'nchw+compile', 'amp', '2.9.1')),
    ('benchmark-infer-amp-nhwc-pt210-cu121-rtx3090.csv', ('RTX 3090', 'nhwc', 'amp', '2.1.0')),
    ('benchmark-infer-fp32-nchw-pt240-cpu-i9_10940x-dynamo.csv', ('cpu-i9_10940x', 'nchw+compile', 'fp32', '2.4.0')),
    ('mine.csv', ('mine.csv', '', '', '')),
])
def test_names_of_timms_files_say_what_was_measured_on(name, words):
    setup = timm_setup(name)
    assert tuple(setup[column] for column in ('hardware', 'setup', 'precision', 'torch')) == words
    assert setup['measured'] == ("with timm's benchmark.py" if name == 'mine.csv' else "by timm's author")


HEAD = 'model,infer_img_size,infer_samples_per_sec\n'


@pytest.mark.parametrize(('content', 'words'), [
    ('', 'x.csv has no rows'),
    ('model,img_size,top1\nresnetrs50,160,77\n', "x.csv lacks the columns of timm's benchmark.py"),
    (HEAD + 'resnetrs50,160,fast\n', 'x.csv is damaged: resnetrs50@160 has fast images per second'),
    (HEAD + 'resnetrs50,160,0\n', 'has 0 images per second'),
    (HEAD + 'resnetrs50,160,nan\n', 'has nan images per second'),
    (HEAD + 'resnetrs50,160,\n', 'x.csv has no rows to draw'),
    (HEAD + 'resnet50,224,100\n', 'x.csv has no rows to draw'),
    (HEAD + 'resnetrs50\n', 'x.csv has no rows to draw'),
])
def test_files_that_are_none_of_timms_are_named(content, words, tmp_path):
    (tmp_path / 'x.csv').write_text(content)
    with pytest.raises(UserError, match=words):
        measured_panels([Source(tmp_path / 'x.csv', timm=True)])


def test_papers_numbers_have_a_source_each():
    with open(PAPER, newline='') as file:
        assert all(row['source'] in ('Table 3', 'Table 7', 'Figure 5') for row in csv.DictReader(file))
