import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, model_entrypoint

import timm_rs
from timm_rs.models import registry

HOSTED = {
    'resnetrs_50.tf_i160_in1k': 'timm/resnetrs50.tf_in1k',
    'resnetrs_101.tf_i192_in1k': 'timm/resnetrs101.tf_in1k',
    'resnetrs_152.tf_i256_in1k': 'timm/resnetrs152.tf_in1k',
    'resnetrs_200.timm_in1k': 'timm/resnetrs200.tf_in1k',
    'resnetrs_270.tf_i256_in1k': 'timm/resnetrs270.tf_in1k',
    'resnetrs_350.tf_i256_in1k': 'timm/resnetrs350.tf_in1k',
    'resnetrs_420.tf_i320_in1k': 'timm/resnetrs420.tf_in1k',
}
CLIP_MODELS = ('resnet3d_50', 'resnetrs3d', *(f'resnetrs3d_{depth}' for depth in (50, 101, 152, 200, 270, 350, 420)))
DEFAULT_SIZES = {
    'resnetrs': 224, 'resnetrs_50': 160, 'resnetrs_101': 192, 'resnetrs_152': 256, 'resnetrs_200': 256,
    'resnetrs_270': 256, 'resnetrs_350': 256, 'resnetrs_420': 320,
    'efficientnet_rs_b0': 160, 'efficientnet_rs_b1': 160, 'efficientnet_rs_b2': 192,
    'efficientnet_rs_b3': 192, 'efficientnet_rs_b4': 224, 'efficientnet_rs_b5': 256,
    'efficientnet_rs_b6': 288, 'efficientnet_rs_b7': 320,
} | dict.fromkeys(CLIP_MODELS, 224)


