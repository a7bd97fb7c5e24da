"""Publishing to and fetching from a Hub that answers over HTTP on this machine (hub_server.py)."""
import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import write_images
from hub_server import READ, WRITE

from timm_rs.errors import UserError
from timm_rs.publish import network
from timm_rs.publish import pull as fetching
from timm_rs.publish.folder import write_folder
from timm_rs.publish.pull import pull
from timm_rs.publish.push import Pushed, push
from timm_rs.publish.repository import digest
from timm_rs.recipe.foreign import PULLED
from timm_rs.training.trained import read_run

WEIGHTS = os.urandom(200_000)  # what the protocol carries need not be a model
NAME = 'me/model'
TEMPORARY = [408, 429, 500, 502, 503, 504]


@pytest.fixture
def folder(tmp_path):
    """What a push sends, without the time that a real model takes."""
    path = tmp_path / 'folder'
    path.mkdir()
    (path / 'config.json').write_text(json.dumps({'architecture': 'resnetrs50', 'timm_rs': {'model': 'resnetrs_50'}}))
    (path / 'README.md').write_text('---\nlicense: apache-2.0\n---\n# Größe und Maß\n', encoding='utf-8')
    (path / 'model.safetensors').write_bytes(WEIGHTS)
    return path


@pytest.fixture
def published(hub):
    """A repository with a small and a large file, one of them in a folder."""
    return hub.add(NAME, {'config.json': b'{"architecture": "resnet18"}', 'model.safetensors': WEIGHTS,
                          'notes/a b.txt': b''})


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and path.name != PULLED}


def error_of(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert '\n' not in message and 'hf_' not in message.replace('hf_hub', '')
    return message


# ---- push -------------------------------------------------------------------------------------------------------

STOCK = """
import re, sys
import timm, torch
with_timm, with_transformers = re.findall('```python\\n(.*?)```', open('card.md').read(), re.DOTALL)
images = torch.load('images.pt')
exec(with_timm)
logits, pixels = model(images).detach(), x
exec(with_transformers)
assert torch.equal(x['pixel_values'], pixels)
torch.save(dict(timm=logits, transformers=model(images).logits.detach()), 'logits.pt')
assert not any(name.startswith('timm_rs') for name in sys.modules)
"""


def test_stock_timm_and_transformers_load_a_published_run_by_the_code_of_its_card(hub, tiny_run, tmp_path):
    trained = read_run(tiny_run)
    write_folder(trained, tmp_path / 'folder', NAME)
    push(tmp_path / 'folder', NAME)
    images = torch.randn(4, 3, 32, 32)
    torch.save(images, tmp_path / 'images.pt')
    write_images(tmp_path / 'images', {'cat': 1}, suffix='jpg')
    (tmp_path / 'images/cat/0.jpg').rename(tmp_path / 'image.jpg')
    (tmp_path / 'card.md').write_bytes(hub.repositories[NAME].files['README.md'])
    environment = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'SSL_CERT_DIR')}
    subprocess.run([sys.executable, '-P', '-c', STOCK], cwd=tmp_path, check=True, env=environment | dict(
        HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'fresh'), HF_TOKEN='', HF_HUB_DISABLE_PROGRESS_BARS='1'))
    with torch.inference_mode():
        expected = trained.model(images)
    logits = torch.load(tmp_path / 'logits.pt')
    assert torch.equal(logits['timm'], expected)
    torch.testing.assert_close(logits['transformers'], expected)  # see test_folder.py
    assert expected.std() > 0


def test_push_makes_the_repository_and_sends_all_in_one_commit(hub, folder):
    done = push(folder, NAME, private=True)
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.files == {'.gitattributes': repository.files['.gitattributes'], **content(folder)}
    assert repository.large == {'model.safetensors'}
    assert len(repository.commits) == 2  # the Hub's own, and ours
    assert done == Pushed(f'{hub.url}/{NAME}/commit/{repository.branches["main"]}', sorted(content(folder)), [])


