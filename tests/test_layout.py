"""docs/layout.md says who may import whom and where tests are; this holds the tree to it."""

import ast
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / 'docs/layout.md').read_text()
ROWS = {room.strip('/').removesuffix('.py'): int(number)
        for number, rooms in re.findall(r'^(\d)  (.+)$', PAGE, re.M) for room in rooms.split()}
MODULES = sorted(path for folder in ('timm_rs', 'tools') for path in (ROOT / folder).rglob('*.py'))


def room_of(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return parts[1] if parts[0] == 'timm_rs' else parts[0]


def imports(path):
    """The modules of ours that a file imports, inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = ([node.module] if isinstance(node, ast.ImportFrom) and node.module else
                 [name.name for name in node.names] if isinstance(node, ast.Import) else [])
        for name in names:
            first, _, rest = name.partition('.')
            if first == 'timm_rs' and rest:
                yield rest.split('.')[0]
            elif first in ('train', 'tools'):
                yield first


def test_the_page_has_every_room():
    rooms = {room_of(path) for path in MODULES} - {'__init__'}
    assert rooms | {'train'} == ROWS.keys()


@pytest.mark.parametrize('path', [*MODULES, ROOT / 'train.py'], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below(path):
    room, name = room_of(path), str(path.relative_to(ROOT).with_suffix('')).removeprefix('timm_rs/')
    for other in imports(path):
        if room == '__init__':
            assert other == 'models'  # importing the package registers the models, no more
        elif other != room:
            assert ROWS[other] < ROWS[room], f'{name} (row {ROWS[room]}) imports {other} (row {ROWS[other]})'


def test_no_file_is_longer_than_350_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_private_name_is_imported_from_another_file():
    for path in [*MODULES, ROOT / 'train.py']:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('timm_rs'):
                assert not [name.name for name in node.names if name.name.startswith('_')], path.relative_to(ROOT)


def test_models_import_nothing_of_ours():
    for path in (ROOT / 'timm_rs/models').glob('*.py'):
        assert set(imports(path)) <= {'models'}, path.name


def test_every_file_stands_on_the_page():
    for path in MODULES:
        if path.parent.name != 'tools' and path.name != '__init__.py':
            assert re.search(rf'(^|\s|/){re.escape(path.name)}(\s|$)', PAGE, re.M), path.relative_to(ROOT)


def test_tests_are_where_what_they_test_is():
    for path in (ROOT / 'tests').rglob('test_*.py'):
        folder = path.relative_to(ROOT / 'tests').parent
        if str(folder) not in ('.', 'program', 'tools'):
            assert (ROOT / 'timm_rs' / folder).is_dir(), path.relative_to(ROOT)
    names = {path.relative_to(ROOT / 'tests') for path in (ROOT / 'tests').rglob('test_*.py')}
    for path in (ROOT / 'timm_rs').rglob('*.py'):
        inside = path.relative_to(ROOT / 'timm_rs')
        same = inside.with_name(f'test_{inside.name}')
        elsewhere = [name for name in names if name.name == same.name and name != same and name.parts[0] not in (
            'program', 'tools')]
        assert same in names or not elsewhere, f'{elsewhere} test {inside}'
