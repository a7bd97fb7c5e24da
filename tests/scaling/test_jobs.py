import contextlib
import os
import signal
import threading
import time
from functools import partial

import pytest
from forks import ForkedPython

from timm_rs.scaling import jobs
from timm_rs.scaling.jobs import Job, Pool, Signals, run_jobs

# Counts in a file to 3, and goes on from there; what else it does stands in its arguments.
COUNT = '''
import os, signal, sys, time
from pathlib import Path
folder, how = Path(sys.argv[1]), sys.argv[2]
with open(folder / 'starts', 'a') as file:
    file.write(f'{os.getpid()} {os.environ.get("SLOT")}\\n')
count = folder / 'count'
if how == 'busy' and not (folder.parent / 'free').exists():
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == 'deaf' else lambda *_: sys.exit('saved'))
running = folder.parent / f'{folder.name}.running'
running.touch()
(folder / 'at_once').write_text(str(len(list(folder.parent.glob('*.running')))))
try:
    while (number := int(count.read_text()) if count.exists() else 0) < 3:
        if how == 'bug' or how == 'late bug' and number == 2:
            print('before'); sys.exit('a bug')
        count.write_text(str(number + 1))
        if how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100 if how in ('deaf', 'long') else 0.1)
    if how == 'no count':
        count.unlink()
finally:
    running.unlink()
'''


@pytest.fixture
def job(tmp_path):
    """A job by its name and what it does."""
    (tmp_path / 'count.py').write_text(COUNT)

    def count(folder):
        return int(path.read_text() or 0) if (path := folder / 'count').exists() else 0

    def make(name, how=''):
        folder = tmp_path / name
        folder.mkdir()
        return Job(name, [str(tmp_path / 'count.py'), str(folder), how], tmp_path / f'{name}.log', tmp_path,
                   lambda: count(folder) == 3, partial(count, folder))
    return make


@pytest.fixture
def pool():
    made = []

    def make(slots=1):
        made.append(Pool([dict(SLOT=str(slot)) for slot in range(slots)]))
        return made[-1]
    yield make
    for one in made:
        one.stop()
        one.stop()
        one.close()


def starts(job):
    path = job.log.with_suffix('') / 'starts'
    return path.read_text().splitlines() if path.exists() else []


@contextlib.contextmanager
def meanwhile(*steps):
    """Wait in another thread for the conditions among `steps`, which return whether they hold, and do the others."""
    def act():
        for step in steps:
            wait_for(lambda step=step: step() is not False)
    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_more_run_at_once_than_there_are_slots(job, pool, tmp_path):
    many = [job(str(number)) for number in range(5)]
    outcomes = list(run_jobs(many, pool(2)))
    assert sorted(outcome.job.name for outcome in outcomes) == list('01234')
    assert {outcome.state for outcome in outcomes} == {'done'}
    assert max(int((tmp_path / one.name / 'at_once').read_text()) for one in many) == 2
    assert {starts(one)[0].split()[1] for one in many} == {'0', '1'}  # each slot has its environment


def test_what_is_done_is_not_started(job, pool, tmp_path):
    one = job('one')
    (tmp_path / 'one/count').write_text('3')
    assert [outcome.state for outcome in run_jobs([one], pool())] == ['done']
    assert not (tmp_path / 'one/starts').exists()


@pytest.mark.parametrize(('how', 'words', 'tries'), [
    ('bug', 'failed with exit code 1', 1), ('late bug', 'failed with exit code 1', 2),
    ('no count', 'ended before it was done', 1)])
def test_a_failed_one_is_named_with_the_end_of_its_log_while_others_go_on(job, pool, how, words, tries):
    said = []
    bad, good = job('bad', how), job('good')
    outcomes = run_jobs([bad, good], pool(), said.append)
    first = next(outcomes)
    assert first.state == 'failed' and said == [first.words] and f'bad {words}; the end of {bad.log}:' in said[0]
    if 'bug' in how:
        assert said[0].endswith('  before\n  a bug')
    assert len(starts(bad)) == tries  # again only where it got further
    assert [(outcome.job.name, outcome.state) for outcome in outcomes] == [('good', 'done')]


