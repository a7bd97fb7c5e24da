"""Converted models against TensorFlow itself; runs where the `convert` extra is installed."""
import csv
import lzma
import re
import tarfile
import warnings

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, load_tool
from expected.tf1_resnet_rs import BLOCKS, GOLDEN_LOGITS, Release, draw, images

from timm_rs.errors import UserError
from timm_rs.publish.convert import average_distance, load_official_weights, open_checkpoint, variable_names

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    tf = pytest.importorskip('tensorflow')
h5py = pytest.importorskip('h5py')
keras_rs = pytest.importorskip('tensorflow.keras.applications.resnet_rs', reason='this Keras has no ResNet-RS')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore:`tf.layers:UserWarning'),  # deprecated, and what the release is made of
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),  # TensorFlow's own
]
SIZES = (64, 75, 96)  # 75 px: odd at every stage (38, 19, 10, 5, 3)
MEAN, STD = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Saved:
    def __init__(self, folder, depth):
        self.depth, self.prefix, self.release = depth, folder / 'model.ckpt', Release(BLOCKS[depth])
        self.release.save(self.prefix)


@pytest.fixture(scope='module', params=BLOCKS, ids=lambda depth: f'depth {depth}')
def saved(request, tmp_path_factory):
    """A checkpoint that TensorFlow saved of the released network, and the session it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return Saved(tmp_path_factory.mktemp(f'rs{request.param}'), request.param)


@pytest.fixture(scope='module')
def tool():
    return load_tool('convert_checkpoint')


def logits_of(model, pixels):
    """Logits for images in TensorFlow's layout."""
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()


def relative_error(ours, theirs):
    assert np.abs(theirs).max() > 1 and theirs.std() > 0.1  # a signal has come through
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize('weights', ['ema', 'raw'])
def test_released_graph_and_converted_model_give_the_same_logits(saved, weights):
    model = timm.create_model(f'resnetrs_{saved.depth}')
    with open_checkpoint(saved.prefix) as checkpoint:
        load_official_weights(model, checkpoint, weights)
    for size in SIZES:
        error = relative_error(logits_of(model, images(size)), saved.release.run(images(size), weights))
        print(f'depth {saved.depth}, {size} px, {weights}: {error:.1e}')
        assert error < 1e-5, size


def test_committed_goldens_are_what_tensorflow_gives(saved):
    with lzma.open(ROOT / 'tests/expected/tf1_variables.csv.xz', 'rt') as file:
        rows = [row for row in csv.DictReader(file) if row['depth'] == str(saved.depth)]
    assert ({row['variable']: row['shape'] for row in rows}
            == {name: 'x'.join(map(str, shape)) for name, shape in tf.train.list_variables(str(saved.prefix))})
    goldens = np.load(ROOT / 'tests/expected/tf1_logits.npz')
    for depth, size, weights in GOLDEN_LOGITS:
        if depth == saved.depth:
            golden = goldens[f'{depth}_{size}_{weights}']
            assert relative_error(golden, saved.release.run(images(size), weights)) < 1e-5


@pytest.mark.parametrize('saved', [50], indirect=True)
def test_the_tool_converts_a_published_archive(saved, tool, tmp_path, capsys):
    archive, output = tmp_path / f'resnet-rs-{saved.depth}-i160.tar.gz', tmp_path / 'converted'
    with tarfile.open(archive, 'w:gz', compresslevel=1) as tar:
        for file in saved.prefix.parent.glob('model.ckpt.*'):
            tar.add(file, file.name)
    tool.main(['--model', f'resnetrs_{saved.depth}', '--tag', 'tf_i160_in1k', str(archive),
               '--output', str(output), '--check'])
    out, err = capsys.readouterr()
    assert 'each in its place' in out and 'logits of noise are finite' in out
    assert err == ''
    model = timm.create_model(f'local-dir:{output}', pretrained=True)
    assert relative_error(logits_of(model, images(75)), saved.release.run(images(75), 'ema')) < 1e-5


@pytest.mark.parametrize('saved', [50], indirect=True)
def test_distance_between_averages_and_raw_weights_is_the_largest_of_all(saved):
    model = timm.create_model(f'resnetrs_{saved.depth}')
    with open_checkpoint(saved.prefix) as checkpoint:
        wanted = max(np.abs(draw(name, checkpoint.shapes[name])
                            - draw(f'{name}/ExponentialMovingAverage', checkpoint.shapes[name])).max()
                     for name in variable_names(model).values())
        assert average_distance(model, checkpoint) == pytest.approx(wanted)


@pytest.mark.parametrize('saved', [50], indirect=True)
def test_damaged_checkpoints_end_in_one_line(saved, tool, tmp_path, capsys):
    data, index = (saved.prefix.with_name(f'model.ckpt.{suffix}').read_bytes()
                   for suffix in ('data-00000-of-00001', 'index'))
    for data_size, index_size in ((len(data) // 2, len(index)), (len(data), len(index) // 2), (len(data), 0)):
        (tmp_path / 'model.ckpt.data-00000-of-00001').write_bytes(data[:data_size])
        (tmp_path / 'model.ckpt.index').write_bytes(index[:index_size])
        with pytest.raises(SystemExit, match='2'):
            tool.main(['--model', f'resnetrs_{saved.depth}', '--tag', 'tf_i160_in1k', str(tmp_path / 'model.ckpt'),
                       '--output', str(tmp_path / 'out')])
        out, err = capsys.readouterr()
        assert out == '' and err.count('\n') == 1 and 'model.ckpt: cannot be read' in err
        assert not (tmp_path / 'out').exists()


def keras_model(depth, size, **options):
    return getattr(keras_rs, f'ResNetRS{depth}')(
        weights=None, classifier_activation=None, input_shape=(size, size, 3), **options)


@pytest.fixture(scope='module')
def keras_file(tmp_path_factory):
    """Depth -> .h5 file that Keras saved of a network with random weights and statistics."""
    files = {}

    def save(depth):
        if depth not in files:
            model, files[depth] = keras_model(depth, 64), tmp_path_factory.mktemp('keras') / f'rs{depth}.h5'
            for variable in model.variables:
                variable.assign(draw(variable.name.removesuffix(':0'), tuple(variable.shape)))
            model.save_weights(files[depth])
        return files[depth]
    return save


@pytest.mark.parametrize(('depth', 'sizes'), [(50, SIZES), (101, SIZES[:2])])
def test_keras_and_converted_model_give_the_same_logits(keras_file, depth, sizes):
    model = timm.create_model(f'resnetrs_{depth}')
    with open_checkpoint(keras_file(depth)) as checkpoint:
        load_official_weights(model, checkpoint)
    for size in sizes:
        theirs = keras_model(depth, size, include_preprocessing=False)
        theirs.load_weights(keras_file(depth))
        error = relative_error(logits_of(model, images(size)), theirs(images(size), training=False).numpy())
        print(f'Keras, depth {depth}, {size} px: {error:.1e}')
        assert error < 1e-5, size


def test_kerass_own_preprocessing_is_timms_mean_and_standard_deviation(keras_file):
    theirs, model = keras_model(50, 75), timm.create_model('resnetrs_50').eval()
    theirs.load_weights(keras_file(50))
    with open_checkpoint(keras_file(50)) as checkpoint:
        load_official_weights(model, checkpoint)
    pixels = np.random.RandomState(0).randint(0, 256, (1, 75, 75, 3)).astype(np.float32)
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.inference_mode():
        assert relative_error(model(normalised).numpy(), theirs(pixels, training=False).numpy()) < 1e-5


def test_names_of_the_published_keras_files_lead_to_the_same_weights(keras_file, tmp_path):
    with h5py.File(keras_file(50)) as today, h5py.File(tmp_path / 'then.h5', 'w') as then:
        def copy(path, node):
            if isinstance(node, h5py.Dataset):
                name = re.sub(r'stem_\d+_stem_', 'stem_', path.split('/')[-2])  # Keras counts a process's stems
                for stage in '2345':
                    name = name.replace(f'BlockGroup{stage}__block', f'c{stage}_block')
                name = name.replace('__se_se_', '_se_').replace('__', '_')
                then[f'model_weights/{name}/{name}/{path.split("/")[-1]}'] = node[()]
        today.visititems(copy)
        assert 'model_weights/c2_block_0_se_reduce' in then and 'model_weights/stem_conv_1' in then
    states = []
    for path in (keras_file(50), tmp_path / 'then.h5'):
        model = timm.create_model('resnetrs_50')
        with open_checkpoint(path) as checkpoint:
            load_official_weights(model, checkpoint)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_keras_files_that_do_not_fit_are_refused(keras_file, tmp_path):
    whole, model = keras_file(50).read_bytes(), timm.create_model('resnetrs_50')
    cut = tmp_path / 'cut.h5'
    cut.write_bytes(whole[:len(whole) // 2])
    no_head = tmp_path / 'notop.h5'
    keras_model(50, 64, include_top=False).save_weights(no_head)
    for path, message in ((cut, 'cut.h5: cannot be read'), (no_head, 'notop.h5: lacks predictions/bias')):
        with pytest.raises(UserError, match=message), open_checkpoint(path) as checkpoint:
            load_official_weights(model, checkpoint)
    with pytest.raises(UserError, match='use resnetrs_50'), open_checkpoint(keras_file(50)) as checkpoint:
        load_official_weights(timm.create_model('resnetrs_101'), checkpoint)
