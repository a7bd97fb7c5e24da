"""A trained model as a folder that timm loads from disk or from the Hub: weights, configuration, recipe, model card."""

import csv
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors import SafetensorError
from timm.models import is_model, model_entrypoint, save_for_hf
from torch import nn

import timm_rs
from timm_rs.data.class_names import read_class_names
from timm_rs.data.datasets import DIGITS_FOLDER
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.files import CHECKOUT, atomic_folder
from timm_rs.models.complexity import measure
from timm_rs.models.resnet_rs import LAYERS, ResNetRS
from timm_rs.recipe.knobs import Recipe
from timm_rs.recipe.reading import read_file, to_yaml
from timm_rs.training.build import build_model
from timm_rs.training.checkpoint import BEST, LAST, SUFFIX, describe, load_weights, read_checkpoint

CARD, CONFIG, WEIGHTS = 'README.md', 'config.json', 'model.safetensors'
MEASURED = ('summary.csv', 'eval.json')
OURS = ('resnetrs', 'efficientnet_rs')
ORIGIN = (' The network is from "Revisiting ResNets: Improved Training and Scaling Strategies" (Bello et al. 2021, '
          '[arXiv:2103.07579](https://arxiv.org/abs/2103.07579)).')
RECIPES = CHECKOUT / 'train_recipes'  # beside the package in a checkout; the card does without them
# What belongs to the machine that trained, or to where a run began, and not to a recipe for others.
PRIVATE = ('data_dir', 'output', 'experiment', 'resume', 'initial_checkpoint', 'pretrained_path', 'device',
           'workers')


@dataclasses.dataclass
class Trained:
    """A model as a run left it.

    Attributes:
        model: in evaluation mode, on the CPU.
        recipe: of the run.
        data_config: timm's, for the images the model was evaluated with.
        weights: 'ema' or 'raw'.
        epochs: epochs trained, None where the file does not say.
        metrics: top1 and top5 in % and loss on the validation split, as far as they were measured.
        images: number of validation images behind `metrics`, where known.
        class_names: by class index, where the run recorded them.
        files: what goes along unchanged, name on the Hub -> path.
    """
    model: Any
    recipe: Recipe
    data_config: dict[str, Any]
    weights: str
    epochs: int | None
    metrics: dict[str, float]
    images: int | None
    files: dict[str, Path]
    class_names: list[str] | None = None


def read_run(path: str | Path, weights: str | None = None) -> Trained:
    """The model of a checkpoint, or of a run's folder (its `model_best`), with what the run measured.

    Args:
        path: folder or file.
        weights: 'ema' (needs an average in the checkpoint), 'raw', or None: the average where there is one.

    Raises:
        UserError: nothing of that kind at `path`, damaged, without a recipe, or without the weights asked for.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (BEST, LAST) if (path / name).is_file()]
        if not found:
            raise UserError(f'{path} holds no {BEST}: give the folder of a run of train.py, or a checkpoint')
        path = found[0]
    content = read_checkpoint(path)
    if weights == 'ema' and not content.get('state_dict_ema'):
        raise UserError(f'{path} has no averaged weights; the run had model_ema off: use --weights raw')
    weights = weights or ('ema' if content.get('state_dict_ema') else 'raw')
    recipe = _recipe_of(path, content)
    model, data_config = build_model(dataclasses.replace(
        recipe, device='cpu', pretrained=False, pretrained_path='', initial_checkpoint='', head_init_scale=None,
        head_init_bias=None, sync_bn=False, grad_checkpointing=False, channels_last=False), Device('cpu'))
    load_weights(model, content['state_dict_ema' if weights == 'ema' else 'state_dict'], describe(path, content))
    epoch = content.get('epoch')
    evaluation = path.with_name(path.name.removesuffix(SUFFIX) + '.eval.json')
    files = {name: file for name, file in zip(
        MEASURED, (path.with_name('summary.csv'), evaluation), strict=True) if file.is_file()}
    metrics, images = _measured(files, epoch, weights, averages='state_dict_ema' in content)
    if not images:
        files.pop('eval.json', None)  # it measured other weights
    return Trained(model.eval(), recipe, data_config, weights, None if epoch is None else epoch + 1,
                   metrics, images, files, read_class_names(path.parent, model.num_classes))


def _recipe_of(path: Path, content: dict[str, Any]) -> Recipe:
    """What the checkpoint says it was trained with, else the args.yaml beside it."""
    values, source = content.get('args'), path
    if not isinstance(values, dict):
        source = path.with_name('args.yaml')
        if not source.is_file():
            raise UserError(f'{path} does not say what it was trained with, and there is no {source} either')
        values = read_file(source)
    unknown = values.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise UserError(f'{source} has a recipe of another version of timm_rs: it has {", ".join(sorted(unknown))}')
    return Recipe(**values)


def _measured(
        files: dict[str, Path], epoch: int | None, weights: str, averages: bool) -> tuple[dict[str, float], int | None]:
    """Metrics of these weights, and the number of images if they come from a later evaluation of the checkpoint."""
    try:
        if 'eval.json' in files:
            content = json.loads(files['eval.json'].read_text())
            if content['weights'] == weights:
                return {name: float(content[name]) for name in ('top1', 'top5', 'loss')}, int(content['num_samples'])
        if 'summary.csv' in files:
            prefix = 'eval_raw_' if averages and weights == 'raw' else 'eval_'
            with open(files['summary.csv'], newline='') as file:
                row = next((row for row in csv.DictReader(file) if row['epoch'] == str(epoch)), {})
            names = [name for name in ('top1', 'top5', 'loss') if row.get(prefix + name)]
            return {name: float(row[prefix + name]) for name in names}, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged = ' or '.join(str(file) for file in files.values())
        raise UserError(f'{damaged} is damaged ({error!r}): mend it, or move it away to publish without') from None
    return {}, None


# ---- under timm's own name --------------------------------------------------------------------------------------

def stock_name(name: str) -> str:
    """timm's name of the architecture of one of our fixed models: resnetrs_152 -> resnetrs152."""
    return name.replace('efficientnet_rs_', 'tf_efficientnet_').replace('resnetrs_', 'resnetrs')


