import os
import signal
from dataclasses import replace

import pytest

from timm_rs.benchmark import worker
from timm_rs.benchmark.step_process import Candidate, DoesNotFit
from timm_rs.benchmark.worker import StepProcess, Worker, fit, fit_side_by_side
from timm_rs.errors import UserError

TINY = Candidate('test_resnet', 32, 'train', 'channels_last', batch_size=4, steps=2, device='cpu')


def test_a_candidate_takes_turns_and_its_memory_is_its_own():
    with StepProcess(TINY) as process:
        costs = [process.turn() for _ in range(2)]
        assert all(cost.wall > 0 and cost.cpu > 0 for cost in costs)
        assert 4 << 20 < process.peak_memory < 1 << 30  # 0.5 M weights, gradients, momentum and average, and no imports


def test_a_batch_too_large_does_not_fit_instead_of_killing_someone():
    with pytest.raises(DoesNotFit, match="can't allocate memory"):
        StepProcess(replace(TINY, batch_size=1 << 30))


def test_a_process_that_was_killed_for_want_of_memory_does_not_fit():
    with StepProcess(TINY) as process:
        os.kill(process.worker.process.pid, signal.SIGKILL)
        with pytest.raises(DoesNotFit, match='status -9'):
            process.turn()


def test_a_worker_holds_several_and_goes_on_when_one_more_does_not_fit():
    other = replace(TINY, setup='eager')
    with Worker() as holder:
        first, second = StepProcess(TINY, holder), StepProcess(other, holder)
        with pytest.raises(DoesNotFit, match="can't allocate memory"):
            StepProcess(replace(TINY, batch_size=1 << 30), holder)
        assert first.turn().wall > 0 and second.turn().wall > 0
        second.close()
        with pytest.raises(RuntimeError, match='KeyError'):
            second.turn()
        assert first.turn().wall > 0


def test_what_the_person_can_mend_comes_back_as_it_was():
    with pytest.raises(UserError, match='unknown device tpus'):
        StepProcess(replace(TINY, device='tpus'))


def pretend_that_at_most(limit, monkeypatch):
    """StepProcess without processes, for batches of at most `limit` images; returns the sizes that were tried."""
    tried = []

    class Process:
        def __init__(self, candidate, worker):
            self.candidate = candidate
            tried.append(candidate.batch_size)
            if candidate.batch_size > limit:
                raise DoesNotFit('no room')

        def close(self):
            pass
    monkeypatch.setattr(worker, 'StepProcess', Process)
    return tried


def test_batches_are_halved_until_they_fit(monkeypatch):
    tried = pretend_that_at_most(40, monkeypatch)
    candidate = fit(replace(TINY, batch_size=128), images=100).candidate
    assert tried == [128, 64, 32] and (candidate.batch_size, candidate.steps) == (32, 4)
    assert fit(candidate, images=0).candidate.steps == 1


def pretend_to_share(memory, monkeypatch):
    """StepProcess without processes on a device of `memory` bytes: 10 stay while it is idle, an image needs 1 more."""
    log, alive = [], []

    class Process:
        def __init__(self, candidate, worker):
            self.candidate = candidate
            alive.append(self)
            self.turn()

        def turn(self):
            log.append((self.candidate.model, self.candidate.batch_size))
            if 10 * len(alive) + self.candidate.batch_size > memory:
                self.close()
                raise DoesNotFit('no room')

        def close(self):
            if self in alive:
                alive.remove(self)
    monkeypatch.setattr(worker, 'StepProcess', Process)
    return log, alive


def test_side_by_side_the_process_that_fitted_goes_on_and_halves_again_if_others_need_the_room(monkeypatch):
    log, alive = pretend_to_share(75, monkeypatch)
    candidates = [replace(TINY, batch_size=64), replace(TINY, model='b', batch_size=128)]
    first, second = fit_side_by_side(candidates, 100, None)
    assert log == [
        ('test_resnet', 64), ('b', 128), ('b', 64), ('b', 32),  # the search
        ('test_resnet', 64), ('test_resnet', 32), ('test_resnet', 32), ('b', 32)]  # a turn of each
    assert alive == [second, first] and (first.candidate.steps, second.candidate.steps) == (4, 4)


def test_a_model_of_which_no_image_fits_is_named(monkeypatch):
    pretend_that_at_most(0, monkeypatch)
    with pytest.raises(UserError, match='test_resnet@32 does not fit .*not even one image .no room.; leave it out'):
        fit(TINY, images=0)