def test_xet_does_no_harm_where_the_hub_does_not_want_it(hub, folder, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', False)
    hub.has_lfs = False
    push(folder, NAME)
    assert hub.repositories[NAME].files['model.safetensors'] == WEIGHTS
    assert not hub.asked('xet|lfs')
    assert push(folder, NAME).sent == []


def test_hub_without_xet_is_one_line_to_a_client_with_it(hub, folder, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', False)
    assert 'HF_HUB_DISABLE_XET=1' in error_of(push, folder, NAME)
    assert len(hub.repositories[NAME].commits) == 1


def test_repeated_push_makes_no_second_commit(hub, folder):
    push(folder, NAME)
    done = push(folder, NAME)
    assert done.sent == []
    assert len(hub.repositories[NAME].commits) == 2


def test_only_what_changed_is_sent_again(hub, folder):
    push(folder, NAME)
    (folder / 'summary.csv').write_text('epoch,eval_top1\n')
    assert push(folder, NAME).sent == ['summary.csv']
    assert hub.repositories[NAME].files.keys() >= content(folder).keys()
    assert len(hub.asked('PUT /upload')) == 1


def test_commit_whose_answer_was_lost_is_not_made_twice(hub, folder, capsys):
    hub.fail('POST .*/commit/', lose_answer=True)
    assert push(folder, NAME).sent == []  # the second attempt finds it done
    assert len(hub.repositories[NAME].commits) == 2
    assert 'connection to the Hub failed' in capsys.readouterr().err


def test_repository_whose_making_was_not_answered_is_found(hub, folder):
    hub.fail('POST /api/repos/create', lose_answer=True)
    assert push(folder, NAME).sent
    assert len(hub.asked('POST /api/repos/create')) == 1


@pytest.mark.parametrize(('step', 'status'), [
    ('GET /api/models/me/model$', 408), ('POST /api/repos/create', 500), ('POST /api/validate-yaml', 502),
    ('POST .*/commit/', 503), ('POST .*/commit/', 504), ('POST .*/commit/', 429), ('GET .*/tree/', 429)])
def test_push_goes_on_after_a_passing_fault(hub, folder, capsys, step, status):
    hub.fail(step, status)
    push(folder, NAME)
    assert hub.repositories[NAME].files.items() >= content(folder).items()
    assert len(hub.repositories[NAME].commits) == 2
    assert all(WRITE not in text for text in capsys.readouterr())


def test_upload_of_a_large_file_that_fails_is_repeated(hub, folder):
    hub.fail('PUT /upload', 503)
    push(folder, NAME)
    assert hub.repositories[NAME].files['model.safetensors'] == WEIGHTS


def test_waiting_time_that_the_hub_asks_for_is_kept(hub, folder, capsys):
    hub.fail('POST .*/commit/', 429, headers={'Retry-After': '1'})
    started = time.monotonic()
    push(folder, NAME)
    assert time.monotonic() - started >= 1
    assert capsys.readouterr().err == 'the Hub answers 429 (Too Many Requests); trying again in 1 s\n'


def test_nobody_waits_for_an_hour(hub, folder):
    hub.fail('GET /api/models', 429, headers={'Retry-After': '3600'})
    started = time.monotonic()
    assert 'come back in 3600 s' in error_of(push, folder, NAME)
    assert time.monotonic() - started < 60


def test_faults_that_stay_end_in_one_line(hub, folder):
    hub.fail('GET /api/models', 503, times=99)
    assert error_of(push, folder, NAME) == (
        'the Hub answers 503 (Service Unavailable), again and again: try later')
    assert len(hub.asked('GET /api/models')) == len(network.WAITS) + 1


def test_hub_that_does_not_answer_is_one_line(hub, folder):
    hub.close()
    assert 'check the network and HF_ENDPOINT' in error_of(push, folder, NAME)


def test_page_of_a_proxy_is_not_taken_for_the_hub(hub, folder):
    hub.fail('GET /api/models', 200, times=99)
    assert 'check HF_ENDPOINT' in error_of(push, folder, NAME)


def test_card_on_the_hub_stays_unless_asked_otherwise(hub, folder):
    repository = hub.add(NAME, {'README.md': b'written by hand'})
    done = push(folder, NAME)
    assert 'README.md' not in done.sent and '--overwrite-card' in done.notes[0]
    assert repository.files['README.md'] == b'written by hand'
    assert push(folder, NAME, overwrite_card=True).sent == ['README.md']
    assert repository.files['README.md'].decode().endswith('Größe und Maß\n')


def test_push_to_a_branch_leaves_main_alone(hub, folder):
    repository = hub.add(NAME)
    repository.branches['try'] = repository.branches['main']
    push(folder, NAME, revision='try')
    assert 'config.json' not in repository.files
    assert 'config.json' in repository.commits[repository.branches['try']]


def test_pull_request_is_opened_once(hub, folder):
    repository = hub.add(NAME)
    first, second = (push(folder, NAME, create_pr=True) for _ in range(2))
    assert first.url == second.url == f'{hub.url}/{NAME}/discussions/1'
    assert (bool(first.sent), second.sent) == (True, [])
    assert len(repository.pull_requests) == 1 and 'config.json' not in repository.files


def test_missing_login_is_one_line(hub, folder, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    assert 'hf auth login' in error_of(push, folder, NAME)
    assert hub.requests == []


@pytest.mark.parametrize(('token', 'message'), [
    (READ, 'your token may not write to me/model'), ('hf_expired', 'does not accept the token')])
@pytest.mark.parametrize('there', [False, True])
def test_token_that_may_not_is_one_line(hub, folder, monkeypatch, token, message, there):
    if there:
        hub.add(NAME)
    monkeypatch.setenv('HF_TOKEN', token)
    assert message in error_of(push, folder, NAME)


def test_name_that_is_taken_is_one_line(hub, folder):
    hub.add(NAME, hidden=True)
    assert 'the name me/model is taken' in error_of(push, folder, NAME)


def test_another_model_is_not_replaced_unless_asked(hub, folder):
    repository = hub.add(NAME, {'config.json': b'{"architecture": "resnet18"}'})
    assert 'is taken: it holds resnet18, not this resnetrs_50' in error_of(push, folder, NAME)
    push(folder, NAME, overwrite_model=True)
    assert repository.files.items() >= content(folder).items()


def test_another_size_is_another_model(hub, folder):
    push(folder, NAME)
    config = {'architecture': 'resnetrs50', 'timm_rs': {'model': 'resnetrs_50', 'model_kwargs': {'width': 0.5}}}
    (folder / 'config.json').write_text(json.dumps(config))
    assert 'is taken' in error_of(push, folder, NAME)


def test_measurements_of_former_weights_do_not_stay(hub, folder):
    (folder / 'eval.json').write_text('{"top1": 80}')
    push(folder, NAME)
    hub.repositories[NAME].files['notes.txt'] = b'by hand'
    (folder / 'eval.json').unlink()
    (folder / 'model.safetensors').write_bytes(b'new')
    done = push(folder, NAME)
    assert done.sent == ['model.safetensors'] and 'removed eval.json' in done.notes[0]
    assert sorted(hub.repositories[NAME].files) == [
        '.gitattributes', 'README.md', 'config.json', 'model.safetensors', 'notes.txt']
    assert push(folder, NAME).sent == []


def test_private_model_is_not_published_to_a_public_repository(hub, folder):
    repository = hub.add(NAME)
    assert 'is there already, and public' in error_of(push, folder, NAME, private=True)
    assert len(repository.commits) == 1


@pytest.mark.parametrize('there', [False, True])
def test_branch_that_is_missing_is_one_line(hub, folder, there):
    if there:
        hub.add(NAME)
    message = error_of(push, folder, NAME, revision='tyr')
    assert 'tyr' in message and 'me/model' in message
    assert there or not hub.repositories


@pytest.mark.parametrize('name', ['model', 'me/', 'me/a--b', 'me/a/b', 'me/größe', 'me/x.', 'me/' + 'x' * 96])
def test_name_that_the_hub_would_refuse_is_refused_here(hub, folder, name):
    assert 'write org/name' in error_of(push, folder, name)
    assert hub.requests == []


def test_commit_by_somebody_else_in_between_is_not_overrun(hub, folder):
    hub.fail('POST .*/commit/', 412)
    hub.add(NAME)
    assert 'changed while this was being sent' in error_of(push, folder, NAME)


def test_token_goes_to_the_hub_only(hub, folder, tmp_path, capfd):
    push(folder, NAME)
    pull(NAME, tmp_path / 'got')
    for pattern in ('PUT /upload', 'GET /cdn'):
        assert hub.asked(pattern) and all('authorization' not in headers for headers in hub.asked(pattern))
    assert hub.asked('POST .*/commit')[0]['authorization'] == f'Bearer {WRITE}'
    written = {**content(tmp_path), **hub.repositories[NAME].files}
    assert not any(WRITE.encode() in data for data in written.values())
    assert all(WRITE not in text for text in capfd.readouterr())


def test_token_with_odd_characters_is_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_a\nb')
    message = error_of(push, folder, NAME)
    assert 'token' in message and 'a\nb' not in message


def test_token_that_the_hub_repeats_is_not_shown(hub, folder):
    hub.fail('POST /api/repos/create', 403, headers={'X-Error-Message': f'{WRITE} may not do that'})
    assert 'may not write to me/model (… may not do that)' in error_of(push, folder, NAME)


# ---- pull -------------------------------------------------------------------------------------------------------

def test_pull_brings_every_file_with_the_content_that_the_hub_announces(hub, published, tmp_path):
    commit, files = pull(NAME, tmp_path / 'got')
    assert commit == published.branches['main']
    assert content(tmp_path / 'got') == published.files
    assert {file.path: len(file.digest) for file in files} == {
        '.gitattributes': 40, 'config.json': 40, 'model.safetensors': 64, 'notes/a b.txt': 40}
    assert all(digest(tmp_path / 'got' / file.path, file.digest) == file.digest for file in files)


def test_what_is_in_the_cache_is_not_fetched_again(hub, published, tmp_path):
    pull(NAME, tmp_path / 'one')
    fetched = len(hub.asked('GET .*/(resolve|cdn)/'))
    pull(NAME, tmp_path / 'two')
    assert len(hub.asked('GET .*/(resolve|cdn)/')) == fetched
    assert content(tmp_path / 'one') == content(tmp_path / 'two')


def test_timm_finds_in_the_cache_what_was_pulled(hub, published, tmp_path):
    from huggingface_hub import hf_hub_download
    pull(NAME, tmp_path / 'got')
    hub.close()
    assert Path(hf_hub_download(NAME, 'model.safetensors', local_files_only=True)).read_bytes() == WEIGHTS


@pytest.mark.parametrize('revision', ['v1', 'feature/x', 'commit'])
def test_pull_of_a_revision(hub, published, tmp_path, revision):
    old = published.branches['main']
    published.branches |= {'v1': old, 'feature/x': old}
    published.commit(published.files | {'config.json': b'{}'})
    commit, _ = pull(f'{NAME}@{old if revision == "commit" else revision}', tmp_path / 'got')
    assert commit == old
    assert content(tmp_path / 'got') == published.commits[old]


def test_broken_transfer_goes_on_where_it_stopped(hub, published, tmp_path, capsys):
    hub.fail('GET /cdn', cut_after=150_000)
    pull(NAME, tmp_path / 'got')
    first, second = hub.asked('GET /cdn')
    assert 'range' not in first and second['range'] == 'bytes=131072-'
    assert content(tmp_path / 'got')['model.safetensors'] == WEIGHTS
    assert capsys.readouterr().err.count('\n') == 1


def test_next_pull_goes_on_where_the_last_one_gave_up(hub, published, tmp_path, monkeypatch):
    monkeypatch.setattr(network, 'WAITS', ())
    hub.fail('GET /cdn', cut_after=70_000)
    assert 'what has arrived is kept' in error_of(pull, NAME, tmp_path / 'got')
    assert not (tmp_path / 'got').exists()
    pull(NAME, tmp_path / 'got')
    assert hub.asked('GET /cdn')[-1]['range'] == 'bytes=65536-'
    assert content(tmp_path / 'got')['model.safetensors'] == WEIGHTS


def test_server_that_sends_all_again_is_understood(hub, published, tmp_path):
    hub.fail('GET /cdn', cut_after=150_000)
    hub.fail('GET /cdn', ignore_range=True)
    pull(NAME, tmp_path / 'got')
    assert content(tmp_path / 'got')['model.safetensors'] == WEIGHTS


@pytest.mark.parametrize('path', ['config.json', 'model.safetensors'])
def test_wrong_bytes_are_never_delivered(hub, published, tmp_path, path):
    hub.fail('GET /cdn' if path == 'model.safetensors' else f'GET .*{path}', wrong_bytes=True, times=99)
    message = error_of(pull, NAME, tmp_path / 'got')
    assert path in message and 'other content than the Hub announces' in message
    assert not (tmp_path / 'got').exists()
    hub.faults.clear()
    pull(NAME, tmp_path / 'got')  # nothing of it is left in the cache
    assert content(tmp_path / 'got') == published.files


def test_bytes_that_were_wrong_once_are_fetched_anew(hub, published, tmp_path):
    hub.fail('GET /cdn', wrong_bytes=True)
    pull(NAME, tmp_path / 'got')
    assert content(tmp_path / 'got') == published.files


@pytest.mark.parametrize('status', TEMPORARY)
def test_download_goes_on_after_a_passing_fault(hub, published, tmp_path, status):
    hub.fail('GET .*/config.json', status)
    hub.fail('GET /cdn', status)
    pull(NAME, tmp_path / 'got')
    assert content(tmp_path / 'got') == published.files


@pytest.mark.parametrize('step', ['GET /api/models/me/model', 'GET .*/tree/', 'HEAD .*/resolve/'])
def test_pull_goes_on_after_a_passing_fault(hub, published, tmp_path, step):
    hub.fail(step, 503)
    pull(NAME, tmp_path / 'got')
    assert content(tmp_path / 'got') == published.files


def test_without_network_the_cache_serves(hub, published, tmp_path, capsys):
    pull(NAME, tmp_path / 'one')
    hub.close()
    commit, _ = pull(NAME, tmp_path / 'two')
    assert commit == published.branches['main']
    assert content(tmp_path / 'two') == published.files
    assert 'looking in the cache' in capsys.readouterr().err


def test_offline_mode_asks_nobody(hub, published, tmp_path, monkeypatch):
    from huggingface_hub import constants
    pull(NAME, tmp_path / 'one')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    asked = len(hub.requests)
    pull(NAME, tmp_path / 'two')
    assert content(tmp_path / 'two') == published.files
    assert len(hub.requests) == asked
    assert 'never pulled into the cache' in error_of(pull, f'{NAME}@v2', tmp_path / 'three')
    assert 'HF_HUB_OFFLINE is set, and me/other was never pulled' in error_of(pull, 'me/other', tmp_path / 'three')


def test_incomplete_cache_is_told_by_what_is_missing(hub, published, tmp_path, monkeypatch):
    from huggingface_hub import constants
    pull(NAME, tmp_path / 'one')
    (tmp_path / 'cache/models--me--model/snapshots' / published.branches['main'] / 'model.safetensors').unlink()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'lacks model.safetensors of me/model' in error_of(pull, NAME, tmp_path / 'two')
    assert not (tmp_path / 'two').exists()


def test_damage_in_the_cache_is_found_and_mended(hub, published, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants
    _, files = pull(NAME, tmp_path / 'one')
    blob = tmp_path / 'cache/models--me--model/blobs' / next(file.digest for file in files if 'safe' in file.path)
    blob.write_bytes(bytes(len(WEIGHTS)))  # the size is right
    with monkeypatch.context() as patch:
        patch.setattr(constants, 'HF_HUB_OFFLINE', True)
        assert 'model.safetensors is damaged in the cache' in error_of(pull, NAME, tmp_path / 'two')
    pull(NAME, tmp_path / 'two')
    assert content(tmp_path / 'two') == published.files
    assert 'damaged in the cache: fetching it anew' in capsys.readouterr().err


@pytest.mark.parametrize(('token', 'options', 'name', 'message'), [
    (WRITE, {}, 'me/nothing', 'me/nothing does not exist, or is private'),
    ('', {}, 'me/nothing', 'you are not logged in'),
    ('', {'private': True}, NAME, 'me/model does not exist, or is private, and you are not logged in'),
    (READ, {'gated': True}, NAME, 'me/model is gated'),
    (READ, {}, f'{NAME}@v9', 'me/model has no revision v9'),
    ('hf_expired', {}, NAME, 'does not accept the token'),
])
def test_what_may_not_be_pulled_is_one_line(hub, tmp_path, monkeypatch, token, options, name, message):
    monkeypatch.setenv('HF_TOKEN', token)
    hub.add(NAME, {'config.json': b'{}'}, **options)
    assert message in error_of(pull, name, tmp_path / 'got')
    assert not (tmp_path / 'got').exists()


@pytest.mark.parametrize('path', ['../evil.txt', '/tmp/evil.txt', 'a/../../evil.txt'])
def test_file_names_cannot_lead_out_of_the_folder(hub, tmp_path, path):
    hub.add(NAME, {path: b'evil'})
    assert 'outside of the folder' in error_of(pull, NAME, tmp_path / 'got')


def test_pull_into_something_changes_nothing(hub, published, tmp_path):
    (tmp_path / 'got').mkdir()
    (tmp_path / 'got/mine.txt').write_text('mine')
    assert 'give a new one' in error_of(pull, NAME, tmp_path / 'got')
    assert content(tmp_path / 'got') == {'mine.txt': b'mine'}
    assert hub.requests == []


# ---- two at once ------------------------------------------------------------------------------------------------

def test_two_pulls_at_once_into_two_folders_both_succeed(published, tmp_path, monkeypatch, capsys):
    genuine, both = fetching._continue, threading.Barrier(2)

    def slowly(*arguments):
        with contextlib.suppress(threading.BrokenBarrierError):  # as far as they get together
            both.wait(0.3)
        genuine(*arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)
    monkeypatch.setattr(fetching, '_continue', slowly)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: pull(NAME, tmp_path / name), 'ab'))
    assert content(tmp_path / 'a') == content(tmp_path / 'b') == published.files
    assert capsys.readouterr().err.count(f'another process fetches {NAME}: waiting for it') == 1
