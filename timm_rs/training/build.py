"""From a recipe to the model that is trained, and all that trains it."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.models import clean_state_dict
from torch import nn

from timm_rs.containers.weights import check_weights, check_weights_in
from timm_rs.data.annotated import layout_of
from timm_rs.data.builtin import write_builtin
from timm_rs.data.listing import some, summary
from timm_rs.data.loader import create_train_loader
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError, blaming
from timm_rs.models.batch_norm import group_batch_norm
from timm_rs.models.freezing import freeze
from timm_rs.models.inflate import inflate
from timm_rs.models.layers_3d import channels_last_layout
from timm_rs.models.resnet_rs_3d import ResNetRS3d
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.task import Task
from timm_rs.training.checkpoint import describe, load_plain, load_weights, read_checkpoint
from timm_rs.training.ema import create_ema
from timm_rs.training.pretrained import base_model, check_hub
from timm_rs.training.schedule import create_optimizer, create_schedule
from timm_rs.training.state import StepSettings, Training
from timm_rs.transforms.create import check_mode


def build_training(recipe: Recipe, device: Device, task: Task, samples: Any = None) -> Training:
    """All that a run works on, before its first update: put together here, in the one right order.

    Without `samples` there is no loader and no schedule. What the device needs to hear before the first update
    (`Device.prepare`) comes after any resume. Raises UserError for a recipe that cannot be trained as written.
    """
    model, data_config = build_model(recipe, device, task)
    return create_training(model, data_config, recipe, device, task, samples)


def create_training(model: Any, data_config: dict[str, Any], recipe: Recipe, device: Device, task: Task,
                    samples: Any = None) -> Training:
    """The same around a `model` that is there already, with timm's data configuration for it."""
    loader = None if samples is None else create_train_loader(
        samples, recipe, data_config, task, model.num_classes, device)
    frozen: list[nn.Module] = []
    if recipe.freeze:
        with blaming(f'freeze {recipe.freeze} cannot be done'):
            frozen = freeze(model, recipe.freeze)
        total, left = sum(map(torch.numel, model.parameters())), sum(
            weight.numel() for weight in model.parameters() if weight.requires_grad)
        device.say(f'{total - left:,} of {total:,} parameters are frozen')
    optimizer = create_optimizer(model, recipe, device.num_devices)
    schedule, num_epochs, updates_per_epoch = None, 0, 0
    if loader is not None:
        updates_per_epoch = math.ceil(len(loader) / recipe.grad_accum_steps)  # the last may accumulate fewer batches
        schedule, num_epochs = create_schedule(
            optimizer, recipe, updates_per_epoch, not (recipe.val_split and task.best_by.higher_is_better))
    task.to(device.torch_device)
    settings = create_step_settings(recipe)
    wrapped: Any = model
    if recipe.torchcompile:
        backend, mode = recipe.torchcompile, recipe.torchcompile_mode
        with blaming(f'torchcompile {backend}, torchcompile_mode {mode} cannot be used'):
            wrapped = torch.compile(model, backend=backend, mode=mode)
    return Training(
        # `model` keeps the weights under their plain names.
        model=model, wrapped=device.data_parallel(wrapped, broadcast_buffers=not recipe.no_ddp_bb),
        # The average comes after wrapping, which gives every process the primary's initial weights.
        ema=create_ema(model, recipe, device),
        task=task, settings=settings, optimizer=optimizer, schedule=schedule,
        scaler=device.grad_scaler(settings.dtype), unreported=device.put(torch.zeros(4)),
        in_a_row=device.put(torch.zeros(1)), data_config=data_config, train_loader=loader,
        frozen=frozen, updates_per_epoch=updates_per_epoch, num_epochs=num_epochs,
        origin=dict(arch=recipe.model, args=dataclasses.asdict(recipe),
                    global_batch=recipe.images_per_update(device.num_devices),
                    base_model=base_model(recipe.model, recipe.pretrained,
                                          recipe.initial_checkpoint or recipe.pretrained_path)))


