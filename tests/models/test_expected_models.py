"""Every registered model against tests/expected/expected_models.csv, networks for clips against expected_models_3d.csv.

`params`, `gflops` and so on there follow from the architecture; `table7_*` are what the paper prints.
"""
import csv
import functools

import pytest
import timm
import torch
from conftest import EXPECTED, ROOT

from timm_rs.models import PAPER_POINTS
from timm_rs.models.complexity import measure_complexity

with open(EXPECTED / 'expected_models.csv', newline='') as file:
    ROWS = list(csv.DictReader(file))
with open(EXPECTED / 'expected_models_3d.csv', newline='') as file:
    CLIP_ROWS = list(csv.DictReader(file))
TABLE_7 = [row for row in ROWS if row['table7_params_m']]
# docs/models.md's table of costs, as tools/flops.py prints it: cells by model
TABLE = {line.split()[1]: line.split()[3::2] for line in (ROOT / 'docs/models.md').read_text().splitlines()
         if line.split()[1:2] and line.split()[1] in PAPER_POINTS}
ROW_IDS = [' '.join(filter(None, (row['model'], row['kwargs']))) for row in ROWS]


LARGE = 5  # gigaflops from which computing them takes seconds


@functools.lru_cache(maxsize=1)  # the resolutions of one architecture follow each other
def build(architecture, kwargs):
    """The network on the meta device."""
    kwargs = {name: float(value) if name == 'width' else int(value)
              for name, value in (pair.split('=') for pair in kwargs.split())}
    with torch.device('meta'):
        return timm.create_model(architecture, **kwargs)


def check_cost(cost, row):
    assert cost.params == int(row['params'])
    assert round(2 * cost.macs / 1e9, 2) == float(row['gflops'])
    assert cost.uncounted == {}
    if row['model'] in TABLE:
        assert TABLE[row['model']] == [row['img_size'], *(f'{number:.3f}' for number in (
            cost.params / 1e6, cost.macs / 1e9, 2 * cost.macs / 1e9, cost.activations / 1e6))]


@pytest.mark.parametrize('row', ROWS, ids=ROW_IDS)
def test_parameters_and_flops_are_as_expected_by_torchs_counter(row):
    check_cost(measure_complexity(build(row['model'].partition('.')[0], row['kwargs']), int(row['img_size'])), row)


@pytest.mark.parametrize('row', [
    pytest.param(row, id=name, marks=[pytest.mark.long] if float(row['gflops']) > LARGE else [])
    for row, name in zip(ROWS, ROW_IDS, strict=True)])
def test_parameters_and_flops_are_as_expected_by_fvcores(row):
    model = build(row['model'].partition('.')[0], row['kwargs']).to_empty(device='cpu')
    build.cache_clear()  # it has moved
    check_cost(measure_complexity(model, int(row['img_size'])), row)


def test_the_table_of_costs_has_all_points_of_the_paper():
    assert list(TABLE) == list(PAPER_POINTS) and set(TABLE) <= {row['model'] for row in ROWS}


@pytest.mark.parametrize('row', CLIP_ROWS, ids=[' '.join(list(row.values())[:4]) for row in CLIP_ROWS])
def test_networks_for_clips_cost_what_is_expected(row):
    kwargs = {name: float(value) for name, value in (pair.split('=') for pair in row['kwargs'].split())}
    with torch.device('meta'):
        model = timm.create_model(row['model'], **kwargs)
    cost = measure_complexity(model, int(row['img_size']), num_frames=int(row['num_frames']))
    assert cost.params == int(row['params'])
    assert (f'{cost.macs / 1e9:.2f}', f'{cost.activations / 1e6:.1f}') == (row['gmacs'], row['macts'])


@pytest.mark.parametrize('row', TABLE_7, ids=[row['model'] for row in TABLE_7])
def test_expected_figures_are_those_that_table_7_prints(row):
    assert_prints_as(int(row['params']) / 1e6, row['table7_params_m'])
    assert_prints_as(float(row['gflops']), row['table7_gflops'])


def assert_prints_as(value, printed):
    decimals = len(printed.partition('.')[2])
    # First to one decimal: ResNet-RS-152 at 192 pixels has 17.49 and the table prints 18.
    rounded_up = int(round(value, 1) * 10**decimals + 0.5) / 10**decimals
    assert rounded_up == float(printed)


def test_every_registered_model_has_an_expected_row():
    ours = {name for name in timm.list_models(module=('resnet_rs', 'resnet_rs_3d', 'efficientnet_rs'))
            if timm.models.model_entrypoint(name).__module__.startswith('timm_rs.')}
    assert len(ours) == 16 + 9
    assert ours == {row['model'].partition('.')[0] for row in ROWS + CLIP_ROWS}


def test_every_paper_point_has_an_expected_row_at_its_resolution():
    assert len(TABLE_7) == 11
    assert len(PAPER_POINTS) == 11 + 8
    sizes = {row['model']: int(row['img_size']) for row in ROWS}
    for point in PAPER_POINTS:
        cfg = timm.models.get_pretrained_cfg(point)
        assert cfg.input_size == cfg.test_input_size == (3, sizes[point], sizes[point])
