"""Published weights: without a network one sentence with all ways out, within seconds; whose a run began with."""

import socket
import time

import pytest
import torch
from conftest import TINY
from huggingface_hub import constants

from timm_rs.errors import UserError
from timm_rs.recipe.foreign import PULLED
from timm_rs.training.pretrained import base_model, check_hub

MODELS = 'resnetrs_50', 'resnetrs_50.tf_i160_in1k', 'resnet50.a1_in1k', 'hf-hub:org/name@main'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An address where nothing listens, and an empty cache."""
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        endpoint = f'http://127.0.0.1:{unused.getsockname()[1]}'
        for name, value in dict(ENDPOINT=endpoint, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE=False).items():
            monkeypatch.setattr(constants, name, value)
        for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
            monkeypatch.delenv(name, raising=False)
        yield unused


@pytest.mark.parametrize('model', MODELS)
def test_a_hub_out_of_reach_is_one_sentence_at_once(hub, model, monkeypatch):
    begin = time.monotonic()
    with pytest.raises(UserError) as refused:
        check_hub(model)
    assert time.monotonic() - begin < 10
    for word in (model, constants.ENDPOINT, 'refused', constants.HF_HUB_CACHE, '--pretrained-path', 'HF_HUB_OFFLINE=1'):
        assert word in str(refused.value)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='HF_HUB_OFFLINE forbids'):
        check_hub(model)


@pytest.mark.parametrize('model', MODELS)
def test_a_hub_that_listens_a_proxy_or_the_cache_are_left_to_timm(hub, model, tmp_path, monkeypatch):
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:1')
    check_hub(model)
    monkeypatch.delenv('http_proxy')
    hub.listen()
    check_hub(model)
    hub.close()
    repository = {'resnet50.a1_in1k': 'timm--resnet50.a1_in1k', 'hf-hub:org/name@main': 'org--name'}.get(
        model, 'timm--resnetrs50.tf_in1k')
    snapshot = tmp_path / f'models--{repository}/snapshots/{"0" * 40}'
    snapshot.mkdir(parents=True)
    (snapshot / 'model.safetensors').touch()
    (snapshot.parents[1] / 'refs').mkdir()
    (snapshot.parents[1] / 'refs/main').write_text(snapshot.name)
    check_hub(model)


def test_models_without_weights_ask_nobody(hub):
    check_hub('resnetrs')
    check_hub('local-dir:somewhere')


@pytest.mark.parametrize(('model', 'pretrained', 'file', 'repository'), [
    ('resnet50.a1_in1k', False, '', ''),
    ('resnet50.a1_in1k', True, '', 'timm/resnet50.a1_in1k'),
    ('resnetrs_50', True, '', 'timm/resnetrs50.tf_in1k'),
    ('hf-hub:org/name@main', True, '', 'org/name'),
    ('local-dir:pulled', True, '', 'me/pulled'),
    ('resnetrs_50', True, 'pulled/deep/model_best.pth.tar', 'me/pulled'),
    ('resnetrs_50', True, 'model.safetensors', ''),
    ('resnetrs_50', False, 'cache/models--org--a-b/snapshots/0/model.safetensors', 'org/a-b')])
def test_the_repository_that_a_run_began_with_is_known(tmp_path, monkeypatch, model, pretrained, file, repository):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'pulled').mkdir()
    (tmp_path / 'pulled' / PULLED).write_text(f'me/pulled@{"0" * 40}\n')
    assert base_model(model, pretrained, file) == repository


def test_a_resumed_run_still_knows_what_it_began_with(run, tiny_run, tmp_path):
    pulled, runs = tmp_path / 'pulled', tmp_path / 'runs/a'
    pulled.mkdir()
    (pulled / PULLED).write_text(f'me/pulled@{"0" * 40}\n')
    (pulled / 'last.pth.tar').write_bytes((tiny_run / 'last.pth.tar').read_bytes())
    arguments = [*TINY, '--data-dir', tiny_run.parent / 'pets', '--experiment', 'a', '--sched', 'none']
    first = run(*arguments, '--epochs', '1', '--initial-checkpoint', pulled / 'last.pth.tar')
    assert first.code == 0, first.err
    second = run(*arguments, '--epochs', '2', '--resume', 'auto', '--allow-recipe-change')
    assert second.code == 0 and 'resuming from' in second.out
    content = torch.load(runs / 'last.pth.tar', weights_only=True)
    assert (content['epoch'], content['base_model']) == (1, 'me/pulled')
