import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from conftest import EXPECTED, ROOT

from timm_rs.recipe.command_line import Parser, add_recipe_arguments, resolve
from timm_rs.recipe.declaring import RecipeError
from timm_rs.recipe.knobs import FIELDS, Recipe, value_type
from timm_rs.recipe.reading import changed_knobs, find_recipe, read_file, to_yaml

TIMM = json.loads((EXPECTED / 'timm_train_args.json').read_text())['arguments']
FOLDER = ROOT / 'train_recipes'
RECIPES = sorted(FOLDER.rglob('*.yaml'))


def parse(*argv):
    parser = Parser(prog='train.py')
    add_recipe_arguments(parser)
    return resolve(parser.parse_args([str(word) for word in argv]))


def recipe_file(tmp_path, text):
    path = tmp_path / 'my.yaml'
    path.write_text(text)
    return path


def test_names_types_and_defaults_equal_timms_parser():
    ours = [name for name, field in FIELDS.items() if not field.metadata['block']]
    assert set(ours) <= TIMM.keys()
    for name in ours:
        kind, element, _ = value_type(name)
        timm = TIMM[name]
        assert getattr(Recipe(), name) == timm['default'], name
        assert (element or kind).__name__ == timm['type'], name
        assert (kind is list) == (timm['nargs'] == '+' or isinstance(timm['nargs'], int)), name


def test_keys_of_our_own_are_not_timms():
    assert not {name for name, field in FIELDS.items() if field.metadata['block']} & TIMM.keys()


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_clean(path):
    content = yaml.safe_load(path.read_text())
    values = read_file(path)
    assert next(iter(content)) == 'device_modules' and content['device_modules'] == ['timm_rs']
    assert 'lr' not in values and 'lr_base' in values
    assert not {'data_dir', 'output', 'workers', 'device', 'resume'} & values.keys()
    for line in path.read_text().splitlines():
        assert len(line) <= 120
    header = [line for line in path.read_text().splitlines() if line.startswith('#')]
    for part in ('Reproduces:', 'Command:', 'Expected:', 'Cost:'):
        assert any(part in line for line in header), f'{path.name} lacks {part}'


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_says_only_what_differs_from_the_defaults(path):
    # Restated on purpose: the paper's values that happen to be timm's defaults, for the reader of a diff.
    restated = {
        'lr_base', 'lr_base_size', 'warmup_epochs', 'opt', 'momentum', 'smoothing', 'decay_rate', 'pseudo_ratio'}
    values = read_file(path)
    assert not [name for name, value in values.items() if value == getattr(Recipe(), name) and name not in restated]


def test_command_line_wins_over_file_wins_over_default(tmp_path):
    path = recipe_file(tmp_path, 'epochs: 7\nmomentum: 0.8\namp: true\n')
    recipe, sources = parse('--recipe', path, '--epochs', 3, '--no-amp')
    assert (recipe.epochs, recipe.momentum, recipe.amp, recipe.batch_size) == (3, 0.8, False, 128)
    assert sources['epochs'] == sources['amp'] == 'command line'
    assert (sources['momentum'], sources['batch_size']) == (str(path), 'default')


@pytest.mark.parametrize('name', [name for name in FIELDS if value_type(name)[0] is bool])
def test_a_switch_is_on_by_its_name_and_off_by_no(name):
    option = name.replace('_', '-')
    for value, spelled in ((True, f'--{option}'), (False, f'--no-{option}'.replace('--no-no-', '--'))):
        assert getattr(parse(spelled)[0], name) is value


@pytest.mark.parametrize('option', ['--recipe', '--config', '-c'])
def test_recipe_option_has_aliases(tmp_path, option):
    assert parse(option, recipe_file(tmp_path, 'epochs: 7'))[0].epochs == 7


def test_effective_values_are_a_recipe_again(tmp_path):
    recipe, sources = parse(
        '--recipe', FOLDER / 'quickstart.yaml', '--opt-betas', 0.9, 0.99, '--opt-kwargs', 'fused=True')
    for text in (to_yaml(recipe), to_yaml(recipe, sources)):
        assert Recipe(**read_file(recipe_file(tmp_path, text))) == recipe


def test_key_values_are_python_literals():
    recipe, _ = parse('--model-kwargs', 'layers=(1,2,3,4)', 'width=0.5', 'drop_path_rule=block')
    assert recipe.model_kwargs == {'layers': (1, 2, 3, 4), 'width': 0.5, 'drop_path_rule': 'block'}


