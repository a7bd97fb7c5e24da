"""From Python what the programs do."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, TINY

import timm_rs
from timm_rs import evaluate, load_run, predict, read_recipe, train
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe

SMALL = dict(model='resnetrs', model_kwargs=dict(layers=(1, 1, 1, 1), width=0.125), img_size=32, device='cpu',
             workers=0, batch_size=8, epochs=2, warmup_epochs=0)


def code_of_the_page():
    return re.search(r'```python\n(.*?)```', (ROOT / 'docs/python.md').read_text(), re.S)[1]


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = code_of_the_page()
    assert len([line for line in code.splitlines() if line]) <= 15
    small = "epochs=2, model_kwargs={'layers': [1, 1, 1, 1], 'width': 0.125}, img_size=16, workers=0, "
    exec(code.replace('epochs=3, ', small), {})
    out = capsys.readouterr().out
    assert re.search(r'^1 \d', out, re.M) and re.search(r'7/\d{4}.png \d 0\.', out)
    notebook = json.loads((ROOT / 'docs/python.ipynb').read_text())
    cells = [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert '\n\n'.join(cells) == code.strip()


def test_training_from_python_is_that_of_the_program(run, image_folder, tmp_path):
    assert run(*TINY, '--data-dir', image_folder, '--experiment', 'program').code == 0
    rows = []
    recipe = read_recipe(data_dir=image_folder, output=tmp_path / 'runs', experiment='in_python', **SMALL)
    folder = train(recipe, rows.append)
    assert folder == tmp_path / 'runs/in_python' and [row['epoch'] for row in rows] == [0, 1]
    assert rows[-1]['eval_top1'] >= 0
    for name in ('summary.csv', 'args.yaml'):
        ours, theirs = (tmp_path / 'runs' / kind / name for kind in ('in_python', 'program'))
        assert ours.read_text().replace('in_python', 'program') == theirs.read_text(), name
    metrics = evaluate(folder)
    assert json.loads(json.dumps(metrics)) == json.loads((folder / 'model_best.eval.json').read_text())
    assert evaluate(folder, val_split='train')['num_samples'] == 24
    run = load_run(folder)
    assert run.class_names == ['cat', 'dog', 'eel'] and not run.model.training
    found = list(predict(run, [image_folder / 'validation/cat', image_folder / 'validation/dog/0.jpg'], top_k=2))
    assert len(found) == 6 and all(len(image.classes) == 2 for image in found)


def test_what_cannot_be_is_a_sentence(tmp_path):
    for values, message in ((dict(epoch=3), 'there is no knob epoch. Did you mean epochs'),
                            (dict(epochs='three'), 'read_recipe: epochs must be'),
                            (dict(recipe=tmp_path / 'none.yaml'), 'none.yaml')):
        with pytest.raises(UserError, match=message):
            read_recipe(**values)
    with pytest.raises(UserError, match='none'):
        evaluate(tmp_path / 'none')
    assert read_recipe() == Recipe()


def test_importing_the_package_stays_light():
    code = ('import sys, timm_rs; light = "timm_rs.api" not in sys.modules and "timm_rs.recipe" not in sys.modules;'
            'names = dir(timm_rs); timm_rs.read_recipe; print(light, "train" in names)')
    out = subprocess.check_output([sys.executable, '-W', 'ignore', '-c', code], text=True, cwd=ROOT)
    assert out.split() == ['True', 'True']
    with pytest.raises(AttributeError, match='no attribute tran'):
        _ = timm_rs.tran
