"""From a recipe to an optimizer and a learning-rate schedule, both timm's."""

import inspect
import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, optimizer_kwargs
from timm.scheduler import CosineLRScheduler, PlateauLRScheduler, create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from torch import nn

from timm_rs.errors import UserError, blaming
from timm_rs.models.resnet_rs_3d import ResNetRS3d
from timm_rs.recipe.knobs import Recipe


def create_optimizer(model: nn.Module, recipe: Recipe, num_devices: int) -> torch.optim.Optimizer:
    """timm's optimizer `recipe.opt`, fused where it can be.

    Raises UserError for a name or argument that timm does not know.
    """
    options: dict[str, Any] = optimizer_kwargs(recipe) | {'lr': recipe.learning_rate(num_devices)}
    if _is_fused(model, recipe.opt, recipe.opt_kwargs):
        options['fused'] = True
    if recipe.weight_decay_by_rate:
        if not options['lr']:
            raise UserError('weight_decay_by_rate divides by the learning rate, which is 0: give a rate above 0')
        options['weight_decay'] /= options['lr']
    options |= recipe.opt_kwargs
    if recipe.weight_decay_rule == 'tf':
        if recipe.layer_decay is not None:
            raise UserError('weight_decay_rule tf and layer_decay both group the parameters: set one of the two')
        if isinstance(model, ResNetRS3d):
            raise UserError('weight_decay_rule tf is that of the authors\' code for images, and decays biases and '
                            'gates, too; their code for clips decays what timm does: leave it out')
        options['param_group_fn'] = all_but_batch_norm_decay
    with blaming(f'optimizer {recipe.opt} cannot be built'):
        kind = get_optimizer_class(recipe.opt.rpartition('_')[2], bind_defaults=False)  # of lookahead_adamw, too
        usual = inspect.signature(kind).parameters.get('betas')
        if recipe.opt_betas and usual and len(recipe.opt_betas) != len(usual.default):
            raise UserError(f'optimizer {recipe.opt} takes {len(usual.default)} opt_betas, got {recipe.opt_betas}')
        optimizer: torch.optim.Optimizer = create_optimizer_v2(model, **options)
    if getattr(optimizer, 'is_second_order', False):
        raise UserError(f'optimizer {recipe.opt} needs second derivatives, which are not computed here: take another')
    return optimizer


def _is_fused(model: nn.Module, name: str, given: dict[str, Any]) -> bool:
    """Whether to take the kernel that updates all weights at once: on GPUs, if it exists and nothing else is asked for.

    It is also the one that can leave out an update by itself (`DeviceGuard`).
    """
    weights = list(model.parameters())
    on_gpu = bool(weights) and all(weight.is_cuda and weight.is_floating_point() for weight in weights)
    if not on_gpu or given.keys() & {'fused', 'foreach', 'dampening', 'differentiable'}:
        return False
    try:
        return 'fused' in inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    except ValueError:  # an unknown name, which timm will report
        return False


def all_but_batch_norm_decay(model: nn.Module) -> list[dict[str, Any]]:
    """The release's rule: L2 on every variable outside batch norm, biases included (resnet_main.py)."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    batch_norm = {id(parameter) for module in model.modules() if isinstance(module, kinds)
                  for parameter in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [dict(params=[parameter for parameter in trained if id(parameter) not in batch_norm]),
            dict(params=[parameter for parameter in trained if id(parameter) in batch_norm], weight_decay=0.0)]


def create_schedule(
        optimizer: torch.optim.Optimizer, recipe: Recipe, updates_per_epoch: int, lower_is_better: bool = False
) -> tuple[Scheduler | None, int]:
    """timm's schedule, and the epochs to train (warm-up prefix and cool-down included).

    `lower_is_better` is for the metric that a plateau is seen by. Raises UserError for settings that timm's schedule
    does not allow.
    """
    if recipe.lr_noise and recipe.lr_noise_std > 100 * recipe.lr_noise_pct:  # timm draws until it finds one within it
        raise UserError(f'lr_noise_std {recipe.lr_noise_std} is so much more than lr_noise_pct {recipe.lr_noise_pct} '
                        'that hardly any noise is within that limit')
    with blaming(f'schedule {recipe.sched} cannot be built'):
        schedule, num_epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(recipe, decreasing_metric=lower_is_better),
            updates_per_epoch=updates_per_epoch)
        if num_epochs > 1e9:
            raise ValueError(f'{num_epochs} epochs are more than anybody can train; they are epochs x lr_cycle_limit, '
                             'with cooldown_epochs, and warmup_epochs as a prefix')
        if schedule is not None and recipe.sched != 'plateau':  # which follows the metric
            check_rates(schedule, num_epochs, updates_per_epoch if recipe.sched_on_updates else 1)
    if recipe.schedule == 'tf' and isinstance(schedule, CosineLRScheduler):
        end_warm_up_on_the_cosine(schedule)
    return schedule, num_epochs


def create_num_epochs(recipe: Recipe) -> int:
    """Epochs that a run of the recipe trains, warm-up prefix and cool-down included."""
    anything = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate(1))
    return create_schedule(anything, recipe, updates_per_epoch=1)[1]


def check_rates(schedule: Scheduler, num_epochs: int, steps_per_epoch: int) -> None:
    """Raise ValueError, or whatever `schedule` does, if a learning rate on the way is none; looks at 1000 epochs."""
    for epoch in (*range(0, num_epochs, max(num_epochs // 1000, 1)), num_epochs):
        for rate in schedule._get_lr(epoch * steps_per_epoch):
            if not abs(rate) <= torch.finfo(torch.float32).max:
                raise ValueError(f'it gives the learning rate {rate} in epoch {epoch + 1}')


def end_warm_up_on_the_cosine(schedule: CosineLRScheduler) -> None:
    """Ramp to the cosine's value where the warm-up ends, as the authors' TF2 code; timm ramps to the base rate.

    tensorflow/models, `official/modeling/optimization/lr_schedule.py`, LinearWarmup. With 5 of 350 epochs the ramp
    is 0.05 % lower, with 5 of 20 it is 15 %. The step schedule needs nothing: TF1's warm-up ends on the base rate.
    """
    if schedule.warmup_t and not schedule.warmup_prefix:
        share = 0.5 * (1 + math.cos(math.pi * (schedule.warmup_t / schedule.t_initial) ** schedule.k_decay))
        schedule.warmup_steps = [
            (schedule.lr_min + (base - schedule.lr_min) * share - schedule.warmup_lr_init) / schedule.warmup_t
            for base in schedule.base_values]


def rates(schedule: Scheduler | None, updates_per_epoch: int, num_epochs: int, most: int = 500
          ) -> list[tuple[float, float]]:
    """The rate of the first weights at up to `most` updates spread over `num_epochs`: (epochs that are over, rate).

    Empty where it does not change with the updates, or not by a schedule that can be asked beforehand.
    """
    if schedule is None or schedule.t_in_epochs or isinstance(schedule, PlateauLRScheduler):
        return []
    last = updates_per_epoch * num_epochs
    scale = schedule.optimizer.param_groups[0].get('lr_scale', 1.0)

    def rate(update: int) -> float:
        values = schedule._get_lr(update)
        return float(scale * (schedule._add_noise(values, update) if update else values)[0])  # timm's first has none

    return [(update / updates_per_epoch, rate(update))
            for update in sorted({round(index * last / most) for index in range(most + 1)})]
