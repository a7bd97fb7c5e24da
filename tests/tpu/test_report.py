import pytest
from tpu_compilers import COMPILED, HLO

from timm_rs.benchmark.rows import GIB
from timm_rs.tpu.chips import find_tpu
from timm_rs.tpu.report import (
    TABLE3,
    compare_with_table_3,
    compiled_costs,
    count_collectives,
    guess_largest_batch,
    hbm_bytes,
    largest_batch,
)

V5E = find_tpu('v5e')


# ---- rows -------------------------------------------------------------------------------------------------------

def test_exchanges_count_once_however_often_the_text_has_them():
    assert count_collectives(HLO) == {
        'all-reduce': 2, 'all-gather': 2, 'reduce-scatter': 0, 'all-to-all': 0, 'collective-permute': 0}


def test_memory_counts_what_results_take_over_once():
    assert hbm_bytes(dict(argument_bytes=100, output_bytes=60, alias_bytes=50, temp_bytes=7,
                          generated_code_bytes=1)) == 118


def test_floors_are_work_over_peaks():
    result = COMPILED | dict(flops=V5E.peak_flops / 10, bytes_accessed=V5E.hbm_bytes_per_s / 5, hlo='')
    row = compiled_costs(result, V5E, batch_size=32)
    assert (row['compute_floor_ms'], row['bandwidth_floor_ms']) == (100, 200)
    assert (row['images_per_s_compute_bound'], row['images_per_s_bandwidth_bound']) == (320, 160)


def test_row_has_memory_in_gib_and_exchanges():
    row = compiled_costs(COMPILED | dict(temp_bytes=3 * GIB, argument_bytes=GIB, output_bytes=GIB, alias_bytes=GIB // 2,
                                   generated_code_bytes=0, hlo=HLO), V5E, batch_size=8)
    assert row['fits']
    assert (row['temporaries_gib'], row['arguments_gib'], row['results_gib']) == (3, 1, 0.5)
    assert (row['hbm_gib'], row['hbm_limit_gib']) == (4.5, 15.75)
    assert (row['all_reduce'], row['all_gather'], row['all_to_all']) == (2, 2, 0)


def test_row_of_what_does_not_fit_says_how_much_is_needed():
    row = compiled_costs(dict(needed_bytes=20 * GIB, hbm_bytes=15.75 * GIB, compile_s=5.0), V5E, batch_size=8)
    assert row == dict(fits=False, temporaries_gib=20, hbm_limit_gib=15.75, compile_s=5)


# ---- the largest batch ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('limit', [0, 7, 8, 9, 64, 100, 1000])
@pytest.mark.parametrize('guess', [8, 96, 2000])
def test_largest_batch_is_the_last_multiple_of_8_that_fits(limit, guess):
    asked = []

    def fits(batch):
        asked.append(batch)
        return batch <= limit

    assert largest_batch(fits, guess) == limit // 8 * 8
    assert len(asked) == len(set(asked)) and 0 not in asked


def test_a_good_guess_takes_few_compilations_and_what_is_known_none():
    asked = []
    assert largest_batch(lambda batch: asked.append(batch) or batch <= 200, 200, {208: False}) == 200
    assert asked == [200]


def test_guess_fills_what_memory_is_left():
    result = COMPILED | dict(
        temp_bytes=2 * GIB, argument_bytes=1.75 * GIB, output_bytes=0, alias_bytes=0, generated_code_bytes=0)
    assert guess_largest_batch(result, V5E, batch_size=64) == 7 * 64
    assert guess_largest_batch(dict(needed_bytes=4.0, hbm_bytes=1.0), V5E, batch_size=64) == 16


# ---- sentences --------------------------------------------------------------------------------------------------

def test_comparison_keeps_the_papers_numbers_apart_from_ours():
    def row(factor):
        return compiled_costs({name: value * factor if isinstance(value, (int, float)) else value
                         for name, value in COMPILED.items()} | dict(hlo=HLO), find_tpu('v3'), 32)
    rows = dict(zip(TABLE3, (row(1), row(3), row(1), dict(fits=False, temporaries_gib=0.02)), strict=True))
    text = compare_with_table_3(rows)
    papers, ours = text.split('TPU compiler, not a run')
    assert '7.3 GB' in papers and '28.3 GB' in papers
    lines = [line.split() for line in ours.splitlines()[1:]]
    assert lines[0] == ['ResNet-RS-350', 'memory', '2.27', '3.00']
    assert lines[1][-2:] == ['2.73', '3.00']
    assert ours.splitlines()[-1].endswith('out of memory')
