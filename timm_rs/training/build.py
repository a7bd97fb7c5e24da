"""From a recipe to the model that is trained, and all that trains it."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.scheduler.scheduler import Scheduler
from torch import nn

from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.models.batch_norm import group_batch_norm
from timm_rs.recipe.knobs import Recipe
from timm_rs.training.checkpoint import describe, load_plain, load_weights, read_checkpoint
from timm_rs.training.ema import create_ema
from timm_rs.training.engine import amp_dtype, create_loss
from timm_rs.training.state import Training


def build_model(recipe: Recipe, device: Device) -> tuple[Any, dict[str, Any]]:
    """The model of the recipe on its device, and timm's data configuration (size, crop, mean, …) for it."""
    if device.is_lazy:
        _check_for_graphs(recipe)
    overlay = None
    if recipe.pretrained_path:
        if not Path(recipe.pretrained_path).is_file():
            raise UserError(f'pretrained_path {recipe.pretrained_path} does not exist')
        if Path(recipe.pretrained_path).suffix != '.npz':  # which NumPy reads, without pickles
            load_plain(Path(recipe.pretrained_path))  # timm reads it again, and reports what is wrong in many ways
        overlay = dict(file=recipe.pretrained_path, num_classes=-1)  # -1: always adapt the head
    try:
        for module in recipe.device_modules or ():
            importlib.import_module(module)
        if recipe.fast_norm:
            set_fast_norm()
        model = timm.create_model(
            recipe.model, pretrained=recipe.pretrained or bool(overlay), pretrained_cfg_overlay=overlay,
            in_chans=recipe.channels, num_classes=recipe.num_classes,
            drop_rate=recipe.drop, drop_path_rate=recipe.drop_path, drop_block_rate=recipe.drop_block,
            global_pool=recipe.gp, bn_momentum=recipe.bn_momentum, bn_eps=recipe.bn_eps, **recipe.model_kwargs)
        data_config = resolve_data_config(dataclasses.asdict(recipe), model=model)
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing(True)
    except (ImportError, RuntimeError, ValueError, TypeError, AssertionError, AttributeError, OSError) as error:
        raise UserError(f'model {recipe.model} cannot be built: {error}') from error
    with torch.no_grad():
        if recipe.head_init_scale is not None:
            model.get_classifier().weight.mul_(recipe.head_init_scale)
            model.get_classifier().bias.mul_(recipe.head_init_scale)
        if recipe.head_init_bias is not None:
            model.get_classifier().bias.fill_(recipe.head_init_bias)
    if recipe.initial_checkpoint:
        content = read_checkpoint(recipe.initial_checkpoint)
        load_weights(model, content.get('state_dict_ema') or content['state_dict'],
                     describe(recipe.initial_checkpoint, content))
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
    memory_format = torch.channels_last if recipe.channels_last and not device.is_lazy else torch.preserve_format
    return model.to(device.torch_device, memory_format=memory_format), data_config


def create_training(
        model: nn.Module, recipe: Recipe, device: Device, optimizer: torch.optim.Optimizer,
        schedule: Scheduler | None = None) -> Training:
    """All that an epoch works on, before its first update."""
    # The average comes after wrapping, which gives every process the primary's initial weights.
    return Training(
        model=model, wrapped=_compile_and_distribute(model, recipe, device), optimizer=optimizer, schedule=schedule,
        loss=create_loss(recipe).to(device.torch_device), scaler=device.grad_scaler(amp_dtype(recipe)),
        ema=create_ema(model, recipe, device), unreported=device.put(torch.zeros(3)))


def _check_for_graphs(recipe: Recipe) -> None:
    """Raise UserError for what does not go with a device that compiles whole steps."""
    if recipe.torchcompile:
        raise UserError('torchcompile does not go with device xla, which compiles whole steps itself')
    if recipe.amp and recipe.amp_dtype == 'float16':
        raise UserError('mixed precision on device xla is bfloat16: give --amp-dtype bfloat16')


def _compile_and_distribute(model: nn.Module, recipe: Recipe, device: Device) -> nn.Module:
    """The callable of the training step; `model` itself keeps the weights under their plain names."""
    wrapped: Any = model
    if recipe.torchcompile:
        wrapped = torch.compile(model, backend=recipe.torchcompile, mode=recipe.torchcompile_mode)
    return device.data_parallel(wrapped, broadcast_buffers=not recipe.no_ddp_bb)
