"""What is published of a run: weights under timm's own name, configuration, recipe, results and card."""
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import assert_equal
from PIL import Image
from timm.data import resolve_model_data_config

from timm_rs.errors import UserError
from timm_rs.inference.predict import predict
from timm_rs.inference.source import open_model
from timm_rs.models import PAPER_POINTS
from timm_rs.publish.card import dataset_name, model_card
from timm_rs.publish.folder import stock_name, stock_twin, write_folder
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks.classification import Classification
from timm_rs.training.trained import Trained, read_run

NAME = 'me/tiny'
SMALL = dict(layers=(1, 1, 1, 1), width=0.125)


@pytest.fixture(scope='module')
def written(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('written') / 'folder'
    write_folder(read_run(tiny_run), folder, NAME)
    return folder


def network(name, **kwargs):
    """A network of ours whose batch norms have something to do."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight)
    return model


def front_matter(card):
    return yaml.safe_load(card.split('---\n')[1])


# ---- timm's own name --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', sorted({point.partition('.')[0] for point in PAPER_POINTS}))
def test_fixed_models_have_a_namesake_in_timm(name):
    assert timm.models.model_entrypoint(stock_name(name)).__module__.startswith('timm.')


@pytest.mark.parametrize(('name', 'kwargs', 'architecture'), [
    ('resnetrs_50', {}, 'resnetrs50'),
    ('efficientnet_rs_b0', {}, 'tf_efficientnet_b0'),
    ('resnetrs', dict(depth=26, width=0.25), 'resnetrs50'),
    ('resnetrs', dict(depth=101, width=0.25), 'resnetrs101'),
    ('resnetrs', dict(layers=(2, 1, 1, 1), width=0.5, drop_path_rule='block', weight_init='timm'), 'resnetrs50'),
    ('resnetrs', SMALL | dict(squeeze_excite=False), 'resnetrs50'),
    ('resnetrs', SMALL | dict(squeeze_excite=False, width=1.0, resnet_d=False), 'resnetrs50'),
    ('resnetrs', SMALL | dict(width=1.0, resnet_d=False), 'resnetrs50'),
    ('resnetrs', SMALL | dict(act_layer='silu', output_stride=16), 'resnetrs50'),
])
@pytest.mark.parametrize('channels', [3, 1])
def test_timm_builds_the_same_network_itself(name, kwargs, architecture, channels):
    model = network(name, in_chans=channels, **kwargs)
    twin = stock_twin(model, kwargs, (channels, 64, 48))
    assert twin.pretrained_cfg['architecture'] == architecture
    assert twin.default_cfg['first_conv'] == model.default_cfg['first_conv']
    assert type(twin).__module__.startswith('timm.')
    images = torch.randn(2, channels, 32, 32)
    assert torch.equal(twin(images), model(images))
    assert model(images).std() > 0


@pytest.mark.parametrize('kwargs', [
    SMALL | dict(width=0.3),  # timm rounds the channels of squeeze-and-excitation to multiples of 8
    SMALL | dict(bn_eps=1e-3)])
def test_what_timm_cannot_build_has_no_twin(kwargs):
    assert stock_twin(network('resnetrs', **kwargs), kwargs, (3, 32, 32)) is None


def test_a_network_for_clips_keeps_our_name(tiny_run, tmp_path):
    trained, kwargs = read_run(tiny_run), dict(layers=(1, 1, 1, 1), width=0.125, num_frames=3, self_gating=True)
    clips = dataclasses.replace(
        trained, recipe=dataclasses.replace(trained.recipe, model='resnetrs3d', model_kwargs=kwargs),
        model=network('resnetrs3d', **kwargs), data_config=trained.data_config | dict(num_frames=3))
    assert write_folder(clips, tmp_path / 'folder', NAME) == 'resnetrs3d'
    loaded = timm.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True).eval()
    x = torch.randn(1, 3, 3, 32, 32)
    assert loaded.num_frames == 3 and torch.equal(loaded(x), clips.model(x))
    assert '```python\nimport timm_rs\n' in (tmp_path / 'folder/README.md').read_text()


def test_a_card_of_a_network_for_clips_has_code_that_says_what_predict_says(clips_run, tmp_path, monkeypatch):
    write_folder(read_run(clips_run), tmp_path / 'folder', NAME)
    card = (tmp_path / 'folder/README.md').read_text()
    assert '3 frames of 24 px' in card and 'images' not in card and 'Image.open' not in card
    code = re.search('```python\n(.*?)```', card, re.DOTALL)[1]
    assert code.startswith('import timm_rs\n') and '(N, C, T, H, W)' in code
    monkeypatch.chdir(tmp_path)
    video = clips_run.parent / 'clips/validation/red/2.mp4'
    shutil.copy(video, 'video.mp4')
    found = {}
    exec(code.replace(f'hf-hub:{NAME}', 'local-dir:folder'), found)
    assert found['x'].shape == (6, 3, 3, 32, 32)
    one, = predict(open_model(str(clips_run)), [str(video)])
    best = found['probabilities'].topk(2)
    assert best.indices.tolist() == [each.number for each in one.classes]
    assert best.values.tolist() == pytest.approx([each.probability for each in one.classes], rel=1e-4)


def test_weights_that_are_not_finite_are_not_published():
    model = network('resnetrs', **SMALL)
    model.fc.bias.data[0] = float('nan')
    with pytest.raises(UserError, match='not finite'):
        stock_twin(model, SMALL, (3, 32, 32))


def test_network_without_twin_is_published_under_our_name_and_says_so(tiny_run, tmp_path):
    trained = read_run(tiny_run)
    recipe = dataclasses.replace(trained.recipe, model_kwargs=SMALL | dict(width=0.3))
    odd = dataclasses.replace(trained, recipe=recipe, model=network('resnetrs', **recipe.model_kwargs))
    assert write_folder(odd, tmp_path / 'folder', NAME) == 'resnetrs'
    card = (tmp_path / 'folder/README.md').read_text()
    assert '```python\nimport timm_rs\n' in card and 'timm alone has no such network' in card
    loaded = timm.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), odd.model(images))


def test_any_model_of_timm_is_published_as_it_is(tiny_run, tmp_path):
    trained = read_run(tiny_run)
    recipe = dataclasses.replace(trained.recipe, model='test_resnet', model_kwargs={})
    plain = dataclasses.replace(trained, recipe=recipe, model=network('test_resnet'))
    assert write_folder(plain, tmp_path / 'folder', NAME) == 'test_resnet'
    assert 'import timm_rs' not in (tmp_path / 'folder/README.md').read_text()


@pytest.mark.parametrize(('name', 'kwargs', 'channels', 'size'), [
    ('resnetrs', SMALL, 1, 32),  # as timm's own
    ('resnetrs', SMALL | dict(width=0.3), 3, 32),  # which only we have
    ('efficientnet_rs_b0', {}, 3, 64),
    ('test_resnet', dict(global_pool='max'), 3, 48), ('test_vit', dict(img_size=48), 3, 48)])
def test_transformers_says_what_timm_says_of_a_published_folder(tiny_run, tmp_path, name, kwargs, channels, size):
    trained, model = read_run(tiny_run), network(name, in_chans=channels, **kwargs)
    trained = dataclasses.replace(
        trained, recipe=dataclasses.replace(trained.recipe, model=name, model_kwargs=kwargs), model=model,
        class_names=['ant', 'bee', 'cat', 'dog', 'eel'],
        data_config=trained.data_config | dict(
            input_size=(channels, size, size), crop_pct=0.9, interpolation='bilinear', mean=(0.3,) * channels,
            std=(0.4,) * channels))
    write_folder(trained, tmp_path / 'folder', NAME)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)).save(tmp_path / 'image.jpg')
    codes = re.findall('```python\n(.*?)```', (tmp_path / 'folder/README.md').read_text(), re.DOTALL)
    with_timm, with_transformers = {}, {}
    for code, found in zip(codes, (with_timm, with_transformers), strict=True):
        exec(code.replace(f'hf-hub:{NAME}', f'local-dir:{tmp_path}/folder').replace(NAME, f'{tmp_path}/folder').replace(
            'image.jpg', f'{tmp_path}/image.jpg'), found)
    assert torch.equal(with_timm['x'], with_transformers['x']['pixel_values'])
    assert with_timm['x'].shape == (1, channels, size, size)
    torch.testing.assert_close(with_transformers['probabilities'], with_timm['probabilities'])
    images = torch.randn(2, channels, size, size)
    assert torch.equal(with_timm['model'](images), model(images))
    loaded = with_transformers['model']
    # Its weights are the same, but lie in the file's own memory: some processors add in an order that goes by where.
    weights = model.state_dict()
    assert_equal({name: loaded.state_dict()[f'timm_model.{name}'] for name in weights}, dict(weights))
    torch.testing.assert_close(loaded(images).logits, model(images))
    assert model(images).std() > 0
    assert with_transformers['model'].config.id2label[1] == 'bee'


# ---- what is read -----------------------------------------------------------------------------------------------

def test_averaged_weights_are_read_where_there_are_any(tiny_run):
    checkpoint = torch.load(tiny_run / 'model_best.pth.tar', weights_only=True)
    for wanted, read, key in ((None, 'ema', 'state_dict_ema'), ('ema', 'ema', 'state_dict_ema'),
                              ('raw', 'raw', 'state_dict')):
        trained = read_run(tiny_run, wanted)
        assert trained.weights == read
        assert torch.equal(trained.model.fc.weight, checkpoint[key]['fc.weight'])


def test_metrics_are_those_of_the_weights(tiny_run):
    evaluation = json.loads((tiny_run / 'model_best.eval.json').read_text())
    ema, raw = read_run(tiny_run), read_run(tiny_run, 'raw')
    assert ema.metrics == {name: evaluation[name] for name in ('top1', 'loss')}
    assert (ema.images, raw.images) == (15, None)
    row = (tiny_run / 'summary.csv').read_text().splitlines()
    best = dict(zip(row[0].split(','), row[ema.epochs].split(','), strict=True))
    assert raw.metrics['loss'] == float(best['eval_raw_loss']) != ema.metrics['loss']
    assert 'eval.json' in ema.files and 'eval.json' not in raw.files


def test_checkpoint_alone_is_enough(tiny_run, tmp_path):
    shutil.copy(tiny_run / 'last.pth.tar', tmp_path)
    trained = read_run(tmp_path / 'last.pth.tar')
    assert (trained.epochs, trained.metrics, trained.files) == (2, {}, {})
    assert 'no validation' in model_card(trained, NAME, 'mit', 'pets', 'resnetrs50')


def test_bare_weights_take_the_recipe_beside_them(tiny_run, tmp_path):
    weights = torch.load(tiny_run / 'last.pth.tar', weights_only=True)['state_dict']
    torch.save(weights, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match='does not say what it was trained with'):
        read_run(tmp_path / 'weights.pth')
    shutil.copy(tiny_run / 'args.yaml', tmp_path)
    trained = read_run(tmp_path / 'weights.pth')
    assert (trained.weights, trained.epochs) == ('raw', None)
    with pytest.raises(UserError, match='--weights raw'):
        read_run(tmp_path / 'weights.pth', 'ema')


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda run: [path.unlink() for path in run.glob('*.tar')], 'holds no model_best'),
    (lambda run: (run / 'model_best.pth.tar').write_bytes(b'PK'), 'is damaged: its SHA-256'),
    (lambda run: (run / 'model_best.eval.json').write_text('{'), 'is damaged'),
    (lambda run: (run / 'model_best.eval.json').write_text('[]'), 'is damaged'),
])
def test_damaged_run_is_one_line(tiny_run, tmp_path, damage, message):
    run = shutil.copytree(tiny_run, tmp_path / 'run')
    damage(run)
    with pytest.raises(UserError, match=message):
        read_run(run)


def test_recipe_of_another_version_is_one_line(tiny_run, tmp_path):
    content = torch.load(tiny_run / 'last.pth.tar', weights_only=True)
    content['args']['flux'] = 1
    torch.save(content, tmp_path / 'last.pth.tar')
    with pytest.raises(UserError, match='another version of timm_rs: it has flux'):
        read_run(tmp_path)


# ---- what is written --------------------------------------------------------------------------------------------

def test_folder_holds_what_the_hub_and_timm_expect(written):
    assert sorted(path.name for path in written.iterdir()) == [
        'README.md', 'args.yaml', 'config.json', 'eval.json', 'model.safetensors', 'summary.csv']
    config = json.loads((written / 'config.json').read_text())
    assert config['architecture'] == 'resnetrs50'
    assert config['model_args']['channels'] == [8, 16, 32, 64]
    assert config['timm_rs']['model'] == 'resnetrs' and config['timm_rs']['weights'] == 'ema'
    assert config['timm_rs']['model_kwargs'] == {'layers': [1, 1, 1, 1], 'width': 0.125}


def test_preprocessing_of_the_run_is_published(written):
    model = timm.create_model(f'local-dir:{written}', pretrained=True)
    data_config = resolve_model_data_config(model)
    assert (data_config['input_size'], data_config['crop_pct']) == ((3, 32, 32), 1.0)
    assert model.num_classes == 3


def test_same_run_gives_the_same_bytes(tiny_run, written, tmp_path):
    write_folder(read_run(tiny_run), tmp_path / 'again', NAME)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / 'again').iterdir()}


def test_no_path_of_this_machine_is_published(tiny_run, written):
    for path in written.iterdir():
        assert str(tiny_run.parent).encode() not in path.read_bytes(), path.name
    values = read_file(written / 'args.yaml')
    assert values['epochs'] == 2 and not values['data_dir'] and not values['output']


def test_recipe_of_the_digits_needs_no_folder(tiny_run, tmp_path):
    trained = read_run(tiny_run)
    for data_dir, builtin, command in (
            ('data/digits', 'digits', 'args.yaml\n'), ('pets', '', '--data-dir YOUR_DATA\n')):
        recipe = dataclasses.replace(trained.recipe, builtin_data='digits', data_dir=data_dir)
        write_folder(dataclasses.replace(trained, recipe=recipe), tmp_path / data_dir[:4], NAME)
        assert read_file(tmp_path / data_dir[:4] / 'args.yaml')['builtin_data'] == builtin
        assert f'{command}```' in (tmp_path / data_dir[:4] / 'README.md').read_text()


def test_card_is_what_the_hub_reads(tiny_run, written):
    card = (written / 'README.md').read_text()
    header = front_matter(card)
    assert header['tags'][:3] == ['image-classification', 'timm', 'transformers'] and header['library_name'] == 'timm'
    assert header['license'] == 'apache-2.0' and 'datasets' not in header and 'base_model' not in header
    result, = header['model-index'][0]['results']
    assert result['dataset'] == dict(type='imagefolder', name='pets', split='validation')
    top1, = (metric['value'] for metric in result['metrics'])  # of three classes there is no top-5
    assert top1 == round(read_run(tiny_run).metrics['top1'], 3)
    assert f'| {top1:.3f} |' in card and '15 images' in card
    assert re.search('## Use\n\n```python\nimport timm\n', card)
    assert 'python train.py --recipe args.yaml --data-dir YOUR_DATA' in card
    assert '## Limits' in card and 'results of the paper' not in card.lower()


@pytest.mark.parametrize(('dataset', 'data_dir', 'given', 'id'), [
    ('', '/data/pets', None, None), ('', '/data/pets', 'ILSVRC/imagenet-1k', 'ILSVRC/imagenet-1k'),
    ('', '/data/pets', 'my photos', None), ('hfds/timm/mini-imagenet', None, None, 'timm/mini-imagenet'),
    ('hfds/mnist', None, None, 'mnist'), ('tfds/imagenet_v2/matched', None, None, None)])
def test_data_of_a_card_are_ids_of_the_hub_or_none(tiny_run, dataset, data_dir, given, id):
    trained = read_run(tiny_run)
    trained = dataclasses.replace(
        trained, measured_on=None, recipe=dataclasses.replace(trained.recipe, dataset=dataset, data_dir=data_dir))
    header = front_matter(model_card(trained, NAME, 'mit', given or dataset_name(trained), 'resnetrs50'))
    assert header.get('datasets') == (id and [id])
    assert header['model-index'][0]['results'][0]['dataset']['type'] == (id or 'imagefolder')


@pytest.mark.parametrize(('base', 'shown'), [('org/name', 'org/name'), ('', None), ('../x/y\n- z', None)])
def test_the_model_that_was_fine_tuned_is_in_the_card(tiny_run, tmp_path, base, shown):
    content = torch.load(tiny_run / 'last.pth.tar', weights_only=True)
    torch.save(content | dict(base_model=base), tmp_path / 'last.pth.tar')
    card = model_card(read_run(tmp_path / 'last.pth.tar'), NAME, 'mit', 'pets', 'resnetrs50')
    assert front_matter(card).get('base_model') == shown


def test_results_of_the_paper_stand_apart_and_costs_in_both_conventions():
    model = timm.create_model('resnetrs_50').eval()
    recipe = Recipe(model='resnetrs_50', data_dir='/data/imagenet', epochs=350, img_size=160)
    data_config = dict(resolve_model_data_config(model), crop_pct=0.875)
    trained = Trained(model, recipe, Classification(recipe), data_config, 'raw', 350,
                      {'top1': 12.345, 'top5': 20.0}, 50000, {})
    card = model_card(trained, NAME, 'apache-2.0', 'imagenet-1k', 'resnetrs50')
    ours, paper = card.index('12.345'), card.index('78.8 % top-1 (paper, Table 7')
    assert '## Results of the paper\n\nNot of these weights' in card[ours:paper + 1]
    assert '| 35.692 | 160 px | 2.279 | 4.557 | 6.202 |' in card
    assert '78.8' not in str(front_matter(card))
    other = model_card(dataclasses.replace(trained, data_config=data_config | dict(input_size=(3, 128, 128))), NAME,
                       'apache-2.0', 'imagenet-1k', 'resnetrs50')
    assert 'Results of the paper' not in other
