"""Weights that are more than their file, or something else; code in them is tested in training/test_checkpoint.py."""

import zipfile

import pytest
import timm
import torch

from timm_rs.containers.archives import SLACK
from timm_rs.containers.weights import check_weights_in, load_weights_file
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.training.build import build_model
from timm_rs.training.checkpoint import read_checkpoint


def compressed(path):
    """The same checkpoint, its members deflated: a hundred times as small as its tensors."""
    torch.save({'weight': torch.zeros(SLACK // 8)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def of_one_number(value):
    return lambda path: torch.save(value(torch.zeros(1).expand(1 << 18, 1 << 18)), path)


BOMBS = {
    'compressed': compressed,
    'expanded': of_one_number(lambda weight: {'weight': weight}),
    'deep inside': of_one_number(lambda weight: {'state_dict': {'a': torch.zeros(1)}, 'b': [({'c': weight},)]}),
    'sparse': lambda path: torch.save({'weight': torch.sparse_coo_tensor(
        size=(1 << 30, 1 << 30), check_invariants=False)}, path),
    'without data': lambda path: torch.save({'weight': torch.empty(1 << 40, device='meta')}, path),
}


@pytest.mark.parametrize('kind', BOMBS)
def test_a_checkpoint_holds_no_more_than_its_file(kind, tmp_path):
    BOMBS[kind](tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'a\.pth is refused'):
        read_checkpoint(tmp_path / 'a.pth')


def test_a_value_that_holds_itself_is_read_once(tmp_path):
    content = {'state_dict': {'a': torch.zeros(1)}, 'loop': []}
    content['loop'].append(content['loop'])
    torch.save(content, tmp_path / 'a.pth')
    assert load_weights_file(tmp_path / 'a.pth')['loop'][0]


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'a.pth', 'a.pth.tar'])
def test_what_timm_reads_of_a_folder_is_looked_into_first(name, tmp_path):
    model = timm.create_model('test_resnet', num_classes=2)
    timm.models.save_for_hf(model, tmp_path, model_config=dict(num_classes=2), safe_serialization='both')
    (tmp_path / 'model.safetensors').unlink()
    check_weights_in(tmp_path)
    (tmp_path / 'pytorch_model.bin').unlink()
    compressed(tmp_path / name)
    recipe = Recipe(model=f'local-dir:{tmp_path}', pretrained=True, device='cpu')
    with pytest.raises(UserError, match=f'{name} is refused: its member .* is compressed'):
        build_model(recipe, Device('cpu'), create_task(recipe))


def test_arrays_given_as_weights_are_looked_into_first(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', bytes(SLACK + (1 << 20)))
    recipe = Recipe(model='test_vit', pretrained_path=str(tmp_path / 'a.npz'), device='cpu')
    with pytest.raises(UserError, match=r'a\.npz is refused: it has .* bytes and would unpack to'):
        build_model(recipe, Device('cpu'), create_task(recipe))
