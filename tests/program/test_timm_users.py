"""What people bring from timm: checkpoints of its train.py, its command lines, its args.yaml."""

import json
from argparse import Namespace

import pytest
import timm
import torch
import yaml
from conftest import EXPECTED, load_tool

from timm_rs.recipe import timm_options
from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.knobs import FIELDS
from timm_rs.recipe.reading import DEFAULTS, read_file
from timm_rs.training.checkpoint import read_checkpoint
from timm_rs.training.trained import read_run

TIMM = {name: entry['default'] for name, entry in json.loads(
    (EXPECTED / 'timm_train_args.json').read_text())['arguments'].items()}
SETTINGS = ['--model', 'test_resnet', '--img-size', 32, '--crop-pct', 1.0, '--device', 'cpu', '-j', 0, '-b', 8,
            '--epochs', 2, '--warmup-epochs', 0, '--lr', 0.01]


@pytest.fixture
def theirs(tmp_path, image_folder):
    """A checkpoint as timm's train.py saves it: after two epochs, averaged, with its arguments as a Namespace."""
    torch.manual_seed(3)
    model, average = (timm.create_model('test_resnet', num_classes=3) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    arguments = Namespace(**TIMM | dict(
        model='test_resnet', num_classes=3, img_size=32, crop_pct=1.0, data_dir=str(image_folder), epochs=2,
        device_modules=['no_such_module'], class_map='/no/such/file', prefetcher=True, world_size=1, rank=0,
        initial_checkpoint='/no/such/file', distributed=False))
    path = tmp_path / 'theirs/model_best.pth.tar'
    path.parent.mkdir()
    torch.save(dict(epoch=1, arch='test_resnet', state_dict=model.state_dict(), optimizer=optimizer.state_dict(),
                    version=2, args=arguments, state_dict_ema=average.state_dict(), metric=33.3), path)
    return path


@pytest.mark.parametrize('option', ['--eval', '--initial-checkpoint', '--pretrained-path'])
def test_their_weights_are_taken(run, theirs, image_folder, option):
    result = run(*SETTINGS, '--data-dir', image_folder, option, theirs, '--experiment', 'a', '--epochs', 1)
    assert result.code == 0, result.err


def test_their_run_goes_on_only_by_its_weights(run, theirs, image_folder, tmp_path):
    arguments = [*SETTINGS, '--data-dir', image_folder, '--experiment', 'a', '--resume', theirs, '--epochs', 3]
    result = run(*arguments)
    assert result.code == 2 and result.err.count('\n') == 1, result
    assert '--initial-checkpoint' in result.err and '--no-resume-opt' in result.err
    result = run(*arguments, '--no-resume-opt', '--model-ema')
    assert result.code == 0 and 'epochs 3 to 3' in result.out, result.err
    assert read_checkpoint(tmp_path / 'runs/a/last.pth.tar')['epoch'] == 2


def test_their_checkpoint_says_what_it_is(theirs, image_folder, tmp_path, capsys):
    trained = read_run(theirs)
    assert (trained.recipe.model, trained.weights, trained.epochs) == ('test_resnet', 'ema', 2)
    assert trained.recipe.device_modules is None and not trained.recipe.class_map
    load_tool('predict').main([str(theirs.parent), str(image_folder / 'validation/cat/0.jpg')])
    assert 'class 0' in capsys.readouterr().out
    load_tool('push_to_hub').main([str(theirs), '--repo-id', 'org/theirs', '--dry-run'])
    assert 'trained on images' in capsys.readouterr().out
    load_tool('export').main([str(theirs), '--output', str(tmp_path / 'theirs.pt2'), '--format', 'torch_export'])


def test_arguments_of_other_programs_say_nothing(theirs, image_folder, run, capsys):
    content = torch.load(theirs, weights_only=False)
    torch.save(dict(model=content['state_dict'], epoch=1, optimizer={}, lr_scheduler={},
                    args=Namespace(model='resnet18', weights='x', data_path='/data')), theirs)
    assert run(*SETTINGS, '--data-dir', image_folder, '--eval', theirs).code == 0
    with pytest.raises(SystemExit):
        load_tool('predict').main([str(theirs), str(image_folder)])
    assert 'does not say what it was trained with' in capsys.readouterr().err


def test_a_value_that_may_be_part_of_the_model_is_refused(theirs, image_folder, capsys):
    content = torch.load(theirs, weights_only=False)
    content['args'].gp = 'avgmaxc'
    torch.save(content, theirs)
    with pytest.raises(SystemExit):
        load_tool('predict').main([str(theirs), str(image_folder)])
    assert 'gp must be one of' in capsys.readouterr().err


# ---- command lines ----------------------------------------------------------------------------------------------

ABSENT = sorted(TIMM.keys() - FIELDS.keys() - {'data', 'local_rank'})


def test_the_list_of_what_only_timm_has_is_timms():
    assert {name: TIMM[name] for name in ABSENT} == timm_options.ABSENT
    assert set(timm_options.INSTEAD.values()) - {''} <= FIELDS.keys()
    assert not timm_options.INSTEAD.keys() & FIELDS.keys()


@pytest.mark.parametrize('name', [*ABSENT, *timm_options.INSTEAD])
def test_what_only_timm_has_is_refused_in_one_line(run, name):
    option = f'--{name.replace("_", "-")}' if len(name) > 1 else f'-{name}'
    result = run('--recipe', 'quickstart', option, 1, '--no-such', '--tta', 2)
    assert result.code == 2 and result.err.count('\n') == 1
    assert f'timm_rs does not have {option}' in result.err and '--tta' in result.err
    if instead := timm_options.INSTEAD.get(name):
        assert f'{option} (write --{instead.replace("_", "-")})' in result.err


@pytest.mark.parametrize(('words', 'expected'), [
    (['imagenet'], dict(data_dir='imagenet')),
    (['imagenet', '--data-dir', 'imagenet'], dict(data_dir='imagenet')),
    (['--torchcompile'], dict(torchcompile='inductor')),
    (['--torchcompile', 'eager'], dict(torchcompile='eager')),
    (['--local-rank', 3], {}), (['--local_rank=3'], {}),
    (['-b', 3, '-vb', 4, '-j', 1, '--no-aug'],
     dict(batch_size=3, validation_batch_size=4, workers=1, no_aug=True)),
])
def test_their_spellings_are_ours(run, words, expected):
    result = run(*words, '-c', 'rs50', '--show')
    assert result.code == 0, result.err
    shown = yaml.safe_load(result.out)
    for name, value in expected.items():
        assert shown[name] == value


def test_data_that_are_given_twice_are_refused(run):
    result = run('imagenet', '--data-dir', 'other')
    assert result.code == 2 and 'imagenet' in result.err and 'other' in result.err


def test_the_folder_comes_first_and_trains(run, image_folder):
    assert run(image_folder, *SETTINGS, '--epochs', 1, '--experiment', 'a').code == 0


# ---- args.yaml --------------------------------------------------------------------------------------------------

def theirs_as_yaml(tmp_path, **changes):
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(TIMM | changes, default_flow_style=False))
    return tmp_path / 'args.yaml'


