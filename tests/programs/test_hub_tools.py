import hashlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, failure, load_tool
from hub_server import READ

TOOLS = ROOT / 'tools'
NAME = 'me/tiny'
LISTED = re.compile(r'^([0-9a-f]{64}) +([\d,]+) bytes  (\S+)$', re.MULTILINE)


@pytest.fixture(scope='module')
def push_to_hub():
    return load_tool('push_to_hub')


@pytest.fixture(scope='module')
def pull_from_hub():
    return load_tool('pull_from_hub')


def test_dry_run_prints_exactly_what_a_push_sends(hub, push_to_hub, tiny_run, capsys, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    push_to_hub.main([str(tiny_run), '--repo-id', NAME, '--dry-run'])
    shown = capsys.readouterr().out
    assert hub.requests == []  # and nobody is logged in
    monkeypatch.setenv('HF_TOKEN', 'hf_write_7c1f')
    push_to_hub.main([str(tiny_run), '--repo-id', NAME])
    sent = dict(hub.repositories[NAME].files)
    sent.pop('.gitattributes')
    assert {(path, int(size.replace(',', '')), digest) for digest, size, path in LISTED.findall(shown)} == {
        (path, len(content), hashlib.sha256(content).hexdigest()) for path, content in sent.items()}
    assert sent['config.json'].decode() in shown and sent['README.md'].decode() in shown


def test_push_says_what_it_did_and_where(hub, push_to_hub, tiny_run, capsys):
    push_to_hub.main([str(tiny_run / 'last.pth.tar'), '--repo-id', NAME, '--weights', 'raw', '--private'])
    first, url = capsys.readouterr().out.splitlines()
    assert first.startswith('resnetrs as resnetrs50, raw weights: sent README.md, args.yaml, config.json, model.saf')
    assert url.startswith(f'{hub.url}/{NAME}/commit/')
    push_to_hub.main([str(tiny_run / 'last.pth.tar'), '--repo-id', NAME, '--weights', 'raw', '--private'])
    assert capsys.readouterr().out.splitlines() == [
        'resnetrs as resnetrs50, raw weights: the Hub has all of it', f'{hub.url}/{NAME}']
    push_to_hub.main([str(tiny_run / 'last.pth.tar'), '--repo-id', NAME, '--license', 'mit', '--dataset', 'org/pets'])
    assert 'README.md on the Hub differs and was left as it is; --overwrite-card' in capsys.readouterr().out


def test_pull_shows_every_file_with_its_digest(hub, push_to_hub, pull_from_hub, tiny_run, tmp_path, capsys):
    push_to_hub.main([str(tiny_run), '--repo-id', NAME])
    capsys.readouterr()
    pull_from_hub.main([NAME, '--output', str(tmp_path / 'got')])
    out, err = capsys.readouterr()
    *files, last = out.splitlines()
    weights = (tmp_path / 'got/model.safetensors').read_bytes()
    assert any(line.split()[:2] == ['sha256', hashlib.sha256(weights).hexdigest()] for line in files)
    assert len(files) == 7 and last.startswith(f'{tmp_path / "got"}: commit ') and err == ''


@pytest.mark.parametrize(('argv', 'message'), [
    (['missing', '--repo-id', NAME], 'missing does not exist'),
    (['.', '--repo-id', NAME], 'holds no model_best.pth.tar'),
    (['.', '--repo-id', 'tiny'], 'write org/name')])
def test_what_cannot_be_pushed_is_one_line(hub, push_to_hub, capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in failure(push_to_hub, capsys, *argv)
    assert hub.requests == []


def test_right_that_is_missing_ends_in_status_2(hub, push_to_hub, pull_from_hub, tiny_run, tmp_path, capsys,
                                                monkeypatch):
    monkeypatch.setenv('HF_TOKEN', READ)
    assert 'may not write' in failure(push_to_hub, capsys, tiny_run, '--repo-id', NAME)
    assert 'does not exist' in failure(pull_from_hub, capsys, NAME, '--output', tmp_path / 'got')


@pytest.mark.parametrize('tool', ['push_to_hub', 'pull_from_hub', 'with_timm'])
def test_help_has_an_example(tool, capsys):
    with pytest.raises(SystemExit) as status:
        load_tool(tool).main(['--help'])
    assert status.value.code == 0
    assert f'python tools/{tool}.py' in capsys.readouterr().out


def test_script_of_timm_runs_unchanged_with_our_models(tmp_path):
    (tmp_path / 'neighbour.py').write_text('NAME = "resnetrs_50"\n')
    (tmp_path / 'validate.py').write_text(
        'import sys\nimport timm\nfrom neighbour import NAME\n'
        'if __name__ == "__main__":\n    assert timm.is_model(NAME)\n    print(sys.argv)\n    sys.exit(7)\n')
    done = subprocess.run(
        [sys.executable, '-W', 'error', TOOLS / 'with_timm.py', tmp_path / 'validate.py', '--model', 'resnetrs', '-h'],
        capture_output=True, text=True, check=False, env=os.environ | {'PYTHONPATH': str(TOOLS.parent)})
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"['{tmp_path / 'validate.py'}', '--model', 'resnetrs', '-h']\n"


def test_script_that_is_not_there_is_one_line(capsys, tmp_path):
    assert 'no such script' in failure(load_tool('with_timm'), capsys, tmp_path / 'validate.py')
