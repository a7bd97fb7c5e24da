import contextlib
import dataclasses
import itertools
from pathlib import Path

import pytest
import timm

from timm_rs.benchmark import models as model_speed
from timm_rs.benchmark import worker
from timm_rs.benchmark.models import (
    Protocol,
    inference_setups,
    measure_models,
    model_rows,
    model_table,
    remaining,
    training_setups,
)
from timm_rs.benchmark.points import BOTH_TABLES, FIGURE_5, TABLE_3, TABLE_7
from timm_rs.benchmark.rows import Cost
from timm_rs.benchmark.step_process import precision_of
from timm_rs.errors import UserError
from timm_rs.files import append_rows
from timm_rs.models import PAPER_POINTS

PROTOCOL = Protocol(
    'train', ('eager', 'channels_last'), batch_size=8, search=False, images=20, rounds=2, device='cpu')
GROUPS = [['test_resnet@32'], ['test_efficientnet@32', 'test_resnet@32']]


def made_up_rows(group=GROUPS[1]):
    """Of a group whose second point is twice as fast per image, and whose second setup is a quarter faster."""
    candidates = [PROTOCOL.candidate(point, setup) for point, setup in itertools.product(group, PROTOCOL.setups)]
    candidates = [dataclasses.replace(candidate, batch_size=4) if index < 2 else candidate
                  for index, candidate in enumerate(candidates)]
    seconds = [1.0, 0.8, 1.0, 0.8]
    return model_rows(
        group, PROTOCOL, candidates, [4 << 30, 2 << 30, 2 << 30, 1 << 30],
        [[Cost(cpu, wall), Cost(cpu, wall)] for cpu, wall in zip([2, 2, 1, 1], seconds, strict=True)])


def test_the_groups_are_the_papers_points_and_efficientnets_at_their_published_resolutions():
    points = {point for groups in (TABLE_7, FIGURE_5) for group in groups for point in group}
    ours = {f'{name.partition(".")[0]}@{name.partition("_i")[2].partition("_")[0]}' for name in PAPER_POINTS}
    assert {point for point in points if not point.startswith('tf_')} == ours
    assert {point for group in TABLE_3 for point in group} <= points and sum(map(len, TABLE_7)) == 19
    for name, size in (point.split('@') for point in points if point.startswith('tf_')):
        assert timm.get_pretrained_cfg(name).input_size[-1] == int(size)


def test_both_tables_together_have_every_group_once_and_every_pair():
    assert sorted(BOTH_TABLES) == sorted(TABLE_7)
    assert all(any(group[0] == base and point in group for group in BOTH_TABLES) for base, point in TABLE_3)


def test_a_group_that_cannot_be_measured_does_not_prevent_the_next(monkeypatch, capsys):
    def measure_group(group, protocol, label):
        if group[0] == 'a':
            raise UserError('no room')
        return [dict(group=group, label=label)]
    monkeypatch.setattr(model_speed, 'measure_group', measure_group)
    found = measure_models([(['a'], PROTOCOL), (['b'], PROTOCOL)])
    assert next(found) == [dict(group=['b'], label='group 2/2')]
    with pytest.raises(UserError, match='no room'):
        next(found)
    assert capsys.readouterr().out == 'a with eager and channels_last cannot be measured: no room\n'


@pytest.mark.parametrize(('search', 'device', 'starts'), [
    (True, 'cuda', 1), (False, 'cuda', 1), (True, 'cpu', 2), (False, 'cpu', 1)])
def test_on_a_gpu_a_group_shares_a_worker_and_what_fitted_goes_on(monkeypatch, search, device, starts):
    started, workers = [], []

    class Process:
        peak_memory, start_s = 1 << 30, 1.5

        def __init__(self, candidate, worker=None):
            self.candidate = candidate
            started.append(candidate.setup)
            workers.append(worker)

        def turn(self):
            return Cost(1, 1)

        def close(self):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass
    for module in (model_speed, worker):
        monkeypatch.setattr(module, 'StepProcess', Process)
    monkeypatch.setattr(model_speed, 'Worker', lambda: contextlib.nullcontext('the worker'))
    protocol = dataclasses.replace(PROTOCOL, search=search, device=device)
    assert [row['start_s'] for row in model_speed.measure_group(GROUPS[0], protocol)] == [1.5, 1.5]
    assert started == list(PROTOCOL.setups) * starts
    assert set(workers) == {'the worker' if device == 'cuda' else None}