def run_python(code):
    command = [sys.executable, '-W', 'error', '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(('name', 'size'), DEFAULT_SIZES.items())
def test_default_tag_has_the_input_size_of_the_architecture(name, size):
    assert get_pretrained_cfg(name).input_size == (3, size, size)


def test_hosted_tags_point_at_timms_hub_weights_and_are_the_default():
    assert {name: get_pretrained_cfg(name).hf_hub_id for name in timm.list_pretrained('resnetrs_*')} == HOSTED
    assert not timm.list_pretrained('efficientnet_rs_*')
    for name in HOSTED:
        assert get_pretrained_cfg(name.partition('.')[0]).tag == name.partition('.')[2]
        assert timm.models.is_model_pretrained(name.partition('.')[0])


@pytest.mark.parametrize('name', [name for name in DEFAULT_SIZES if name not in CLIP_MODELS])
def test_cfg_is_complete(name):
    with torch.device('meta'):
        model = timm.create_model('resnetrs' if name.startswith('resnetrs') else 'efficientnet_rs_b0')
    for tag, cfg in get_arch_pretrained_cfgs(name).items():
        assert cfg.architecture == name
        assert model.get_submodule(cfg.first_conv).in_channels == 3
        assert model.get_submodule(cfg.classifier).out_features == cfg.num_classes == 1000
        assert cfg.pool_size == (cfg.input_size[1] // 32, cfg.input_size[2] // 32)
        assert cfg.interpolation == 'bicubic'
        assert (cfg.license, cfg.paper_ids) == ('apache-2.0', 'arXiv:2103.07579')
        if tag == 'resnetrs_200.timm_in1k':
            assert (cfg.crop_pct, cfg.test_input_size) == (1.0, (3, 320, 320))
            assert 'not the TensorFlow weights' in cfg.description
        else:
            assert (cfg.crop_pct, cfg.test_input_size) == (0.875, cfg.input_size)


@pytest.mark.parametrize('name', CLIP_MODELS)
def test_cfg_of_a_network_for_clips_is_complete(name):
    with torch.device('meta'):
        model = timm.create_model(name, width=0.125)
    cfg = get_pretrained_cfg(name)
    assert model.get_submodule(cfg.first_conv).in_channels == 3
    assert model.get_submodule(cfg.classifier).out_features == cfg.num_classes == model.num_classes == 400
    assert (cfg.input_size, cfg.test_input_size, cfg.pool_size) == ((3, 224, 224), (3, 256, 256), (7, 7))
    assert (cfg.mean, cfg.std, cfg.crop_pct, cfg.interpolation) == ((0, 0, 0), (1, 1, 1), 1.0, 'bilinear')
    assert (cfg.license, cfg.paper_ids, cfg.architecture) == ('apache-2.0', 'arXiv:2103.07579', name)


def test_extensions_of_the_paper_say_so():
    described = {name.partition('.')[0] for name in timm.list_models('efficientnet_rs_*', include_tags=True)
                 if 'Not a point of the paper' in (get_pretrained_cfg(name).description or '')}
    assert described == {f'efficientnet_rs_b{n}' for n in (0, 1, 2, 3, 7)}


@pytest.mark.parametrize(('name', 'remedy'), [
    ('resnetrs_101.tf_i160_in1k', r'a tag that has weights \(resnetrs_101.tf_i192_in1k\)'),
    ('resnetrs_200.tf_i256_in1k', r'a tag that has weights \(resnetrs_200.timm_in1k\)'),
    ('efficientnet_rs_b4.rs_i192_in1k', "or your own file: pretrained_cfg_overlay=dict.file='model"),
    ('resnetrs', 'use pretrained=False, or your own file'),
])
def test_missing_weights_are_one_error_that_names_the_remedy(name, remedy):
    with pytest.raises(RuntimeError, match=remedy) as error:
        timm.create_model(name, pretrained=True)
    assert f"no weights are published for '{name}'" in str(error.value)


@pytest.mark.parametrize('source', [
    dict(file='model.safetensors'), dict(url='https://example.org/model.pth'),
    dict(hf_hub_id='someone/model'), dict(state_dict={'fc.bias': torch.zeros(1)}),
])
def test_weights_of_the_user_are_accepted(source):
    cfg = registry.resolve_weights('resnetrs_101', True, 'tf_i160_in1k', source)
    assert (cfg.tag, {key: getattr(cfg, key) for key in source}) == ('tf_i160_in1k', source)


@pytest.mark.parametrize('name', ['resnetrs50', 'resnet50'])
def test_a_name_of_timm_is_refused_and_stays_timms(name):
    before = model_entrypoint(name), get_arch_pretrained_cfgs(name)
    with pytest.raises(ValueError, match=f"'{name}' is already registered by timm.models.resnet; choose"):
        registry.register(lambda pretrained=False, **kwargs: None, name, 'An intruder.')
    assert (model_entrypoint(name), get_arch_pretrained_cfgs(name)) == before


def test_another_packages_use_of_our_name_is_refused():
    with pytest.raises(ValueError, match='already registered by timm_rs.models.resnet_rs'):
        registry.register(lambda pretrained=False, **kwargs: None, 'resnetrs_50', 'An intruder.')


def test_reload_keeps_the_registry_and_does_not_warn():
    run_python("""if True:
        import importlib, timm, timm_rs
        names = timm.list_models(include_tags=True)
        before = timm.models.model_entrypoint('resnetrs_50')
        for module in (timm_rs.models.resnet_rs, timm_rs.models.resnet_rs_3d, timm_rs.models.efficientnet_rs,
                       timm_rs.models, timm_rs):
            importlib.reload(module)
        assert timm.list_models(include_tags=True) == names
        assert before is not timm.models.model_entrypoint('resnetrs_50') is timm_rs.models.resnetrs_50
    """)


def test_entrypoints_can_be_imported_by_name():
    for name in DEFAULT_SIZES:
        entrypoint = getattr(timm_rs.models, name)
        assert entrypoint is model_entrypoint(name)
        assert entrypoint.__name__ == name
        assert entrypoint.__doc__


def test_import_leaves_timms_own_models_untouched():
    done = run_python("""if True:
        import json, timm
        from timm.models import get_arch_pretrained_cfgs, model_entrypoint
        def registered(names):
            return {name: repr((model_entrypoint(name), get_arch_pretrained_cfgs(name))) for name in names}
        names = timm.list_models()
        before, tags = registered(names), timm.list_models(include_tags=True)
        import timm_rs
        ours = set(timm.list_models()) - set(names)
        print(json.dumps(dict(
            same=registered(names) == before, number=len(names), ours=sorted(ours),
            lost=sorted(set(tags) - set(timm.list_models(include_tags=True))))))
    """)
    found = json.loads(done.stdout)
    assert found['same']
    assert found['number'] > 1000
    assert found['lost'] == []
    assert found['ours'] == sorted(DEFAULT_SIZES)


def test_import_is_silent_and_loads_nothing_but_timm():
    done = run_python("""if True:
        import sys, timm
        before = set(sys.modules)
        import timm_rs
        new = {name for name in set(sys.modules) - before if not name.startswith('timm_rs')}
        assert not new, new
    """)
    assert (done.stdout, done.stderr) == ('', '')


@pytest.mark.parametrize('first', ['timm_rs', 'timm_rs.models.layers_3d', 'timm_rs.data.listing'])
def test_models_are_there_with_timm_whatever_is_imported_first(first):
    run_python(f"""if True:
        import importlib.util, inspect, sys, {first}
        assert importlib.util.find_spec('timm') and ('timm' in sys.modules) == ({first!r} != 'timm_rs')
        import timm
        assert timm.is_model('resnetrs_50') and timm.is_model('resnetrs3d_50') and inspect.getsource(timm)
    """)


@pytest.mark.parametrize('encoder', ['tu-resnetrs_50', 'tu-efficientnet_rs_b0'])
def test_segmentation_models_pytorch_builds_upon_ours_by_name(encoder):
    smp = pytest.importorskip('segmentation_models_pytorch')
    model = smp.Unet(encoder, encoder_weights=None, classes=3)
    outputs = model(torch.randn(2, 3, 64, 64))
    assert outputs.shape == (2, 3, 64, 64)
    outputs.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
