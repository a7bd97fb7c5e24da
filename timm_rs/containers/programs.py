"""Exported programs: .pt2 of torch.export, ONNX, OpenVINO; graphs and weights, and no name of anything else."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from timm_rs.containers.archives import is_inside, open_zip
from timm_rs.errors import UserError

# What torch.export.save writes of a model without custom objects; all else can be code: compiled libraries
# (data/aotinductor/), custom objects (data/constants/custom_obj_N), pickled weights of older formats (*.pt).
CONTENT = re.compile(r'models/model\.json|data/weights/(model_weights_config\.json|weight_\d+)|'
                     r'data/constants/(model_constants_config\.json|tensor_\d+)|extra/\w+|'
                     r'archive_format|archive_version|byteorder|\.data/version', re.ASCII)
DROPPED = re.compile(r'data/sample_inputs/model\.pt|\.data/serialization_id|\.format_version|\.storage_alignment')
SAMPLES = 'data/sample_inputs/model.pt'  # a pickle, which torch reads as one

# torch makes Python of the names in a graph, evaluates the expressions of its sizes, and calls what targets name.
NAME = re.compile(r'[\w.+-]*', re.ASCII)
TARGET = re.compile(r'torch\.ops\.aten\.(?!__|from_file\b|save\b)\w+(\.\w+)?|torch\.sym_\w+|'
                    r'_operator\.(add|sub|mul|floordiv|mod|truediv|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)|'
                    r'math\.(ceil|floor|trunc|sqrt|pow)', re.ASCII)
EXPRESSION = re.compile(r"((Symbol|Integer|Add|Mul|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min|positive|integer|"
                        r"nonnegative|nonzero|True|False)\b|'[a-z]+\d+'|\b\d{1,9}\b|[-(), =])*", re.ASCII)
STRUCTURE = re.compile(r'([\[\]{}:, \d]|null|"(type|context|children_spec|null|\[\]|builtins\.(tuple|list|dict))")*')


def load_program(path: Path) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """The program of a .pt2 file and the texts that were saved with it, by name.

    The file is read as an archive first. What torch gets is another one, made of what has been looked at: without the
    pickled example of an input, the origins of the nodes and the conditions on inputs, which torch would run as
    Python. Raises UserError for anything that a model from `torch.export.save` has not, and what torch raises.
    """
    with open_zip(path) as archive:
        members = dict(_members(path, archive))
    for name, content in members.items():
        if name.endswith('_config.json'):
            _check_payloads(path, json.loads(content))
    program = json.loads(members['models/model.json'])
    program['guards_code'] = []
    program['graph_module']['metadata'] = {}
    for node in program['graph_module']['graph']['nodes']:
        node['metadata'] = {}
    _check_program(path, program)
    texts = {name.removeprefix('extra/'): members.pop(name).decode() for name in list(members) if name[:5] == 'extra'}
    members |= {'models/model.json': json.dumps(program).encode(), SAMPLES: b''}
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, 'w') as written:
        for name in list(members):
            written.writestr(f'model/{name}', members.pop(name))
    clean.seek(0)
    return torch.export.load(clean), texts


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """The members that a program needs, below the folder that all of them are in."""
    for name in archive.namelist():
        inside = name.partition('/')[2]
        if CONTENT.fullmatch(inside):
            yield inside, archive.read(name)
        elif not DROPPED.fullmatch(inside):
            raise UserError(f'{path} is refused: {name} in it is nothing that tools/export.py writes, and may be code')


def _check_payloads(path: Path, config: dict[str, Any]) -> None:
    for name, payload in config['config'].items():
        if payload['use_pickle'] is not False or not re.fullmatch(r'(weight|tensor)_\d+', payload['path_name']):
            raise UserError(f'{path} is refused: its weight {name} is a pickle, which can run code')


def _check_program(path: Path, value: Any, key: str = '') -> None:
    """Raise UserError unless every text in the program is a plain name, or of the form that `key` asks for."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_program(path, name)
            _check_program(path, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_program(path, inner, key)
    elif isinstance(value, str):
        form = {'target': TARGET, 'expr_str': EXPRESSION, 'in_spec': STRUCTURE, 'out_spec': STRUCTURE}.get(key, NAME)
        if len(value) > 10_000 or not form.fullmatch(value):
            raise UserError(f'{path} is refused: "{value[:60]}" in its graph ({key or "a name"}) is none of the '
                            'operations and names of a model, and may be code')


def load_onnx(path: Path) -> Any:
    """The onnx.ModelProto of a file that has all its weights in itself. Raises UserError, and what onnx does."""
    import onnx
    model = onnx.load_model_from_string(path.read_bytes())
    left = [model]
    while left:
        message = left.pop()
        if isinstance(message, onnx.TensorProto) and (
                message.external_data or message.data_location == onnx.TensorProto.EXTERNAL):
            raise UserError(f'{path} is refused: it has weights in other files; export it again as one file')
        for field, value in message.ListFields():
            if field.message_type is not None:
                left += [value] if hasattr(value, 'ListFields') else value
    return model


def load_openvino(path: Path) -> Any:
    """The openvino.Model of an .xml file and the .bin beside it. Raises UserError, ValueError and OpenVINO's errors."""
    import openvino
    weights = path.with_suffix('.bin')
    with open(path, 'rb') as file:
        start = file.read(100).lstrip()
    if not start.startswith((b'<?xml', b'<net')):  # or OpenVINO looks for other formats in it
        raise ValueError('it is no XML')
    if not is_inside(weights, path.parent):
        raise UserError(f'{path} is refused: {weights.name} beside it is a link to somewhere else')
    return openvino.Core().read_model(path, weights)