def create_step_settings(recipe: Recipe) -> StepSettings:
    return StepSettings(
        batch_size=recipe.batch_size, grad_accum_steps=recipe.grad_accum_steps,
        dtype=getattr(torch, recipe.amp_dtype) if recipe.amp else None, channels_last=recipe.channels_last,
        clip_grad=recipe.clip_grad, clip_mode=recipe.clip_mode, log_interval=recipe.log_interval,
        max_nonfinite_steps=recipe.max_nonfinite_steps,
        overwrites_gradients=recipe.torchcompile_mode in ('reduce-overhead', 'max-autotune'))


def build_data(recipe: Recipe, task: Task, device: Device, need_training: bool = True,
               known: dict[str, int] | None = None, source: str = '') -> tuple[Any, Any, Recipe]:
    """Training and validation dataset, and the recipe with `data_dir` and `num_classes` filled in from the data.

    Classes `known` from `source` keep their indices. What of the data is left out is said.
    """
    if recipe.channels:  # before the model is built and timm adapts mean and std to them, with lines of its own
        check_mode(recipe.image_mode, recipe.channels)
    if recipe.builtin_data and not recipe.data_dir and (not recipe.dataset or layout_of(recipe.dataset)):
        folder = device.on_primary(lambda: write_builtin(recipe.builtin_data))
        recipe = dataclasses.replace(recipe, data_dir=str(folder))
    train_set, validation_set, num_outputs = task.create_datasets(recipe, need_training, known, source)
    for split, dataset in (('training', train_set), ('validation', validation_set)):
        if listed := getattr(dataset, 'listed', ''):
            device.say(listed)
        if left_out := getattr(dataset, 'left_out', ()):
            device.say(f'left out of the {split} data: {summary(left_out)}')
    return train_set, validation_set, dataclasses.replace(recipe, num_classes=recipe.num_classes or num_outputs)


def build_model(recipe: Recipe, device: Device, task: Task) -> tuple[Any, dict[str, Any]]:
    """The model of the recipe on its device, and timm's data configuration (size, crop, mean, …) for it."""
    if device.is_lazy and recipe.torchcompile:
        raise UserError('torchcompile does not go with device xla, which compiles whole steps itself')
    if device.is_lazy and recipe.amp and recipe.amp_dtype == 'float16':
        raise UserError('mixed precision on device xla is bfloat16: give --amp-dtype bfloat16')
    model, data_config = create_network(recipe, task)
    with torch.no_grad():
        if recipe.head_init_scale is not None:
            model.get_classifier().weight.mul_(recipe.head_init_scale)
            model.get_classifier().bias.mul_(recipe.head_init_scale)
        if recipe.head_init_bias is not None:
            model.get_classifier().bias.fill_(recipe.head_init_bias)
    if recipe.inflate and not recipe.initial_checkpoint:
        raise UserError(f'inflate {recipe.inflate} is for the weights of initial_checkpoint: give that, too')
    if recipe.initial_checkpoint:
        _load_initial(model, recipe.initial_checkpoint, recipe.inflate, task, device)
    if recipe.sync_bn and device.is_distributed:
        if device.torch_device.type == 'cpu':
            raise UserError('sync_bn needs GPUs: torch has no synchronised batch norm on the CPU')
        model = convert_sync_batchnorm(model)
    group_size = recipe.bn_group_size
    if group_size is None and device.is_lazy:  # statistics per chip, as data-parallel processes have them
        group_size = 0 if recipe.sync_bn else recipe.batch_size
    if group_size is not None:
        if group_size and recipe.batch_size * device.num_local_devices % group_size:
            raise UserError(f'bn_group_size {group_size} does not divide the batch of '
                            f'{recipe.batch_size * device.num_local_devices} images')
        model = group_batch_norm(model, group_size)
    in_channels_last = recipe.channels_last and not device.is_lazy
    memory_format = channels_last_layout(model) if in_channels_last else torch.preserve_format
    return model.to(device.torch_device, memory_format=memory_format), data_config