def test_a_killed_one_is_tried_again_as_long_as_it_gets_further(job, pool):
    one = job('one', 'killed')
    assert [outcome.state for outcome in run_jobs([one], pool())] == ['done']
    assert len(starts(one)) == 3


def test_one_that_another_driver_has_begun_is_waited_for(job, pool, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, 'BUSY_S', 0.3)
    said = []
    busy, other = job('busy', 'busy'), job('other')
    with meanwhile(lambda: len(starts(busy)) >= 3, (tmp_path / 'free').touch):
        outcomes = list(run_jobs([busy, other], pool(), said.append))
    assert [(outcome.job.name, outcome.state) for outcome in outcomes] == [('other', 'done'), ('busy', 'done')]
    assert said == ['busy is being trained by another process']


def test_one_that_another_driver_has_finished_is_not_started_again(job, pool, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, 'BUSY_S', 60)
    busy = job('busy', 'busy')
    with meanwhile(lambda: len(starts(busy)) == 2, lambda: (tmp_path / 'busy/count').write_text('3')):
        assert [outcome.state for outcome in run_jobs([busy], pool(), lambda line: None)] == ['done']
    assert len(starts(busy)) == 2


@pytest.mark.parametrize(('how', 'stops', 'said'), [('long', 1, 'saved'), ('deaf', 2, '')])
def test_a_stop_lets_runs_save_and_a_second_does_not_wait(job, pool, tmp_path, how, stops, said):
    slots, (one, two) = pool(), (job('one', how), job('two', how))
    with meanwhile((tmp_path / 'one/count').exists, *stops * [slots.stop, lambda: time.sleep(0.5)]):
        assert [outcome.state for outcome in run_jobs([one, two], slots)] == ['stopped', 'stopped']
    assert one.log.read_text().strip() == said
    assert not starts(two)


def test_signals_are_passed_on_and_handlers_restored():
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    with Signals(lambda: heard.append(1)) as signals:
        assert signals.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.number == signal.SIGTERM and len(heard) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_disk_that_is_full_ends_the_driver_by_its_error(job, pool, tmp_path):
    one = job('one')
    with pytest.raises(OSError, match='gone'):
        list(run_jobs([one._replace(log=tmp_path / 'gone/log')], pool()))


DRIVER = '''
import sys
from pathlib import Path
from timm_rs.scaling.jobs import Job, Pool, run_jobs
folder = Path(sys.argv[1])
job = Job('one', [str(folder / 'count.py'), str(folder / 'one'), 'long'], folder / 'one.log', folder,
          lambda: False, lambda: None)
list(run_jobs([job], Pool([{}])))
'''


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_driver_leaves_no_process_and_it_saves_itself(job, tmp_path):
    one = job('one')
    with ForkedPython([DRIVER, tmp_path]) as driver:
        wait_for((tmp_path / 'one/count').exists)
        pid = int(starts(one)[0].split()[0])
        driver.kill()
    wait_for(lambda: not is_alive(pid))
    assert one.log.read_text().strip() == 'saved'


@pytest.mark.parametrize(('gpus', 'at_once', 'expected'), [
    ([], None, [None]), ([], 2, [None, None]), (['4', '5'], None, ['4', '5']), (['4', '5'], 3, ['4', '5', '4'])])
def test_slots_share_gpus_and_cores(monkeypatch, gpus, at_once, expected):
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(jobs, '_gpus', lambda: gpus)
    monkeypatch.setattr(jobs, 'num_cores', lambda: 8)
    found = jobs.environments(at_once)
    assert found == [dict(OMP_NUM_THREADS=str(8 // len(expected)))
                     | (dict(CUDA_VISIBLE_DEVICES=gpu) if gpu else {}) for gpu in expected]


@pytest.mark.parametrize(('named', 'count', 'expected'), [
    (None, 2, ['0', '1']), ('3,1', 2, ['3', '1']), ('GPU-a,GPU-b', 1, ['GPU-a']), ('', 0, [])])
def test_gpus_keep_the_names_they_have_in_the_environment(monkeypatch, named, count, expected):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if named is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', named)
    monkeypatch.setattr(jobs.torch.cuda, 'device_count', lambda: count)
    assert jobs._gpus() == expected