def test_ratios_are_per_image_to_the_first_point_and_to_the_first_setup():
    found = made_up_rows()
    assert [row['speed_ratio_to_base_median'] for row in found] == [1, 1, 2, 2]
    assert [row['speed_ratio_to_first_setup_median'] for row in found] == [1, 1.25, 1, 1.25]
    assert [row['cpu_ratio_to_base_median'] for row in found] == [1, 1, 4, 4]
    assert [row['memory_ratio_to_base'] for row in found] == [1, 1, 4, 4]
    assert [row['memory_ratio_to_first_setup'] for row in found] == [1, 2, 1, 2]
    assert [row['latency_1024_s_median'] for row in found] == [256, 204.8, 128, 102.4]
    assert (found[0]['step_ms_median'], found[0]['image_ms_median'], found[0]['images_per_s_median']) == (1000, 250, 4)
    assert all(row['base'] == 'test_efficientnet@32' and row['command'] and row['versions'] for row in found)


def test_the_table_for_people_has_a_line_per_row_and_names_what_ratios_are_to():
    lines = model_table(made_up_rows()).splitlines()
    assert len(lines) == 4 and 'x speed' not in lines[0]
    assert lines[1].endswith('1.25 (1.25-1.25) x speed of eager')
    assert '2.00 (2.00-2.00) x speed of test_efficientnet@32' in lines[2]


def test_resume_leaves_out_groups_that_have_all_their_rows(tmp_path):
    path = tmp_path / 'rows.csv'
    assert remaining(GROUPS, PROTOCOL, None) == remaining(GROUPS, PROTOCOL, path) == GROUPS
    append_rows(path, made_up_rows()[:3])
    assert remaining(GROUPS, PROTOCOL, path) == GROUPS
    append_rows(path, made_up_rows()[3:])
    assert remaining(GROUPS, PROTOCOL, path) == GROUPS[:1]  # its point has a row, but in another group


@pytest.mark.parametrize('change', [
    dict(batch_size=4), dict(search=True), dict(images=0), dict(rounds=3), dict(setups=('eager', 'channels_last+bf16')),
    dict(recipe='my.yaml'), dict(work='infer', setups=('eager', 'channels_last')), dict(device='cuda')])
def test_resume_measures_again_what_was_measured_otherwise(tmp_path, change):
    append_rows(tmp_path / 'rows.csv', made_up_rows())
    assert remaining(GROUPS[1:], dataclasses.replace(PROTOCOL, **change), tmp_path / 'rows.csv') == GROUPS[1:]


def test_resume_measures_again_on_other_hardware(tmp_path):
    append_rows(tmp_path / 'rows.csv', [row | dict(hardware='an abacus') for row in made_up_rows()])
    assert remaining(GROUPS[1:], PROTOCOL, tmp_path / 'rows.csv') == GROUPS[1:]


def test_rows_that_cannot_be_read_are_named(tmp_path):
    Path(tmp_path / 'rows.csv').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='rows.csv cannot be read'):
        remaining(GROUPS, PROTOCOL, tmp_path / 'rows.csv')


def test_precision_joins_every_setup_once():
    assert training_setups(['eager', 'eager+bf16', 'timm'], 'fp32') == ('eager', 'eager+bf16', 'timm')
    assert training_setups(['eager', 'eager+bf16'], 'bf16') == ('eager+bf16',)
    assert training_setups(None, 'bf16') == ('channels_last+bf16',)


def test_inference_compares_eager_with_the_backends_of_the_precision():
    for precision in ('fp32', 'bf16', 'int8'):
        first, *others = inference_setups(None, precision, 'cpu')
        assert first == 'eager' and all(precision_of(name) == precision for name in others)
    assert inference_setups(None, 'fp32', 'cpu')[1:3] == ('channels_last', 'folded')
    assert inference_setups(['folded'], 'bf16', 'cpu') == ('folded',)


@pytest.mark.parametrize(('point', 'words'), [
    ('test_resnet', 'test_resnet is not MODEL@SIZE'),
    ('test_resnet@0', 'is not MODEL@SIZE'),
    ('resnetrs3d@0x32', 'of clips MODEL@FRAMESxSIZE'),
    ('test_resnets@32', 'unknown model test_resnets. Did you mean test_resnet'),
])
def test_what_is_no_point_is_refused(point, words):
    with pytest.raises(UserError, match=words):
        PROTOCOL.candidate(point, 'eager')


@pytest.mark.parametrize(('setups', 'device', 'is_emulated', 'is_warned'), [
    (('eager', 'eager+bf16'), 'cpu', True, True), (('folded_bf16',), 'cpu', True, True),
    (('eager',), 'cpu', True, False), (('eager+bf16',), 'cpu', False, False), (('eager+bf16',), 'cuda', True, False)])
def test_emulated_bfloat16_is_announced(monkeypatch, setups, device, is_emulated, is_warned):
    monkeypatch.setattr(model_speed, 'cpu_emulates_bfloat16', lambda: is_emulated)
    assert bool(dataclasses.replace(PROTOCOL, setups=setups, device=device).warning()) == is_warned
