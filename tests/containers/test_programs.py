"""Exported files that would run code, or reach out of themselves, are refused before a library has opened them."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import onnx
import pytest
import torch

from timm_rs.containers.programs import load_onnx, load_openvino, load_program
from timm_rs.errors import UserError
from timm_rs.inference.export import open_export

MODEL, WEIGHTS = 'models/model.json', 'data/weights/model_weights_config.json'


class Touch:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(scope='module')
def linear(tmp_path_factory):
    """A program as torch.export.save writes it, and the model that it is of."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(dim=1))
    path = tmp_path_factory.mktemp('program') / 'linear.pt2'
    shapes = ({0: torch.export.Dim('batch')},)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3),), dynamic_shapes=shapes), path,
                      extra_files={'timm_rs': '{}'})
    return path, model


def altered(linear, path, change):
    """A copy whose members, by their names below the archive's folder, have gone through `change`."""
    with zipfile.ZipFile(linear) as archive:
        members = {name.partition('/')[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(f'linear/{name}', content)
    return path


def pickled(path):
    content = io.BytesIO()
    torch.save(Touch(path), content)
    return content.getvalue()


def with_json(name, change):
    def alter(members, touched):
        content = json.loads(members[name])
        change(content, touched)
        members[name] = json.dumps(content).encode()
    return alter


def pickled_weight(members, touched):
    members['data/weights/weight_0'] = pickled(touched)
    with_json(WEIGHTS, lambda config, _: config['config']['0.weight'].update(use_pickle=True))(members, touched)


def custom_object(members, touched):
    members['data/constants/custom_obj_0'] = pickled(touched)
    config = {'config': {'x': dict(path_name='custom_obj_0', is_param=False, use_pickle=True, tensor_meta=None)}}
    members['data/constants/model_constants_config.json'] = json.dumps(config).encode()


def nodes(program):
    return program['graph_module']['graph']['nodes']


def python(touched):
    return f'__import__("pathlib").Path({str(touched)!r}).touch()'


def target(text):
    return with_json(MODEL, lambda program, _: nodes(program)[0].update(target=text))


def spec(touched):
    return json.dumps([1, {'type': 'builtins.dict', 'context': '[{"__enum__": true, "fqn": "this:x", "name": "x"}]',
                           'children_spec': []}])


HOSTILE = {
    'a pickled weight': pickled_weight,
    'a custom object': custom_object,
    'weights of the older format': lambda members, touched: members.update({'data/weights/model.pt': pickled(touched)}),
    'a compiled library': lambda members, touched: members.update({'data/aotinductor/model/a.so': b'\x7fELF'}),
    'the oldest format': lambda members, touched: (
        members.clear(), members.update(version=b'8.14', **{'serialized_state_dict.pt': pickled(touched)})),
    'a function of torch as operation': target('torch.hub.load'),
    'a module of torch as operation': target('torch.os.system'),
    'an operation that writes files': target('torch.ops.aten.save.default'),
    'an operation that maps files': target('torch.ops.aten.from_file.default'),
    'an attribute of an operation': target('torch.ops.aten.__init__.__globals__'),
    'a function that calls': target('_operator.call'),
    'another program beside it': lambda members, touched: members.update({'models/other.json': members[MODEL]}),
    'code as the size of a tensor': with_json(MODEL, lambda program, touched: next(
        size for meta in program['graph_module']['graph']['tensor_values'].values() for size in meta['sizes']
        if 'as_expr' in size)['as_expr'].update(expr_str=python(touched))),
    'code as the name of an input': lambda members, touched: members.update({MODEL: members[MODEL].replace(
        b'"input"', json.dumps(f'x=[{python(touched)}]').encode())}),
    'a module in the form of the inputs': with_json(MODEL, lambda program, touched: program['graph_module'][
        'module_call_graph'][0]['signature'].update(in_spec=spec(touched))),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', HOSTILE)
def test_a_program_with_anything_but_a_graph_and_its_weights_is_refused(kind, linear, tmp_path):
    path = altered(linear[0], tmp_path / 'evil.pt2', lambda members: HOSTILE[kind](members, tmp_path / 'executed'))
    with pytest.raises(UserError, match=r'evil\.pt2 is refused: .*may be code|evil\.pt2 is refused: .*can run code'):
        open_export(path)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.filterwarnings('ignore')
def test_what_torch_would_run_beside_the_graph_never_reaches_it(linear, tmp_path):
    def change(members):
        members['data/sample_inputs/model.pt'] = pickled(tmp_path / 'executed')
        with_json(MODEL, lambda program, touched: program.update(guards_code=[python(touched)]))(
            members, tmp_path / 'executed')
    program, texts = load_program(altered(linear[0], tmp_path / 'a.pt2', change))
    images = torch.randn(5, 3)
    assert torch.equal(program.module()(images), linear[1](images)) and texts == {'timm_rs': '{}'}
    assert not (tmp_path / 'executed').exists()


def tensor(**options):
    return onnx.TensorProto(name='w', dims=[1], data_type=onnx.TensorProto.FLOAT, **options)


ELSEWHERE = dict(data_location=onnx.TensorProto.EXTERNAL, external_data=[
    onnx.StringStringEntryProto(key='location', value='../../secret')])


@pytest.mark.parametrize('graph', [
    onnx.GraphProto(initializer=[tensor(**ELSEWHERE)]),
    onnx.GraphProto(node=[onnx.NodeProto(attribute=[onnx.AttributeProto(t=tensor(**ELSEWHERE))])]),
    onnx.GraphProto(node=[onnx.NodeProto(attribute=[onnx.AttributeProto(
        g=onnx.GraphProto(initializer=[tensor(**ELSEWHERE)]))])]),
    onnx.GraphProto(sparse_initializer=[onnx.SparseTensorProto(values=tensor(**ELSEWHERE))])])
def test_an_onnx_file_with_weights_elsewhere_is_refused(graph, tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    with pytest.raises(UserError, match=r'a\.onnx is refused: it has weights in other files'):
        load_onnx(path)
    path.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor(float_data=[1])])).SerializeToString())
    assert load_onnx(path).graph.initializer[0].float_data == [1]


def test_openvino_reads_the_weights_beside_the_graph_and_no_others(tmp_path):
    (tmp_path / 'folder').mkdir()
    path, outside = tmp_path / 'folder/a.xml', tmp_path / 'secret.bin'
    path.write_text('<?xml version="1.0"?><net/>')
    shutil.copy(path, outside)
    path.with_suffix('.bin').symlink_to(outside)
    with pytest.raises(UserError, match=r'a\.xml is refused: a\.bin beside it is a link'):
        load_openvino(path)
    path.write_bytes(b'\x08\x07')  # ONNX, which OpenVINO reads, too
    with pytest.raises(ValueError, match='it is no XML'):
        load_openvino(path)
