"""A trained model as a folder that timm loads from disk or from the Hub: weights, configuration, recipe, model card."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import is_model, save_for_hf
from torch import nn

import timm_rs
from timm_rs.errors import UserError
from timm_rs.files import atomic_folder, read_json
from timm_rs.models.resnet_rs import LAYERS, ResNetRS
from timm_rs.models.resnet_rs_3d import ResNetRS3d, clip_shape
from timm_rs.publish.card import dataset_name, model_card, package_of, public_recipe
from timm_rs.publish.repository import CARD, CONFIG
from timm_rs.recipe.reading import to_yaml
from timm_rs.tasks.multilabel import PROBLEM_TYPE
from timm_rs.training.trained import Trained

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


def stock_twin(model: Any, model_kwargs: dict[str, Any], img_size: tuple[int, int, int]) -> Any:
    """One of our models rebuilt by timm's own entrypoint with the same weights; None if timm has nothing equal.

    Equal means: the same names and shapes of weights, and for two images of noise of `img_size` (channels, height,
    width in pixels; clips, where the model takes those) the same logits to the last bit. Raises UserError when a logit
    is not finite.
    """
    architecture, arguments = stock_arguments(model, model.pretrained_cfg['architecture'], model_kwargs)
    noise = torch.randn(2, *clip_shape(model, img_size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(noise)
    if not logits.isfinite().all():
        raise UserError('the weights give logits that are not finite; such a model is of no use to anybody')
    if isinstance(model, ResNetRS3d):  # timm has no networks for clips
        return None
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
    """Write model.safetensors and config.json into `folder`, for timm's `local-dir:` and `hf-hub:`, and transformers.

    Args:
        model: what timm builds under the name `architecture`.
        folder: is there.
        architecture: the name under which timm looks for an entrypoint.
        timm_rs: goes into the configuration under that key; timm reads past it.
        **options: more for timm's `save_for_hf`, such as data_config.
    """
    config = {'architecture': architecture, 'timm_rs': timm_rs, **options.pop('model_config', {})}
    save_for_hf(model, str(folder), safe_serialization=True, model_config=config, **options)
    written = read_json(folder / CONFIG)
    # timm finds it beside model_args, too; transformers hands both over, and Python takes an argument only once
    written.get('model_args', {}).pop('num_classes', None)
    (folder / CONFIG).write_text(json.dumps(written, indent=2), encoding='utf-8')


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
    dataset = dataset or dataset_name(trained)
    try:
        with atomic_folder(folder) as target:
            several = dict(problem_type=PROBLEM_TYPE) if trained.task.is_of_tags else {}
            save_model(model, target, architecture, variant, data_config=trained.data_config,
                       model_config=dict(label_names=trained.class_names) | several)
            (target / 'args.yaml').write_text(to_yaml(public_recipe(trained)), encoding='utf-8')
            for file, source in trained.files.items():
                shutil.copyfile(source, target / file)
            card = model_card(trained, repo_id, license, dataset, architecture, needs)
            (target / CARD).write_text(card, encoding='utf-8')
    except (OSError, SafetensorError) as error:
        raise UserError(f'{folder}: cannot be written: {getattr(error, "strerror", None) or error}') from None
    return architecture
