"""The model card of a published folder."""

import dataclasses
import re
from typing import Any

import yaml
from timm.models import model_entrypoint

from timm_rs.data.builtin import is_builtin
from timm_rs.files import RECIPES
from timm_rs.models.complexity import measure_complexity
from timm_rs.publish.repository import is_repo_id
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file
from timm_rs.tasks.classification import Classification
from timm_rs.training.trained import Trained

OURS = ('resnetrs', 'efficientnet_rs')
ORIGIN = (' The network is from "Revisiting ResNets: Improved Training and Scaling Strategies" (Bello et al. 2021, '
          '[arXiv:2103.07579](https://arxiv.org/abs/2103.07579)).')


def package_of(model: Any) -> str:
    """The package whose entrypoint made `model`: timm, timm_rs or another plugin."""
    return model_entrypoint(model.pretrained_cfg['architecture']).__module__.partition('.')[0]


def public_recipe(trained: Trained) -> Recipe:
    """The recipe without the paths of the machine it ran on."""
    builtin_data = trained.recipe.builtin_data if _used_builtin(trained) else ''
    return dataclasses.replace(trained.recipe.public(), builtin_data=builtin_data)


def dataset_name(trained: Trained) -> str:
    """What the data is called: the dataset's name, or that of its folder."""
    return trained.validated_on.data


def _is_on_the_hub(trained: Trained, dataset: str) -> bool:
    """Whether that name of the training data is an id of the Hub: timm has read it there, or it is given as one."""
    if dataset == dataset_name(trained):
        return trained.recipe.dataset.startswith(('hfds/', 'hfids/'))
    return is_repo_id(dataset)


def _used_builtin(trained: Trained) -> bool:
    recipe = trained.recipe
    return not recipe.dataset and is_builtin(recipe.builtin_data, recipe.data_dir)


def model_card(
        trained: Trained, repo_id: str, license: str, dataset: str, architecture: str, needs: str | None = None) -> str:
    """README.md of a model on the Hub: YAML header, what it is, code that works, results, cost, training, limits.

    Args:
        trained: the model.
        repo_id: org/name.
        license: as the Hub spells it, such as apache-2.0.
        dataset: name of the training data, or its id on the Hub.
        architecture: the name under which timm finds the network.
        needs: the package that registers that name, if it is not timm.
    """
    recipe = trained.recipe
    _, height, width = trained.data_config['input_size']
    size, frames = trained.validated_on.size, trained.data_config.get('num_frames')
    size = f'{frames} frames of {size}' if frames else size
    cost = measure_complexity(trained.model, (height, width))
    arguments = ', '.join(f'{key}={value}' for key, value in recipe.model_kwargs.items())
    averaged = {'ema': 'the exponential moving average of the weights', 'raw': 'the weights as trained'}
    paper = paper_result(trained, height) if height == width else None
    header = _header(trained, repo_id, license, dataset, needs)
    blocks = [
        f'---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---',
        f'# {repo_id.rpartition("/")[2]}',
        f'`{recipe.model}`{f" ({arguments})" if arguments else ""} of timm_rs, trained on {dataset}: '
        f'{trained.model.num_classes} classes, {size}.{ORIGIN if recipe.model.startswith(OURS) else ""}',
        f'timm alone has no such network: the code needs the package {needs}.' if needs else
        f'timm has this network as `{architecture}`, so timm alone loads it.',
        f'## Use\n\n```python\n{_snippet(trained, repo_id, needs)}```'
        + (f'\n\nWith transformers:\n\n```python\n{_transformers_snippet(trained, repo_id, needs)}```'
           if _is_for_transformers(trained) else ''),
        f'## Results measured with these weights\n\n{_results(trained, dataset)}',
    ]
    if paper:
        blocks.append('## Results of the paper\n\nNot of these weights: what the authors report for this network and '
                      f'image size on ImageNet, {paper}.')
    blocks += [
        '## Cost\n\n'
        f'| parameters (M) | {"clip" if frames else "image"} | multiply-adds (G) '
        '| FLOPs of the paper, 2 x multiply-adds (G) | activations (M) |\n'
        '|---:|---:|---:|---:|---:|\n'
        f'| {cost.params / 1e6:.3f} | {size} | {cost.macs / 1e9:.3f} | {2 * cost.macs / 1e9:.3f} '
        f'| {cost.activations / 1e6:.3f} |',
        '## Training\n\n'
        f'Published are {averaged[trained.weights]}'
        + (f' after epoch {trained.epochs} of {recipe.epochs}' if trained.epochs else '')
        + '. `args.yaml` is the whole recipe'
        + (', `summary.csv` has a row per epoch' if 'summary.csv' in trained.files else '')
        + f". With the train.py of timm_rs:\n\n```\npython train.py --recipe args.yaml{_data_arguments(trained)}\n```",
        '## Limits\n\n' + '\n'.join(f'- {limit}' for limit in _limits(trained, dataset)),
    ]
    return '\n\n'.join(blocks) + '\n'


def _header(trained: Trained, repo_id: str, license: str, dataset: str, needs: str | None) -> dict[str, Any]:
    kind, kind_name = trained.task.hub
    is_on_the_hub = _is_on_the_hub(trained, dataset)
    header: dict[str, Any] = dict(
        tags=[kind, 'timm', *(['transformers'] if _is_for_transformers(trained) else []), 'timm_rs'], pipeline_tag=kind,
        library_name=needs or 'timm',  # the Hub shows code of its own for timm, which would fail without the package
        license=license)
    if is_repo_id(trained.base_model):
        header['base_model'] = trained.base_model
    if is_on_the_hub:
        header['datasets'] = [dataset]
    measured = [(metric.hub, trained.metrics[metric.name]) for metric in trained.task.metrics
                if metric.hub and metric.name in trained.metrics]
    if measured:
        data, split = _measured_on(trained, dataset)
        header['model-index'] = [dict(name=repo_id.rpartition('/')[2], results=[dict(
            task=dict(type=kind, name=kind_name),
            dataset=dict(type=data if is_on_the_hub and data == dataset else f'{trained.task.noun}folder', name=data,
                         split=split),
            metrics=[dict(type=hub[0], name=hub[1], value=round(value, 3)) for hub, value in measured])])]
    return header


