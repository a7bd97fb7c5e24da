"""Weights of the Hub, loaded for real from a local cache: what a machine has that downloaded them once."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

COMPARE = '''
import sys, timm, torch
from pathlib import Path
from safetensors.torch import save_file
repo = Path(sys.argv[1]) / 'hub/models--timm--resnetrs50.tf_in1k'
snapshot = repo / 'snapshots/0123456789012345678901234567890123456789'
snapshot.mkdir(parents=True)
(repo / 'refs').mkdir()
(repo / 'refs/main').write_text(snapshot.name)
save_file(timm.create_model('resnetrs50').state_dict(), snapshot / 'model.safetensors')

import timm_rs
theirs = timm.create_model('resnetrs50', pretrained=True).eval()
ours = timm.create_model('resnetrs_50', pretrained=True).eval()
images = torch.randn(1, 3, 64, 64)
assert torch.equal(ours(images), theirs(images))
adapted = timm.create_model('resnetrs_50', pretrained=True, num_classes=7, in_chans=1)
assert torch.equal(adapted.layer4[2].conv3.weight, theirs.layer4[2].conv3.weight)
assert adapted.fc.out_features == 7 and adapted.conv1[0].in_channels == 1
'''


def offline(home, *command):
    environment = os.environ | {'HF_HOME': str(home), 'HF_HUB_OFFLINE': '1'}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment,
                          cwd=ROOT)


@pytest.mark.slow
def test_pretrained_loads_timms_weights_into_both_names(tmp_path):
    done = offline(tmp_path, '-c', COMPARE, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path, image_folder):
    done = offline(tmp_path, 'train.py', '--model', 'resnetrs_50', '--pretrained', '--data-dir', image_folder,
                   '--device', 'cpu', '--output', tmp_path)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and 'not in the cache' in done.stderr and '--pretrained-path' in done.stderr