def test_their_args_yaml_is_a_recipe(run, tmp_path, image_folder):
    path = theirs_as_yaml(tmp_path, model='test_resnet', img_size=32, data=str(image_folder), local_rank=5)
    lines: list[str] = []
    values = read_file(path, lines.append)
    assert {name: value for name, value in values.items() if value != getattr(DEFAULTS, name)} == dict(
        model='test_resnet', img_size=32, data_dir=str(image_folder))
    assert len(lines) == 1 and all(f' {name}' in lines[0] for name in (*ABSENT, 'local_rank'))
    result = run('--recipe', path, '--show')
    assert result.code == 0 and result.err.splitlines() == lines
    assert yaml.safe_load(result.out)['data_dir'] == str(image_folder)


def test_all_that_a_file_has_too_much_is_named_at_once(tmp_path):
    path = theirs_as_yaml(tmp_path, jsd_loss=True, drop_connect=0.2, epoch=3, warmup_epoch=1)
    with pytest.raises(RecipeError) as error:
        read_file(path)
    for part in ('unknown key epoch. Did you mean epochs?', 'unknown key warmup_epoch. Did you mean warmup_epochs?',
                 'does not have drop_connect (write drop_path), jsd_loss of timm'):
        assert part in str(error.value)
    assert 'tta' not in str(error.value)