def test_plain_numbers_merge_keys_and_quoted_text_are_read(tmp_path):
    text = 'epochs: 10\nlr: +1.0e-3\nmin_lr: .5\nwarmup_lr: 5.\nexperiment: "010"\n<<: {epochs: 3, momentum: 0.5}'
    assert read_file(recipe_file(tmp_path, text)) == dict(
        epochs=10, lr=1e-3, min_lr=0.5, warmup_lr=5.0, experiment='010', momentum=0.5)


# Ten lists of ten of the one before: printed, 10 billion values.
BOMB = 'model_kwargs:\n  a: &a {{k: 1}}\n' + ''.join(
    f'  {name}: &{name} {{0}}{", ".join(10 * ["{2}" + before])}{{1}}\n'
    for before, name in zip('abcdefghi', 'bcdefghij', strict=True))


@pytest.mark.parametrize(('text', 'parts'), [
    ('weight_decayy: 4.0e-5', ['my.yaml', 'weight_decayy', 'Did you mean weight_decay?']),
    ('weight-decay: 4.0e-5', ['my.yaml', 'weight_decay, not weight-decay']),
    ('weight_decay: 4e-5', ['my.yaml', "'4e-5'", 'write 4.0e-05', 'YAML 1.1']),
    ('epochs: many', ['epochs must be a whole number', "'many'"]),
    ('epochs: 1.5', ['epochs must be a whole number', '1.5']),
    ('epochs: true', ['epochs must be a whole number', 'True']),
    ('epochs: 0', ['epochs must be at least 1, got 0']),
    ('epochs:', ['epochs is empty']),
    ('drop: 1.5', ['drop must be between 0 and 1, got 1.5']),
    ('amp: 1', ['amp must be true or false, got 1']),
    ('model: 50', ['model must be text, got 50']),
    ('scale: 0.5', ['scale must be a list', '0.5']),
    ('scale: [0.5, x]', ['scale must be a number', "'x'"]),
    ('input_size: [3, 32]', ['input_size needs 3 values, got 2']),
    ('model_kwargs: 3', ['model_kwargs must be a mapping']),
    ('amp_dtype: bfloat', ["amp_dtype must be one of 'float16', 'bfloat16'", 'Did you mean bfloat16?']),
    ('ema_ramp: tf', ['ema_ramp belongs inside the block timm_rs:']),
    ('timm_rs: {epochs: 3}', ['epochs belongs at the top level']),
    ('timm_rs: {ema_rump: tf}', ['unknown key ema_rump', 'Did you mean ema_ramp?']),
    ('timm_rs: tf', ['timm_rs must be a block']),
    ('epochs: 3\nmodel: x\nepochs: 4', ['my.yaml:3', 'epochs is written twice (first in line 1)']),
    ('epochs: [3', ['my.yaml is not valid YAML', 'line']),
    *((f'epochs: {number}', [f'my.yaml:1: {number} is ambiguous: YAML 1.1 reads it as {value};'])
      for number, value in (('010', 8), ('0x10', 16), ('0b11', 3), ('1:30', 90), ('1_000', 1000))),
    *((f'lr: {number}', [f'my.yaml:1: {number} is ambiguous: YAML 1.1 reads it as {value};'])
      for number, value in (('1_0.5', 10.5), ('1:30.5', 90.5))),
    ('scale: [010, 1.0]', ['my.yaml:1: 010 is ambiguous']),
    ('lr: .nan', ['lr must be finite, got nan']),
    ('mean: [0.5, -.inf, 0.5]', ['mean must be finite, got -inf']),
    ('opt_kwargs: {eps: .nan}', ['opt_kwargs: eps must be finite, got nan']),
    (f'lr: 1{"0" * 400}', ['lr is too large a number']),
    ('smoothing: 1', ['smoothing must be at least 0 and below 1, got 1.0']),
    ('decay_epochs: 0', ['decay_epochs must be above 0, got 0.0']),
    ('scale: [0.5, 2]', ['scale must be above 0 and at most 1, got 2.0']),
    ('cutmix_minmax: [0.5]', ['cutmix_minmax needs 2 values, got 1']),
    ('epochs: "10"', ['epochs must be a whole number', 'write 10 (no quotes)']),
    ('epochs: 1e2', ['epochs must be a whole number', 'write 100 (YAML 1.1 reads 1e2 as text']),
    ('lr: "0.1"', ['lr must be a number', 'write 0.1 (no quotes)']),
    ('opt_kwargs: {eps: 1e-8}', ["eps must be a number, got '1e-8'; write 1.0e-08 (YAML 1.1"]),
    ('aa: off', ['aa must be text, got False; put text in quotes (YAML 1.1 reads yes, no, on and off as']),
    ('experiment: 2024-01-01', ['experiment must be text', 'put text in quotes']),
    ('lr: {{ lr }}', ['my.yaml:1: a list or mapping cannot be a key; is this a template']),
    *((text, ['my.yaml is not valid YAML']) for text in (
        'lr: \0', 'lr: !!int x', 'lr: !!bool x', 'model: 2024-13-45', 'lr: ' + '[' * 5000, 'epochs: 1' + '0' * 5000)),
    *((text, ['my.yaml']) for text in (
        'lr: 0x_', 'lr: !!int ""', 'lr: !!float ""', 'lr: !!timestamp x', 'lr: ? ? ',
        'timm_rs: &a {x: *a}',
        r'experiment: "\U00110000"', r'experiment: "\ud800"', r'model_kwargs: {"\udfff": 1}',
        'model_kwargs: {a: !!binary aGk=}', 'model_kwargs: {a: 2024-01-01}', 'lr: !!python/object/apply:os.getcwd []')),
    *((f'lr: !!{tag} [a: 1]', ['my.yaml:1: a recipe holds text, numbers, true and false, lists and', tag])
      for tag in ('omap', 'pairs', 'set')),
    ('opt_kwargs: &a\n  b: *a', ['my.yaml:', 'what is written here holds itself']),
    (BOMB.format('[', ']', '*'), ['my.yaml:', 'too long or nested too deep']),
    (BOMB.format('{<<: [', ']}', '*'), ['my.yaml:', 'too long or nested too deep']),
    ('opt_kwargs: ' + 21 * '{a: ' + '1' + 21 * '}', ['my.yaml:1: what begins here is too long or nested too deep']),
    ('# ' + 'é' * 40_000, ['has more than 65536 bytes']),
    ('just words', ['holds no "key: value" lines']),
    ('', ['holds no "key: value" lines']),
])
def test_bad_file_is_refused_by_name_with_the_remedy(tmp_path, text, parts):
    with pytest.raises(RecipeError) as caught:
        read_file(recipe_file(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)
    assert '\n' not in str(caught.value)


def test_an_endless_file_is_refused():
    with pytest.raises(RecipeError, match='has more than 65536 bytes'):
        read_file('/dev/zero')


@pytest.mark.parametrize('text', [
    '{[]: 1}', '...', '1j', '{1}', "b'x'", '0x' + 'f' * 6000, '[' * 9999, '-' * 9999, '1if', r"'\d", '{None: 1}'])
def test_what_is_no_plain_value_is_text_on_the_command_line(text):
    recipe, _ = parse('--model-kwargs', f'a={text}')
    assert recipe.model_kwargs == {'a': text} and to_yaml(recipe)


def test_missing_file_names_its_nearest_neighbour():
    with pytest.raises(RecipeError, match=r'rs5O\.yaml does not exist.*rs50\.yaml'):
        read_file(FOLDER / 'rs5O.yaml')


@pytest.mark.parametrize('name', ['rs50', 'rs50.yaml', 'train_recipes/rs50.yaml'])
def test_recipes_that_come_with_the_package_have_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == FOLDER / 'rs50.yaml' and read_file(name) == read_file(FOLDER / 'rs50.yaml')
    assert find_recipe('ablation/table1_04_ema') == FOLDER / 'ablation/table1_04_ema.yaml'
    parser = Parser()
    add_recipe_arguments(parser)
    _, sources = resolve(parser.parse_args(['--recipe', name]))
    assert sources['model'] == str(FOLDER / 'rs50.yaml')


@pytest.mark.parametrize('name', ['rs50', 'train_recipes/rs50.yaml'])
def test_a_file_of_that_name_wins_and_a_folder_does_not(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert read_file(name)['model'] == 'resnetrs_50'
    Path(name).rmdir()
    Path(name).write_text('model: mine')
    assert read_file(name) == {'model': 'mine'}


@pytest.mark.parametrize(('name', 'hint'), [
    ('rs5O', ' Did you mean rs50?'), ('rs5O.yaml', ' Did you mean rs50?'),
    ('ablation/table1_04_emma', ' Did you mean ablation/table1_04_ema?'), ('none', ''), ('/nowhere/rs50', '')])
def test_wrong_name_gets_the_nearest(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        read_file(name)
    assert str(caught.value) == f'recipe {name} does not exist.{hint}'


def test_folder_as_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match='cannot be read'):
        read_file(tmp_path)


def test_binary_file_is_refused(tmp_path):
    (tmp_path / 'my.yaml').write_bytes(b'\xff\xfe\x00junk')
    with pytest.raises(RecipeError, match='cannot be read'):
        read_file(tmp_path / 'my.yaml')


@pytest.mark.parametrize(('argv', 'part'), [
    (['--weight-decayy', '1'], 'Did you mean --weight-decay?'),
    (['--epoch', '1'], 'Did you mean --epochs?'),  # no abbreviations
    (['--epochs', 'x'], 'invalid int value'),
    (['--model-kwargs', 'depth'], 'key=value'),
])
def test_bad_option_is_one_line_with_status_2(capsys, argv, part):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert part in error and error.startswith('error: ') and error.count('\n') == 1


@pytest.mark.parametrize('argv', [[''], ['a', ' '], ['', 'b']])
def test_an_empty_word_is_no_place(capsys, argv):
    parser = Parser(prog='tool')
    parser.add_argument('places', nargs='+', metavar='PLACES')
    parser.add_argument('--split')
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    assert stop.value.code == 2 and 'PLACES is empty' in capsys.readouterr().err
    assert parser.parse_args(['a', '--split', '']).split == ''


def test_behind_a_command_or_a_script_an_empty_word_may_be_the_value_of_an_option(capsys):
    parser = Parser(prog='tool')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    one = commands.add_parser('one')
    one.add_argument('--aa')
    one.add_argument('script')
    one.add_argument('others', nargs=argparse.REMAINDER)
    assert parser.parse_args(['one', '--aa', '', 'a.py', '--x', '']).others == ['--x', '']
    for argv, name in ((['', 'a.py'], 'COMMAND'), (['one', ''], 'script')):
        with pytest.raises(SystemExit):
            parser.parse_args(argv)
        assert f'{name} is empty' in capsys.readouterr().err


def test_out_of_range_option_names_the_command_line():
    with pytest.raises(RecipeError, match='command line: batch_size must be at least 1, got 0'):
        parse('--batch-size', 0)


# Knobs whose text names something that everyone has; all others hold a path, or what only one machine knows.
NAMES = {
    'task', 'eval_metric', 'dataset', 'train_split', 'val_split', 'input_img_mode', 'input_key', 'target_key', 'model',
    'interpolation', 'torchcompile', 'torchcompile_mode', 'opt', 'aa', 'train_interpolation', 'freeze'}


def test_no_knob_that_holds_a_path_is_ever_published():
    texts = {name for name, field in FIELDS.items() if value_type(name)[0] is str and not field.metadata['choices']}
    assert texts >= NAMES
    for name in texts:
        assert FIELDS[name].metadata['private'] == (name not in NAMES), name
    assert Recipe(class_weights='auto').public().class_weights == 'auto'  # which is no path
    published = dataclasses.replace(Recipe(), **{name: '/home/ada/x' for name in texts - NAMES}).public()
    assert '/home/ada' not in to_yaml(published)


@pytest.mark.parametrize(('before', 'now', 'changed'), [
    (dict(lr=0.1), dict(lr=0.2), ['lr 0.1 -> 0.2']),
    (dict(scale=(0.5, 1.0)), dict(scale=[0.5, 1.0]), []),
    (dict(workers=1), dict(workers=2), []),  # a free one
    (dict(), dict(lr=0.2), []),
    (dict(task_knobs=dict(a=dict(x=1))), dict(task_knobs=dict(a=dict(x=2, y=3))), ['a.x 1 -> 2']),
    (dict(task_knobs=dict(a=dict(x=1))), dict(task_knobs=dict(a=dict(x=1, y=3))), [])])
def test_what_changed_between_two_recipes_is_of_knobs_that_both_have(before, now, changed):
    assert changed_knobs(before, now) == changed
