"""Every recipe of the paper against tests/expected/paper_table.csv, a transcription of its own."""

import csv

import pytest
import yaml
from conftest import EXPECTED, ROOT

from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file

ROOT = ROOT / 'train_recipes'
with open(EXPECTED / 'paper_table.csv', newline='') as file:
    ROWS = list(csv.DictReader(file))
TABLE_1 = [row['recipe'] for row in ROWS if row['source'] == 'Table 1']
TIMMS_RANDAUGMENT = {'': None, '10': 'rand-m10-n2-p1.0', '15': 'rand-m15-n2-p1.0-mmax15'}


def number(text):
    return float(text or 0)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['recipe'])
def test_recipe_has_the_papers_values(row):
    recipe = Recipe(**read_file(ROOT / f'{row["recipe"]}.yaml'))
    assert (recipe.model, recipe.img_size, recipe.epochs) == (
        row['network'], int(row['img_size']), int(row['epochs']))
    assert (recipe.opt, recipe.momentum, recipe.weight_decay) == (row['opt'], 0.9, number(row['weight_decay']))
    assert (recipe.lr, recipe.lr_base, recipe.lr_base_size, recipe.lr_base_scale) == (
        None, number(row['lr_per_256']), 256, 'linear')
    assert (recipe.sched, recipe.warmup_epochs, recipe.warmup_lr, recipe.sched_on_updates) == (
        row['schedule'], 5, 0, True)
    assert (recipe.smoothing, recipe.drop, recipe.drop_path or 0) == (
        number(row['smoothing']), number(row['dropout']), number(row['stochastic_depth']))
    assert recipe.aa == TIMMS_RANDAUGMENT[row['randaugment_magnitude']]
    assert recipe.model_ema == bool(row['ema_decay'])
    if recipe.model_ema:
        assert (recipe.model_ema_decay, recipe.model_ema_warmup, recipe.ema_ramp) == (0.9999, True, 'tf')
    # TensorFlow's batch-norm momentum 0 goes with the average; EfficientNet's 0.99 is the model's default.
    assert recipe.bn_momentum == (1.0 if recipe.model_ema and row['depth'] else None)
    assert (recipe.crop_pct, recipe.interpolation, recipe.train_interpolation) == (0.875, 'bicubic', 'bicubic')
    assert (recipe.amp, recipe.amp_dtype) == (True, 'bfloat16')
    if recipe.model == 'resnetrs':
        expected = {'depth': int(row['depth'])}
        expected |= {} if row['squeeze_excite'] == '1' else {'squeeze_excite': False}
        expected |= {} if row['resnet_d'] == '1' else {'resnet_d': False}
        assert recipe.model_kwargs == expected
    assert recipe.schedule == ('tf' if recipe.sched == 'cosine' else 'timm')
    assert recipe.preprocessing == 'tf' and recipe.randaugment == ('tf' if recipe.aa else 'timm')
    if recipe.sched == 'step':
        assert (recipe.decay_epochs, recipe.decay_rate, recipe.opt_eps) == (2.4, 0.97, 1e-3)
        assert recipe.weight_decay_rule == 'tf'  # the TF1 release is EfficientNet's only source
    if recipe.sched == 'multistep':
        assert (recipe.decay_milestones, recipe.decay_rate) == ([30, 60, 80], 0.1)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['recipe'])
def test_header_gives_the_papers_accuracy_as_the_papers(row):
    header = (ROOT / f'{row["recipe"]}.yaml').read_text().partition('device_modules')[0]
    expected = next(line for line in header.splitlines() if line.startswith('# Expected:'))
    assert f' {row["top1"]} % top-1 (paper, ' in expected and 'not rerun here' in expected
    assert all(table in expected for table in [row['source'].replace('Tables 7 and 8', 'Table 7')])
    assert f'--recipe train_recipes/{row["recipe"]}.yaml' in header


def test_every_recipe_of_the_paper_is_in_the_transcription():
    files = {path.relative_to(ROOT).with_suffix('').as_posix() for path in ROOT.rglob('*.yaml')}
    others = {'quickstart', 'finetune', 'multilabel', 'motion', 'semi/quickstart_teacher', 'semi/quickstart_student',
              'semi/rs152_i224_pseudo'}
    # tests/program/test_transfer_recipes.py and test_video_recipes.py have these
    others |= {name for name in files if name.startswith(('transfer/', 'video/', 'k400_'))}
    assert files - others == {row['recipe'] for row in ROWS}
    assert len(ROWS) == 11 + 8 + 11 + 12


def test_table_4_is_table_7s_point_with_a_pool():
    """Section 7.3: "hyper-parameters kept the same"; Noisy Student's sum of two losses as one mean."""
    labelled, both = (read_file(ROOT / f'{name}.yaml') for name in ('rs152_i224', 'semi/rs152_i224_pseudo'))
    assert both.pop('weight_decay') == labelled.pop('weight_decay') / (1 + both.pop('pseudo_ratio')) == 1e-5
    assert both == labelled


@pytest.mark.parametrize(('before', 'after', 'keys'), list(zip(TABLE_1[:-1], TABLE_1[1:], [
    {'sched', 'decay_milestones', 'schedule'}, {'epochs'},
    {'model_ema', 'model_ema_decay', 'model_ema_warmup', 'ema_ramp', 'bn_momentum'},
    {'smoothing'}, {'drop_path'}, {'aa', 'randaugment'}, {'drop'}, {'weight_decay'}, {'model_kwargs'}, {'model_kwargs'},
], strict=True)), ids=TABLE_1[1:])
def test_each_row_of_table_1_changes_only_what_it_adds(before, after, keys):
    first, second = (read_file(ROOT / f'{name}.yaml') for name in (before, after))
    assert {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)} == keys


def test_show_prints_exactly_the_values_of_table_8(run):
    result = run('--recipe', ROOT / 'rs152_i224.yaml', '--show')
    shown = yaml.safe_load(result.out)
    expected = dict(
        model='resnetrs_152', img_size=224, epochs=350, lr_base=0.1, lr_base_size=256, momentum=0.9, weight_decay=4e-5,
        smoothing=0.1, aa='rand-m15-n2-p1.0-mmax15', drop=0.25, drop_path=0.0, model_ema=True, model_ema_decay=0.9999,
        bn_momentum=1.0)
    assert {name: shown[name] for name in expected} == expected
    assert shown['timm_rs']['randaugment'] == 'tf'
    for name in expected:
        line = next(line for line in result.out.splitlines() if line.startswith(f'{name}:'))
        assert line.endswith('rs152_i224.yaml') or expected[name] in (0.1, 256, 0.9), line
