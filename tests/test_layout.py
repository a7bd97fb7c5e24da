"""docs/layout.md says who may import whom and where tests are; this holds the tree to it."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = (ROOT / 'docs/layout.md').read_text()
ROWS = {room.strip('/').removesuffix('.py'): int(number)
        for number, rooms in re.findall(r'^ ?(\d+)  (.+)$', PAGE, re.M) for room in rooms.split()}
MODULES = sorted((ROOT / 'timm_rs').rglob('*.py'))
DOORS = [ROOT / 'train.py', *sorted((ROOT / 'tools').glob('*.py'))]


def room_of(path):
    return path.relative_to(ROOT).with_suffix('').parts[1]


def imports(path):
    """The modules of ours that a file imports, inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = ([node.module] if isinstance(node, ast.ImportFrom) and node.module else
                 [name.name for name in node.names] if isinstance(node, ast.Import) else [])
        for name in names:
            first, _, rest = name.partition('.')
            assert first not in ('train', 'tools'), path.relative_to(ROOT)
            if first == 'timm_rs' and rest:
                yield rest.split('.')[0]


def test_the_page_has_every_room():
    rooms = {room_of(path) for path in MODULES} - {'__init__'}
    assert rooms == ROWS.keys()


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below(path):
    room, name = room_of(path), str(path.relative_to(ROOT).with_suffix('')).removeprefix('timm_rs/')
    for other in imports(path):
        if room == '__init__':
            assert other == 'models'  # importing the package registers the models, no more
        elif other != room:
            assert ROWS[other] < ROWS[room], f'{name} (row {ROWS[room]}) imports {other} (row {ROWS[other]})'


# What opens a container. Whoever finds images in tars reads headers, one by one, and takes nothing out of them.
LOADERS = re.compile(r'\b((torch|np|numpy|onnx|pickle|joblib|marshal)\.loads?|torch\.(jit|export)\.load|'
                     r'torch\.hub\.\w+|load_file|safe_open|onnx\.load_\w+|read_model|zipfile\.ZipFile|tarfile\.open|'
                     r'tarfile\.TarFile\.open|extractall|unpack_archive|h5py\.File)\b')
HEADERS = ('data/listing.py', 'data/bad_samples.py', 'data/shards/index.py')


def test_containers_are_opened_in_their_room_only():
    for path in MODULES:
        for found in LOADERS.findall(path.read_text()):
            name = path.relative_to(ROOT / 'timm_rs').as_posix()
            assert room_of(path) == 'containers' or (found[0] == 'tarfile.open' and name in HEADERS), (name, found[0])


def test_no_file_is_longer_than_350_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_a_door_only_calls_its_program():
    programs = {path.stem for path in MODULES if room_of(path) == 'programs'} - {'__init__', 'command'}  # timm-rs
    assert {path.stem for path in DOORS} == programs
    for path in DOORS:
        door, program = (ast.parse(file.read_text()) for file in (path, ROOT / 'timm_rs/programs' / path.name))
        assert f'from timm_rs.programs.{path.stem} import main' in path.read_text() and len(door.body) <= 4, path.name
        assert ast.get_docstring(door) == ast.get_docstring(program).splitlines()[0], path.name


def test_no_private_name_is_imported_from_another_file():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('timm_rs'):
                assert not [name.name for name in node.names if name.name.startswith('_')], path.relative_to(ROOT)


def test_models_import_nothing_of_ours():
    for path in (ROOT / 'timm_rs/models').glob('*.py'):
        assert set(imports(path)) <= {'models'}, path.name


WITHOUT = """
import importlib, os, signal, sys
for name in sys.argv[1].split():  # libraries see to themselves
    importlib.import_module(name)
sys.modules |= dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp', 'termios'])
for module, names in (
        (os, 'fork forkpty pread pwrite sched_getaffinity getuid geteuid killpg getpgid setsid statvfs uname wait4'),
        (signal, 'SIGUSR1 SIGUSR2 SIGKILL SIGHUP SIGCHLD SIGALRM pthread_sigmask sigtimedwait sigwait setitimer')):
    for name in names.split():
        delattr(module, name)
opened = open
def without_proc(path, *arguments, **options):
    assert not str(path).startswith('/proc'), path
    return opened(path, *arguments, **options)
import builtins, io
builtins.open = io.open = without_proc
for name in sys.argv[2].split():
    importlib.import_module(name)
"""


def test_no_room_below_programs_needs_what_only_linux_has():
    files = [path for path in MODULES if room_of(path) not in ('programs', 'api')]
    libraries = {name for path in files for node in ast.parse(path.read_text()).body
                 for name in ([node.module] if isinstance(node, ast.ImportFrom) and not node.level else
                              [name.name for name in node.names] if isinstance(node, ast.Import) else [])}
    ours = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in files]
    subprocess.run([sys.executable, '-c', WITHOUT, ' '.join(
        sorted(name for name in libraries if not name.startswith('timm_rs'))),
        ' '.join(name.removesuffix('.__init__') for name in ours)], check=True, cwd=ROOT)


def test_every_file_stands_on_the_page():
    for path in MODULES:
        if path.name != '__init__.py':
            assert re.search(rf'(^|\s|/){re.escape(path.name)}(\s|$)', PAGE, re.M), path.relative_to(ROOT)


def test_the_recipe_stops_at_the_doors():
    doors = ('create_', 'build_', 'open_', 'resume', 'run_')
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and room_of(path) not in ('recipe', 'api'):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                takes = any(re.search(r'\bRecipe\b', ast.unparse(argument.annotation or ast.Constant('')))
                            for argument in arguments)
                is_task = room_of(path) == 'tasks' and node.name == '__init__'  # which create_task calls
                assert not takes or is_task or node.name.lstrip('_').startswith(doors), (path.name, node.name)


def test_no_function_is_longer_than_60_lines_but_the_loop():
    lengths = {node.name: node.end_lineno - node.lineno + 1 for path in MODULES
               for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert {name for name, length in lengths.items() if length > 60} <= {'train_updates'}


# Tests of several files of a room together, or of what no single file does.
TOGETHER = {
    'test_layout', 'models/test_expected_models', 'models/test_hub_weights', 'publish/test_convert_tensorflow',
    'publish/test_hub', 'programs/test_hub_tools', 'recipe/test_recipe', 'training/test_ema_and_schedule',
    'training/test_regularisers', 'training/test_tensorflow_agreement'}


def test_tests_are_where_what_they_test_is():
    for path in (ROOT / 'tests').rglob('test_*.py'):
        inside = path.relative_to(ROOT / 'tests').with_suffix('')
        if inside.parts[0] not in ('program', 'fuzz') and inside.as_posix() not in TOGETHER:
            tested = ROOT / 'timm_rs' / inside.with_name(inside.name.removeprefix('test_').removesuffix('_program'))
            assert tested.with_suffix('.py').exists() or tested.is_dir(), inside