def _snippet(trained: Trained, repo_id: str, needs: str | None) -> str:
    needed, loading = trained.task.loading(trained.data_config)
    lines = ['import timm', 'import torch', needed, '',
             f"model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()",
             *loading,
             'with torch.inference_mode():', *trained.task.usage(trained.model.num_classes)]
    return '\n'.join(([f'import {needs}'] if needs else []) + lines) + '\n'


def _is_for_transformers(trained: Trained) -> bool:
    """Whether transformers wraps such models of timm's: those that tell classes of images."""
    return trained.task.hub[0] == Classification.hub[0]


def _transformers_snippet(trained: Trained, repo_id: str, needs: str | None) -> str:
    mode = 'L' if trained.data_config['input_size'][0] == 1 else 'RGB'
    return '\n'.join([
        *([f'import {needs}  # before the model is loaded: it makes the network known to timm'] if needs else []),
        'import torch', 'from PIL import Image',
        'from transformers import AutoImageProcessor, AutoModelForImageClassification', '',
        f"processor = AutoImageProcessor.from_pretrained('{repo_id}')",
        f"model = AutoModelForImageClassification.from_pretrained('{repo_id}').eval()",
        f"x = processor(Image.open('image.jpg').convert('{mode}'))",
        'with torch.inference_mode():', *([
            '    probabilities = model(**x).logits.sigmoid()[0]',
            'for index in (probabilities >= 0.5).nonzero()[:, 0].tolist():', '    print(model.config.id2label[index])']
            if trained.task.is_of_tags else [
            '    probabilities = model(**x).logits.softmax(dim=1)',
            'print(model.config.id2label[probabilities.argmax().item()])'])]) + '\n'


def _measured_on(trained: Trained, dataset: str) -> tuple[str, str]:
    """What the data of the results is called, `dataset` where it is that of the training; and the split."""
    own = trained.validated_on
    setting = trained.measured_on or own
    if setting.data != own.data:
        return setting.data, setting.split
    return f'{dataset} (another folder than that of the training)' if setting.elsewhere else dataset, setting.split


def _results(trained: Trained, dataset: str) -> str:
    if not trained.metrics:
        return 'None: this run had no validation split.'
    setting, (data, split) = trained.measured_on or trained.validated_on, _measured_on(trained, dataset)
    cells = {metric.heading: f'{trained.metrics[metric.name]:.3f}' for metric in trained.task.metrics
             if metric.name in trained.metrics}
    present, all_classes = setting.num_classes, trained.model.num_classes
    cells |= {'data': f'{data}, split {split}'
              + (f', {present} of the {all_classes} classes' if present not in (None, all_classes) else '')
              + (f', {trained.images} {trained.task.noun}s' if trained.images else ''),
              'image': setting.size, 'crop': f'{setting.crop_pct:g}', 'interpolation': setting.interpolation}
    return '\n'.join(f'| {" | ".join(row)} |' for row in (cells, ['---'] * len(cells), cells.values()))


def _limits(trained: Trained, dataset: str) -> list[str]:
    recipe, own = trained.recipe, trained.validated_on
    setting, (data, split) = trained.measured_on or own, _measured_on(trained, dataset)
    limits = [f'Only measured on data like {data}, at {setting.size}; nothing is known about other '
              f'{trained.task.noun}s.']
    if not recipe.dataset and not trained.class_names:
        limits.append('The names of the classes are not in the weights: class i is folder i of the training data, in '
                      'natural order.')
    if trained.metrics and setting != own:
        limits.append(f'The results are not those of the validation in training, which was on {dataset}, split '
                      f'{own.split}, at {own.size}, crop {own.crop_pct:g}, {own.interpolation}'
                      + ('' if (setting.mean, setting.std) == (own.mean, own.std) else
                         f'; these are of images with mean {setting.mean} and standard deviation {setting.std}') + '.')
    if trained.metrics and (data, split) == (dataset, own.split):
        limits.append('The checkpoint was chosen by the same validation split that the results are from, so they '
                      'flatter it a little.')
    if trained.epochs and trained.epochs < recipe.epochs:
        limits.append(f'From epoch {trained.epochs} of the {recipe.epochs} that its schedule planned.')
    if setting.preprocessing == 'tf':
        limits.append("Measured with TensorFlow's crop and resize (`preprocessing: tf`); timm's transform of the code "
                      'above is its nearest, not the same pixels.')
    return limits


def _data_arguments(trained: Trained) -> str:
    return '' if _used_builtin(trained) else ' --data-dir YOUR_DATA'


def paper_result(trained: Trained, img_size: int) -> str | None:
    """'82.8 % top-1 (paper, Table 7, …)' where the run's network and image size are a point of the paper."""
    recipe = trained.recipe
    for path in sorted(RECIPES.glob('*.yaml')):
        values = read_file(path)
        same = (values.get('model'), values.get('img_size')) == (recipe.model.partition('.')[0], img_size)
        expected = re.search(r'^# Expected: +(.* \(paper,[^;)]*)', path.read_text(encoding='utf-8'), re.MULTILINE)
        if same and expected and not recipe.model_kwargs and not values.get('model_kwargs'):
            return expected[1] + ')'
    return None