def _load_initial(model: Any, path: str, rule: str, task: Task, device: Device) -> None:
    """Start `model`, or the part of it that the task says, from the checkpoint at `path`.

    Averaged weights first; inflated by `rule` if there is one.
    """
    content = read_checkpoint(path)
    weights, source = content.get('state_dict_ema') or content['state_dict'], describe(path, content)
    if rule:
        with blaming(f'{source} cannot be inflated'):
            weights = inflate(clean_state_dict(weights), model, rule)
    elif isinstance(model, ResNetRS3d) and not any(value.ndim == 5 for value in weights.values()):
        raise UserError(f'{source} is of a network for images, and the model takes clips: give --inflate centre')
    part, taken, left_out = task.initial(model, clean_state_dict(weights))
    load_weights(part, taken, source)
    if part is not model:
        device.say(f'{source} gives the backbone; left out: {some(left_out) or "nothing"}')


def create_network(recipe: Recipe, task: Task) -> tuple[Any, dict[str, Any]]:
    """The model as timm makes it, on the CPU, and its data configuration.

    Of models that have their image size in their weights it is the recipe's. Raises UserError for what timm refuses.
    """
    overlay = None
    if recipe.pretrained_path:
        if not Path(recipe.pretrained_path).is_file():
            raise UserError(f'pretrained_path {recipe.pretrained_path} does not exist')
        # timm reads it again, and reports what is wrong in many ways; of .npz files it takes no pickles
        (check_weights if recipe.pretrained_path.endswith('.npz') else load_plain)(Path(recipe.pretrained_path))
        overlay = dict(file=recipe.pretrained_path, num_classes=-1)  # -1: always adapt the head
    if recipe.model.startswith('local-dir:'):
        check_weights_in(Path(recipe.model.removeprefix('local-dir:')))
    with blaming(f'model {recipe.model} cannot be built'):
        for module in recipe.device_modules or ():
            importlib.import_module(module)
        if recipe.pretrained and not overlay:
            check_hub(recipe.model)
        if recipe.fast_norm:
            set_fast_norm()
        model: Any = task.create_model(
            model_name=recipe.model, pretrained=recipe.pretrained or bool(overlay), pretrained_cfg_overlay=overlay,
            in_chans=recipe.channels, num_classes=recipe.num_classes,
            drop_rate=recipe.drop, drop_path_rate=recipe.drop_path, drop_block_rate=recipe.drop_block,
            global_pool=recipe.gp, bn_momentum=recipe.bn_momentum, bn_eps=recipe.bn_eps,
            **_size_in_weights(task, recipe.model, recipe.input_size[1:] if recipe.input_size else recipe.img_size,
                               recipe.model_kwargs) | recipe.model_kwargs)
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing(True)
    channels = recipe.channels or getattr(model, 'pretrained_cfg', {}).get('input_size', (3,))[0]
    for name in ('mean', 'std'):
        if (given := getattr(recipe, name)) is not None and len(given) not in (1, channels):
            raise UserError(f'{name} needs a value for each of {channels} channels, or one for all, got {given}')
    with blaming(f'input_size, crop_pct, interpolation, … do not suit {recipe.model}'):
        data_config = resolve_data_config(dataclasses.asdict(recipe), model=model)
    # What timm's loader does, too, but not whoever else reads the configuration of a model with unusual channels.
    data_config |= {name: adapt_to_chs(data_config[name], channels) for name in ('mean', 'std')}
    data_config |= dict(input_size=(channels, *data_config['input_size'][1:]))
    return model, data_config | (dict(num_frames=model.num_frames) if isinstance(model, ResNetRS3d) else {})


def has_fixed_size(model: Any) -> bool:
    """Whether a timm model has its image size in its weights, and takes no other."""
    return getattr(model, 'pretrained_cfg', {}).get('fixed_input_size', False) and not getattr(
        model, 'dynamic_img_size', False)


def _size_in_weights(
        task: Task, name: str, size: int | list[int] | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """The argument img_size for images of `size` (pixels), if the model has it in its weights."""
    if not size or ':' in name or not getattr(timm.get_pretrained_cfg(name), 'fixed_input_size', False):
        return {}
    with torch.device('meta'):  # only the model itself knows whether it is dynamic
        model = task.create_model(model_name=name, **arguments)
    return dict(img_size=size) if has_fixed_size(model) else {}
