"""What start-up takes is told apart by how images were listed, and of every process."""

import csv
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from conftest import failure, load_tool

from timm_rs.benchmark import startup
from timm_rs.data import listing_cache

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='memory is told by Linux')
benchmark = load_tool('benchmark')


@pytest.fixture
def quick(monkeypatch):
    """Listings are kept at once, and measured here."""
    monkeypatch.setattr(startup, 'in_new_process', lambda root, workers: startup.measure(str(root), workers))
    monkeypatch.setattr(startup, 'OLD_ENOUGH_S', 0.02)
    monkeypatch.setattr(listing_cache, 'STANDSTILL_NS', -10**9)
    monkeypatch.setattr(listing_cache, 'FEWEST', 20)


def test_rows_have_both_ways_of_listing_and_the_folders_are_gone(quick, tmp_path, capsys):
    (tmp_path / 'made').mkdir()
    benchmark.main(['startup', '--images', '10', '40', '--folders', '4', '--workers', '1', '--rounds', '2',
                    '--folder', str(tmp_path / 'made'), '--csv', str(tmp_path / 'startup.csv')])
    assert 'MB of a worker' in capsys.readouterr().out and list((tmp_path / 'made').iterdir()) == []
    with open(tmp_path / 'startup.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['images'], row['listing'], row['rounds']) for row in rows] == [
        ('10', 'anew', '2'), ('40', 'anew', '2'), ('40', 'kept', '2')]
    assert all(row['commit'] and row['versions'] and float(row['listing_s_min']) > 0 for row in rows)


def grown():
    before = startup.own_megabytes()
    own = bytearray(50_000_000)
    return startup.own_megabytes() - before, len(own)


def test_memory_is_what_a_process_shares_with_no_other():
    # In a fork, as all is measured: this process may have kept as much of what tests before have freed.
    with ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as pool:
        megabytes, length = pool.submit(grown).result()
    assert 45 < megabytes < 60 and length


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--images', '0'], 'must be at least 1'), (['--folder', 'nowhere'], 'nowhere is no folder')])
def test_what_cannot_be_measured_is_one_line(arguments, words, capsys):
    assert words in failure(benchmark, capsys, 'startup', *arguments)