def stock_arguments(model: nn.Module, name: str, model_kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's own architecture that comes nearest to `model`, and the arguments that make it of the same size.

    Args:
        model: as `timm.create_model(name, **model_kwargs)` makes it.
        name: without tag.
        model_kwargs: of the recipe.
    """
    training_only = ('drop_path_rule', 'weight_init', 'bn_momentum')
    arguments = {key: value for key, value in model_kwargs.items() if key not in training_only}
    if not isinstance(model, ResNetRS):
        return stock_name(name), arguments
    for key in ('depth', 'layers'):
        arguments.pop(key, None)
    width, squeeze_excite, resnet_d = (
        arguments.pop(key, default) for key, default in (('width', 1), ('squeeze_excite', True), ('resnet_d', True)))
    layers = tuple(len(model.get_submodule(f'layer{stage}')) for stage in (1, 2, 3, 4))  # type: ignore[arg-type]
    depth = next((depth for depth, blocks in LAYERS.items() if blocks == layers and is_model(f'resnetrs{depth}')), None)
    if depth is None:
        arguments['layers'] = layers
    if width != 1:
        arguments['stem_width'] = int(32 * width)
        arguments['channels'] = tuple(int(channels * width) for channels in (64, 128, 256, 512))
    if not squeeze_excite:
        arguments['block_args'] = {}
    if not resnet_d:
        arguments |= dict(stem_type='', replace_stem_pool=False, avg_down=False)
    return f'resnetrs{depth or 50}', arguments


def package_of(model: Any) -> str:
    """The package whose entrypoint made `model`: timm, timm_rs or another plugin."""
    return model_entrypoint(model.pretrained_cfg['architecture']).__module__.partition('.')[0]


def stock_twin(model: Any, model_kwargs: dict[str, Any], img_size: tuple[int, int, int]) -> Any:
    """One of our models rebuilt by timm's own entrypoint with the same weights; None if timm has nothing equal.

    Equal means: the same names and shapes of weights, and for two images of noise of `img_size` (channels, height,
    width in pixels) the same logits to the last bit. Raises UserError when a logit is not finite.
    """
    architecture, arguments = stock_arguments(model, model.pretrained_cfg['architecture'], model_kwargs)
    noise = torch.randn(2, *img_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(noise)
    if not logits.isfinite().all():
        raise UserError('the weights give logits that are not finite; such a model is of no use to anybody')
    try:
        json.dumps(arguments)  # or it cannot be written into the configuration
        twin = timm.create_model(
            architecture, pretrained_cfg=dict(model.pretrained_cfg, architecture=architecture),
            num_classes=model.num_classes, in_chans=img_size[0], **arguments).eval()
        twin.load_state_dict(model.state_dict())
    except (RuntimeError, TypeError, ValueError, AssertionError):  # no such model or argument, or other shapes
        return None
    with torch.inference_mode():
        return twin if torch.equal(twin(noise), logits) else None


def save_model(model: nn.Module, folder: Path, architecture: str, timm_rs: dict[str, Any], **options: Any) -> None:
    """Write model.safetensors and config.json into `folder`, for timm's `local-dir:` and `hf-hub:`.

    Args:
        model: what timm builds under the name `architecture`.
        folder: is there.
        architecture: the name under which timm looks for an entrypoint.
        timm_rs: goes into the configuration under that key; timm reads past it.
        **options: more for timm's `save_for_hf`, such as data_config.
    """
    config = {'architecture': architecture, 'timm_rs': timm_rs, **options.pop('model_config', {})}
    save_for_hf(model, str(folder), safe_serialization=True, model_config=config, **options)


def check_output(output: str | os.PathLike[str]) -> None:
    """Raise UserError if `output` is a file, or a folder with something in it."""
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f'{output}: is there already and not an empty folder; give a new one')


# ---- the folder -------------------------------------------------------------------------------------------------

def write_folder(
        trained: Trained, folder: Path, repo_id: str, license: str = 'apache-2.0', dataset: str | None = None,
) -> str:
    """Write all that is published of `trained` into `folder`, which is not there yet; returns the architecture.

    The same run gives the same bytes again. Raises UserError when the folder cannot be written.
    """
    recipe, model = trained.recipe, trained.model
    needs: str | None = package_of(model)
    if needs == 'timm_rs':
        kwargs = recipe.model_kwargs | {key: value for key, value in (
            ('bn_eps', recipe.bn_eps), ('global_pool', recipe.gp)) if value is not None}
        twin = stock_twin(model, kwargs, trained.data_config['input_size'])
        model, needs = (model, needs) if twin is None else (twin, None)
    elif needs == 'timm':
        needs = None
    architecture = model.pretrained_cfg['architecture']
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items()
                            if key not in ('tag', 'origin_url', 'description', 'label_names', 'label_descriptions')}
    model.pretrained_cfg['license'] = license
    variant = dict(model=recipe.model, model_kwargs=recipe.model_kwargs, weights=trained.weights,
                   version=timm_rs.__version__)
    dataset = dataset or dataset_name(recipe)
    try:
        with atomic_folder(folder) as target:
            save_model(model, target, architecture, variant, data_config=trained.data_config,
                       model_config=dict(label_names=trained.class_names))
            (target / 'args.yaml').write_text(to_yaml(public_recipe(recipe)), encoding='utf-8')
            for file, source in trained.files.items():
                shutil.copyfile(source, target / file)
            card = model_card(trained, repo_id, license, dataset, architecture, needs)
            (target / CARD).write_text(card, encoding='utf-8')
    except (OSError, SafetensorError) as error:
        raise UserError(f'{folder}: cannot be written: {getattr(error, "strerror", None) or error}') from None
    return architecture


def public_recipe(recipe: Recipe) -> Recipe:
    """`recipe` without the paths of the machine it ran on."""
    public = {key: getattr(Recipe(), key) for key in PRIVATE}
    return dataclasses.replace(recipe, **public, builtin_data=recipe.builtin_data if _used_builtin(recipe) else '')


def dataset_name(recipe: Recipe) -> str:
    """What the data is called: the dataset's name, or that of its folder."""
    if recipe.dataset:
        return recipe.dataset.partition('/')[2] or recipe.dataset
    return recipe.builtin_data if _used_builtin(recipe) else Path(recipe.data_dir or 'unknown').name


def _used_builtin(recipe: Recipe) -> bool:
    return bool(recipe.builtin_data) and not recipe.dataset and recipe.data_dir in ('', None, str(DIGITS_FOLDER))


# ---- the model card ---------------------------------------------------------------------------------------------

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
    size = f'{height} px' if height == width else f'{height} x {width} px'
    cost = measure(trained.model, (height, width))
    arguments = ', '.join(f'{key}={value}' for key, value in recipe.model_kwargs.items())
    averaged = {'ema': 'the exponential moving average of the weights', 'raw': 'the weights as trained'}
    paper = paper_result(recipe, height) if height == width else None
    header = _header(trained, repo_id, license, dataset, needs)
    blocks = [
        f'---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---',
        f'# {repo_id.rpartition("/")[2]}',
        f'`{recipe.model}`{f" ({arguments})" if arguments else ""} of timm_rs, trained on {dataset}: '
        f'{trained.model.num_classes} classes, {size}.{ORIGIN if recipe.model.startswith(OURS) else ""}',
        f'timm alone has no such network: the code needs the package {needs}.' if needs else
        f'timm has this network as `{architecture}`, so timm alone loads it.',
        f'## Use\n\n```python\n{_snippet(trained, repo_id, needs)}```',
        f'## Results measured with these weights\n\n{_results(trained, dataset, size)}',
    ]
    if paper:
        blocks.append('## Results of the paper\n\nNot of these weights: what the authors report for this network and '
                      f'image size on ImageNet, {paper}.')
    blocks += [
        '## Cost\n\n'
        '| parameters (M) | image | multiply-adds (G) | FLOPs of the paper, 2 x multiply-adds (G) | activations (M) |\n'
        '|---:|---:|---:|---:|---:|\n'
        f'| {cost.params / 1e6:.3f} | {size} | {cost.macs / 1e9:.3f} | {2 * cost.macs / 1e9:.3f} '
        f'| {cost.activations / 1e6:.3f} |',
        '## Training\n\n'
        f'Published are {averaged[trained.weights]}'
        + (f' after epoch {trained.epochs} of {recipe.epochs}' if trained.epochs else '')
        + '. `args.yaml` is the whole recipe'
        + (', `summary.csv` has a row per epoch' if 'summary.csv' in trained.files else '')
        + f". With the train.py of timm_rs:\n\n```\npython train.py --recipe args.yaml{_data_arguments(recipe)}\n```",
        '## Limits\n\n' + '\n'.join(f'- {limit}' for limit in _limits(trained, dataset, size)),
    ]
    return '\n\n'.join(blocks) + '\n'


def _header(trained: Trained, repo_id: str, license: str, dataset: str, needs: str | None) -> dict[str, Any]:
    header: dict[str, Any] = dict(
        tags=['image-classification', 'timm', 'timm_rs'], pipeline_tag='image-classification',
        library_name=needs or 'timm',  # the Hub shows code of its own for timm, which would fail without the package
        license=license, datasets=[dataset])
    if measured := {name: trained.metrics[name] for name in ('top1', 'top5') if name in trained.metrics}:
        header['model-index'] = [dict(name=repo_id.rpartition('/')[2], results=[dict(
            task=dict(type='image-classification', name='Image Classification'),
            dataset=dict(type=dataset, name=dataset, split=trained.recipe.val_split or 'validation'),
            metrics=[dict(type='accuracy', name=f'Top {name[3:]} Accuracy', value=round(value, 3))
                     for name, value in measured.items()])])]
    return header


def _snippet(trained: Trained, repo_id: str, needs: str | None) -> str:
    mode = 'L' if trained.data_config['input_size'][0] == 1 else 'RGB'
    lines = ['import timm', 'import torch', 'from PIL import Image', '',
             f"model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()",
             'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))',
             f"image = Image.open('image.jpg').convert('{mode}')",
             'with torch.inference_mode():',
             '    probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)',
             f'print(probabilities.topk({min(5, trained.model.num_classes)}))']
    return '\n'.join(([f'import {needs}'] if needs else []) + lines) + '\n'


def _results(trained: Trained, dataset: str, size: str) -> str:
    if not trained.metrics:
        return 'None: this run had no validation split.'
    names = {'top1': 'top-1 (%)', 'top5': 'top-5 (%)', 'loss': 'loss'}
    cells = {names[name]: f'{value:.3f}' for name, value in trained.metrics.items()}
    split = f'{dataset}, split {trained.recipe.val_split or "validation"}'
    cells |= {'data': split + (f', {trained.images} images' if trained.images else ''), 'image': size,
              'crop': f'{trained.data_config["crop_pct"]:g}'}
    return '\n'.join(f'| {" | ".join(row)} |' for row in (cells, ['---'] * len(cells), cells.values()))


def _limits(trained: Trained, dataset: str, size: str) -> list[str]:
    recipe = trained.recipe
    limits = [f'Only measured on data like {dataset}, at {size}; nothing is known about other images.']
    if not recipe.dataset and not trained.class_names:
        limits.append('The names of the classes are not in the weights: class i is folder i of the training data, in '
                      'natural order.')
    if trained.metrics:
        limits.append('The checkpoint was chosen by the same validation split that the results are from, so they '
                      'flatter it a little.')
    if trained.epochs and trained.epochs < recipe.epochs:
        limits.append(f'From epoch {trained.epochs} of the {recipe.epochs} that its schedule planned.')
    if recipe.preprocessing == 'tf':
        limits.append("Measured with TensorFlow's crop and resize (`preprocessing: tf`); timm's transform of the code "
                      'above is its nearest, not the same pixels.')
    return limits


def _data_arguments(recipe: Recipe) -> str:
    return '' if _used_builtin(recipe) else ' --data-dir YOUR_DATA'


def paper_result(recipe: Recipe, img_size: int) -> str | None:
    """'82.8 % top-1 (paper, Table 7, …)' where the run's network and image size are a point of the paper."""
    for path in sorted(RECIPES.glob('*.yaml')):
        values = read_file(path)
        same = (values.get('model'), values.get('img_size')) == (recipe.model.partition('.')[0], img_size)
        expected = re.search(r'^# Expected: +(.* \(paper,[^;)]*)', path.read_text(encoding='utf-8'), re.MULTILINE)
        if same and expected and not recipe.model_kwargs and not values.get('model_kwargs'):
            return expected[1] + ')'
    return None
