"""Options of timm's train.py that we do not have."""

from collections.abc import Iterable
from typing import Any

# timm's options that we do not have, with its defaults: with these they change nothing.
ABSENT: dict[str, Any] = dict(
    fuser='', torchscript=False, model_dtype=None, synchronize_step=False, aug_splits=0, jsd_loss=False, resplit=False,
    drop_connect=None, split_bn=False, model_ema_force_cpu=False, save_images=False, no_prefetcher=False, tta=0,
    use_multi_epochs_loader=False,
    train_img_sizes=None, train_batch_sizes=None, train_size_probs=None, train_size_schedule='constant',
    train_size_schedule_spread=0.65, train_size_random_mix=0.1, train_batches_per_epoch=None,
    variable_batch_loss_scale='none', naflex_loader=False, naflex_train_seq_lens=[128, 256, 576, 784, 1024],
    naflex_max_seq_len=576, naflex_patch_sizes=None, naflex_patch_size_probs=None, naflex_loss_scale='linear',
    naflex_patchify_channels_first=False, kd_model_name=None, kd_distill_type='logit', kd_loss_type='kl',
    distill_loss_weight=None, task_loss_weight=None, kd_temperature=4.0, kd_student_feature_dim=None,
    kd_teacher_feature_dim=None, kd_token_distill_type='soft')
# Second names, and options of older versions: what to write instead, if there is anything.
INSTEAD: dict[str, str] = dict(
    drop_connect='drop_path', dr='decay_rate', torchscript='torchcompile', aot_autograd='torchcompile', fuser='',
    amp_impl='amp', native_amp='amp', apex_amp='amp', bn_tf='bn_momentum', lr_cycle_min='lr_cycle_decay',
    train_steps_per_epoch='', d='dataset')


def is_of_timm(name: str) -> bool:
    """Whether timm's train.py has, or had, an option of this name, and we do not."""
    return name in ABSENT or name in INSTEAD


def refusal(names: Iterable[str], prefix: str = '') -> str:
    """A sentence that refuses these options of timm's; `prefix` is what stands before the name of an option: '--'."""
    def spelled(name: str) -> str:
        return '-d' if name == 'd' else prefix + (name.replace('_', '-') if prefix else name)
    words = [spelled(name) + (f' (write {spelled(INSTEAD[name])})' if INSTEAD.get(name) else '') for name in names]
    return f'timm_rs does not have {", ".join(words)} of timm\'s train.py'


def changes_nothing(name: str, value: Any) -> bool:
    """Whether an option of timm's that we do not have may be left out. torchrun's environment says the local rank."""
    return name == 'local_rank' or name in ABSENT and value == ABSENT[name]
