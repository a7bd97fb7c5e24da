from dataclasses import replace

import pytest
import torch
from timm.models.resnet import ResNet

import timm_rs.training.build
from timm_rs.benchmark import step_process
from timm_rs.benchmark.step_process import Candidate, check_setup, step_recipe
from timm_rs.benchmark.worker import StepProcess
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.models import ResNetRS3d
from timm_rs.training.build import build_model

TINY = Candidate('test_resnet', 32, 'train', 'channels_last', batch_size=4, steps=2, device='cpu')


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


@pytest.mark.parametrize(('setup', 'work'), [
    ('channels_last+checkpointing', 'train'), ('timm+channels_last', 'train'), ('channels_last', 'infer')])
def test_networks_for_clips_get_clips_in_their_layout(tmp_path, monkeypatch, setup, work):
    kwargs = dict(layers=(1, 1, 1, 1), width=0.125)
    monkeypatch.setattr(step_process, 'step_recipe', lambda candidate: replace(
        (recipe := step_recipe(candidate)), model_kwargs=recipe.model_kwargs | kwargs, bn_group_size=2, drop_path=0.1))
    shapes = []

    def forward(model, clips):
        shapes.append((tuple(clips.shape), clips.is_contiguous(memory_format=torch.channels_last_3d)))
        return ResNet.forward(model, clips)
    monkeypatch.setattr(ResNetRS3d, 'forward', forward)
    candidate = replace(TINY, model='resnetrs3d', setup=setup, work=work, num_frames=3)
    assert candidate.label == 'resnetrs3d@3x32'
    step_process.create_work(candidate, Device('cpu'))(2)
    assert set(shapes) == {((4, 3, 3, 32, 32), True)}


def test_both_loops_train_the_same_so_neither_leaves_out_work(monkeypatch):
    models = []

    def build(*arguments):
        models.append(build_model(*arguments)[0])
        return models[-1], dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(timm_rs.training.build, 'build_model', build)
    monkeypatch.setattr(step_process, 'step_recipe', lambda candidate: replace(step_recipe(candidate), lr=0.1, drop=0.))
    for setup, steps in (('eager', 0), ('eager', 3), ('timm', 3)):
        torch.manual_seed(0)
        step_process.create_work(replace(TINY, setup=setup), Device('cpu'))(steps)
    before, ours, timms = (torch.cat([value.flatten().float() for value in model.state_dict().values()])
                           for model in models)
    assert torch.allclose(ours, timms, atol=1e-5) and not torch.allclose(ours, before, atol=1e-3)


def test_timms_loop_has_timms_optimizer(monkeypatch):
    made = []
    monkeypatch.setattr(step_process, 'timms_work', lambda training, *_: made.append(training.optimizer))
    genuine = step_process.create_optimizer_v2
    monkeypatch.setattr(step_process, 'create_optimizer_v2', lambda *some, **options: (
        made.append(options), genuine(*some, **options))[-1])
    step_process.create_work(replace(TINY, setup='timm+fused'), Device('cpu'))
    options, optimizer = made  # ours would prefer fused kernels on a GPU without being asked
    assert options['fused'] and optimizer.defaults['fused']


@pytest.mark.parametrize(('setup', 'work', 'words'), [
    ('channel_last', 'train', 'unknown setup channel_last: .*Did you mean channels_last'),
    ('channels_last+bf17', 'train', 'unknown setup channels_last.bf17'),
    ('timm', 'infer', 'unknown back-end timm: there are eager'),
])
def test_an_unknown_setup_is_refused(setup, work, words):
    with pytest.raises(UserError, match=words):
        check_setup(setup, work)
