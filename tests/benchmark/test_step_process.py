import os
import signal
from dataclasses import replace

import pytest
import torch

from timm_rs.benchmark import step_process
from timm_rs.benchmark.step_process import (
    Candidate,
    DoesNotFit,
    StepProcess,
    Worker,
    check_setup,
    fit,
    fit_side_by_side,
    step_recipe,
)
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.training.build import build_model

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
    with Worker() as worker:
        first, second = StepProcess(TINY, worker), StepProcess(other, worker)
        with pytest.raises(DoesNotFit, match="can't allocate memory"):
            StepProcess(replace(TINY, batch_size=1 << 30), worker)
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
    monkeypatch.setattr(step_process, 'StepProcess', Process)
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
    monkeypatch.setattr(step_process, 'StepProcess', Process)
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


def test_setups_change_the_recipe_and_nothing_of_the_file_but_these(tmp_path):
    (tmp_path / 'my.yaml').write_text('opt: momentum\namp: true\namp_dtype: bfloat16\nmodel_ema: true\n')
    recipe = step_recipe(replace(TINY, recipe=str(tmp_path / 'my.yaml'), setup='fused+checkpointing'))
    assert (recipe.opt, recipe.model_ema, recipe.opt_kwargs) == ('momentum', True, {'fused': True})
    assert (recipe.amp, recipe.channels_last, recipe.grad_checkpointing) == (False, False, True)
    assert step_recipe(replace(TINY, setup='channels_last+bf16')).amp_dtype == 'bfloat16'
    assert step_recipe(replace(TINY, model='tf_efficientnet_b0')).opt == 'rmsproptf'
    assert step_recipe(replace(TINY, setup='timm')).opt == 'sgd'


@pytest.mark.parametrize('text', ['opt: momentum', 'mixup: 0.2', 'bce_loss: true', 'input_size: [3, 64, 64]'])
def test_steps_of_other_recipes_run(tmp_path, text):
    (tmp_path / 'my.yaml').write_text(text)
    for setup in ('channels_last', 'timm+channels_last'):
        StepProcess(replace(TINY, recipe=str(tmp_path / 'my.yaml'), setup=setup)).close()


def test_both_loops_train_the_same_so_neither_leaves_out_work(monkeypatch):
    models = []

    def build(recipe, device):
        models.append(build_model(recipe, device)[0])
        return models[-1], dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(step_process, 'build_model', build)
    monkeypatch.setattr(step_process, 'step_recipe', lambda candidate: replace(step_recipe(candidate), lr=0.1, drop=0.))
    for setup, steps in (('eager', 0), ('eager', 3), ('timm', 3)):
        torch.manual_seed(0)
        step_process.create_work(replace(TINY, setup=setup), Device('cpu'))(steps)
    before, ours, timms = (torch.cat([value.flatten().float() for value in model.state_dict().values()])
                           for model in models)
    assert torch.allclose(ours, timms, atol=1e-5) and not torch.allclose(ours, before, atol=1e-3)


def test_timms_loop_has_timms_optimizer(monkeypatch):
    monkeypatch.setattr(step_process, 'create_optimizer', None)  # which prefers fused kernels on a GPU
    step_process.create_work(replace(TINY, setup='timm+fused'), Device('cpu'))(1)


@pytest.mark.parametrize(('setup', 'work', 'words'), [
    ('channel_last', 'train', 'unknown setup channel_last: .*Did you mean channels_last'),
    ('channels_last+bf17', 'train', 'unknown setup channels_last.bf17'),
    ('timm', 'infer', 'unknown back-end timm: there are eager'),
])
def test_an_unknown_setup_is_refused(setup, work, words):
    with pytest.raises(UserError, match=words):
        check_setup(setup, work)
