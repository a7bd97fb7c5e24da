"""Every knob of a training run, declared once.

The `Recipe` class below is the single source for the YAML keys, the command line, `--help` and the defaults; the
defaults equal timm's parser defaults.
"""

import dataclasses
import functools
import types
import typing
from typing import Any

from timm_rs.recipe.declaring import knob


@dataclasses.dataclass
class Recipe:
    """The values of one run. Names, types and defaults of all keys outside the block are timm's `train.py`'s."""

    data_dir: str | None = knob(
        None, 'dataset root; for image folders it holds train/ and validation/ (or val/)', section='Data',
        free=True, private=True)
    dataset: str = knob('', 'timm dataset name: empty for a folder or tar, or hfds/…, hfids/…, tfds/…, wds/…, torch/…')
    train_split: str = knob('train', 'training split; train-minival: all of it but minival')
    val_split: str = knob(
        'validation', 'validation split; empty to train without; minival: a fixed 2 % of the training split')
    train_num_samples: int | None = knob(None, 'samples in the training split, for streamed datasets', low=1)
    val_num_samples: int | None = knob(None, 'samples in the validation split, for streamed datasets', low=1)
    dataset_download: bool = knob(False, 'let torch/ and tfds/ datasets download themselves', free=True)
    class_map: str = knob('', 'file that maps class names to indices', private=True)
    input_img_mode: str | None = knob(None, 'PIL mode images are converted to (RGB, or L for one channel)')
    input_key: str | None = knob(None, 'dataset key of the image')
    target_key: str | None = knob(None, 'dataset key of the label')
    dataset_trust_remote_code: bool = knob(False, 'let a Hugging Face dataset run its own code')

    model: str = knob('resnet50', 'any timm model; ours are resnetrs_* and efficientnet_rs_*', section='Model')
    pretrained: bool = knob(False, 'start from the published weights of the model', free=True)
    pretrained_path: str | None = knob(
        None, 'load this file as if it were the published weights (head adapted)', free=True, private=True)
    initial_checkpoint: str = knob(
        '', 'start from these weights (same architecture and classes)', free=True, private=True)
    resume: str = knob(
        '', 'continue from a checkpoint with optimizer and schedule: a path, or auto', free=True, private=True)
    no_resume_opt: bool = knob(False, 'resume the weights only, with a fresh optimizer', free=True)
    num_classes: int | None = knob(None, 'classes; when unset, as many as the dataset has', low=1)
    gp: str | None = knob(None, 'global pooling', choices=('fast', 'avg', 'max', 'avgmax', 'catavgmax'))
    img_size: int | None = knob(None, 'square image size in pixels; when unset, the model\'s own', low=1, high=16384)
    in_chans: int | None = knob(None, 'input channels', low=1)
    input_size: list[int] | None = knob(None, 'channels, height, width', nargs=3, low=1, high=16384)
    crop_pct: float | None = knob(None, 'centre crop for evaluation, share of the short side', low=0.01, high=1)
    mean: list[float] | None = knob(None, 'mean for normalisation, per channel in 0..1')
    std: list[float] | None = knob(None, 'standard deviation for normalisation, per channel in 0..1', above=0)
    interpolation: str = knob('', 'resize filter for evaluation; when empty, the model\'s own')
    batch_size: int = knob(128, 'images per device and step', low=1, flags=('-b',), free=True)
    validation_batch_size: int | None = knob(None, 'images per evaluation batch', low=1, flags=('-vb',), free=True)
    channels_last: bool = knob(False, 'NHWC memory layout')
    grad_accum_steps: int = knob(1, 'batches per optimizer update', low=1, free=True)
    grad_checkpointing: bool = knob(False, 'recompute activations in the backward pass to save memory')
    fast_norm: bool = knob(False, 'let timm\'s norm layers run in low precision')
    model_kwargs: dict[str, Any] = knob({}, 'further arguments of the model, e.g. depth=26 width=0.25')
    head_init_scale: float | None = knob(None, 'scale the initial classifier weights')
    head_init_bias: float | None = knob(None, 'initial classifier bias')
    torchcompile: str | None = knob(None, 'compile the model with this torch.compile backend, e.g. inductor', free=True)
    torchcompile_mode: str | None = knob(None, 'torch.compile mode', free=True)

    device: str = knob(
        'cuda', 'cuda, cpu, mps (not verified) or xla; the default falls back to the CPU when there is no GPU',
        section='Device', free=True, private=True)
    amp: bool = knob(False, 'mixed precision by autocast')
    amp_dtype: str = knob('float16', 'low-precision type of --amp', choices=('float16', 'bfloat16'))
    no_ddp_bb: bool = knob(False, 'do not broadcast batch-norm buffers between processes at each step', free=True)
    device_modules: list[str] | None = knob(None, 'modules to import first; [timm_rs] makes timm\'s script know us')

    opt: str = knob('sgd', 'timm optimizer; sgd is nesterov, momentum is plain', section='Optimizer')
    opt_eps: float | None = knob(None, 'optimizer epsilon', low=0)
    opt_betas: list[float] | None = knob(None, 'optimizer betas', low=0, high=1)
    momentum: float = knob(0.9, 'optimizer momentum', low=0, high=1)
    weight_decay: float = knob(2e-5, 'weight decay (1-D parameters are exempt)', low=0)
    clip_grad: float | None = knob(None, 'clip gradients at this value', low=0)
    clip_mode: str = knob('norm', 'how to clip', choices=('norm', 'value', 'agc'))
    layer_decay: float | None = knob(None, 'layer-wise learning-rate decay', low=0)
    layer_decay_min_scale: float = knob(0.0, 'smallest layer-wise scale', low=0)
    layer_decay_no_opt_scale: float | None = knob(None, 'layers below this scale are frozen', low=0)
    opt_kwargs: dict[str, Any] = knob({}, 'further arguments of the optimizer')

    sched: str = knob(
        'cosine', 'timm schedule', section='Learning rate',
        choices=('cosine', 'tanh', 'step', 'constant', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'none'))
    sched_on_updates: bool = knob(False, 'step the schedule at every update instead of every epoch')
    lr: float | None = knob(None, 'learning rate; overrides lr_base', low=0)
    lr_base: float = knob(0.1, 'learning rate at a global batch of lr_base_size', low=0)
    lr_base_size: int = knob(256, 'global batch that lr_base is meant for', low=1)
    lr_base_scale: str = knob(
        '', 'scale lr_base with the batch; empty: sqrt for ada* and lamb, else linear', choices=('', 'linear', 'sqrt'))
    lr_noise: list[float] | None = knob(None, 'learning-rate noise on/off, as shares of the run', low=0, high=1)
    lr_noise_pct: float = knob(0.67, 'limit of the noise', above=0)
    lr_noise_std: float = knob(1.0, 'standard deviation of the noise', low=0)
    lr_cycle_mul: float = knob(1.0, 'cycle length multiplier', above=0)
    lr_cycle_decay: float = knob(0.5, 'decay per cycle', low=0)
    lr_cycle_limit: int = knob(1, 'number of cycles', low=1)
    lr_k_decay: float = knob(1.0, 'k-decay of cosine and poly', above=0)
    warmup_lr: float = knob(1e-5, 'learning rate at the start of the warm-up', low=0)
    min_lr: float = knob(0.0, 'learning rate at the end', low=0)
    epochs: int = knob(300, 'epochs to train', low=1)
    epoch_repeats: float = knob(0.0, 'repeats of the dataset per epoch, for streamed datasets', low=0)
    start_epoch: int | None = knob(None, 'first epoch, overriding the checkpoint\'s', low=0, free=True)
    decay_milestones: list[int] = knob([90, 180, 270], 'epochs of multistep decay', low=0)
    decay_epochs: float = knob(90.0, 'epochs between decays', above=0)
    warmup_epochs: int = knob(5, 'epochs of linear warm-up', low=0)
    warmup_prefix: bool = knob(False, 'add the warm-up to the epochs instead of counting it among them')
    cooldown_epochs: int = knob(0, 'epochs at min_lr after the schedule', low=0)
    patience_epochs: int = knob(10, 'patience of the plateau schedule', low=0)
    decay_rate: float = knob(0.1, 'decay factor', low=0)

    no_aug: bool = knob(False, 'train on centre crops, without any augmentation', section='Augmentation')
    train_crop_mode: str | None = knob(None, 'training crop', choices=('rrc', 'rkrc', 'rkrr'))
    scale: list[float] = knob([0.08, 1.0], 'area range of the random crop', nargs=2, above=0, high=1)
    ratio: list[float] = knob([3 / 4, 4 / 3], 'aspect range of the random crop', nargs=2, above=0)
    hflip: float = knob(0.5, 'probability of a horizontal flip', low=0, high=1)
    vflip: float = knob(0.0, 'probability of a vertical flip', low=0, high=1)
    color_jitter: float | None = knob(0.4, 'colour jitter; off when aa is set', low=0)
    color_jitter_prob: float | None = knob(None, 'probability of colour jitter', low=0, high=1)
    grayscale_prob: float | None = knob(None, 'probability of grayscale', low=0, high=1)
    gaussian_blur_prob: float | None = knob(None, 'probability of blur', low=0, high=1)
    aa: str | None = knob(None, 'auto-augment policy, e.g. rand-m15-n2-p1.0-mmax15')
    aug_repeats: float = knob(0.0, 'repeats of each image per epoch (several processes only)', low=0)
    bce_loss: bool = knob(False, 'binary cross-entropy instead of soft-max cross-entropy')
    bce_sum: bool = knob(False, 'sum the binary cross-entropy over classes')
    bce_target_thresh: float | None = knob(None, 'binarise soft targets at this threshold')
    bce_pos_weight: float | None = knob(None, 'weight of positives in the binary cross-entropy', low=0)
    reprob: float = knob(0.0, 'probability of random erasing', low=0, high=1)
    remode: str = knob('pixel', 'fill of random erasing', choices=('const', 'rand', 'pixel'))
    recount: int = knob(1, 'rectangles of random erasing', low=1, high=100)
    mixup: float = knob(0.0, 'mixup alpha', low=0)
    cutmix: float = knob(0.0, 'cutmix alpha', low=0)
    cutmix_minmax: list[float] | None = knob(None, 'cutmix size range, overrides its alpha', nargs=2, low=0, high=1)
    mixup_prob: float = knob(1.0, 'probability of mixup or cutmix', low=0, high=1)
    mixup_switch_prob: float = knob(0.5, 'probability of cutmix when both are on', low=0, high=1)
    mixup_mode: str = knob('batch', 'mix per', choices=('batch', 'pair', 'elem'))
    mixup_off_epoch: int = knob(0, 'stop mixing after this epoch', low=0)
    smoothing: float = knob(0.1, 'label smoothing', low=0, below=1)
    train_interpolation: str = knob('random', 'resize filter in training')
    drop: float = knob(0.0, 'dropout before the classifier', low=0, high=1)
    drop_path: float | None = knob(None, 'stochastic depth', low=0, high=1)
    drop_block: float | None = knob(None, 'drop block', low=0, high=1)

    bn_momentum: float | None = knob(
        None, 'batch-norm momentum, in torch\'s sense', section='Batch norm', low=0, high=1)
    bn_eps: float | None = knob(None, 'batch-norm epsilon', low=0)
    sync_bn: bool = knob(False, 'batch-norm statistics over all processes')
    dist_bn: str = knob(
        'reduce', 'share batch-norm buffers after each epoch', choices=('broadcast', 'reduce', ''))

    model_ema: bool = knob(False, 'keep an exponential moving average of the weights', section='Weight averaging')
    model_ema_decay: float = knob(0.9998, 'decay of the average', low=0, high=1)
    model_ema_warmup: bool = knob(False, 'ramp the decay up from 0')

    seed: int = knob(42, 'random seed', section='Run', low=0, high=4_000_000_000)
    worker_seeding: str = knob('all', 'timm\'s seeding of data workers', choices=('all', 'part'))
    log_interval: int = knob(50, 'updates between progress lines', low=1, free=True)
    val_interval: int = knob(1, 'epochs between evaluations', low=1)
    checkpoint_hist: int = knob(10, 'checkpoints to keep', low=1, free=True)
    recovery_interval: int = knob(
        0, 'updates between checkpoints within an epoch; 0 for none by number', low=0, free=True)
    workers: int = knob(4, 'data workers per process', low=0, flags=('-j',), free=True, private=True)
    pin_mem: bool = knob(False, 'pin host memory for faster transfers', free=True)
    output: str = knob('', 'folder of all runs (default: ./output/train)', free=True, private=True)
    experiment: str = knob('', 'name of this run\'s folder (default: date-model-size)', free=True, private=True)
    eval_metric: str = knob('top1', 'what model_best is chosen by: top1, top5 or loss')
    log_wandb: bool = knob(False, 'log to Weights & Biases, as log_to wandb', free=True, private=True)
    wandb_project: str | None = knob(None, 'project in W&B and trackio, experiment in MLflow', free=True, private=True)
    wandb_tags: list[str] = knob([], 'tags in W&B', free=True, private=True)
    wandb_resume_id: str = knob(
        '', 'go on with the curve of this id in W&B; when empty, with that of the run\'s folder', free=True,
        private=True)

    task: str = knob(
        'classification', 'what kind of work it is: classification, or module:Class for a task of your own',
        section='Only in timm_rs', block=True)
    builtin_data: str = knob(
        '', 'dataset to write and use when no data_dir is given (scenes: photos with masks and boxes; several: images '
        'with tags; motion: videos; motorcycle: depths); with a number: so many labels of each class, the other images '
        'without labels in pool/',
        choices=('', 'digits', 'digits-10', 'digits-20', 'fashion-mnist', 'fashion-mnist-20', 'fashion-mnist-100',
                 'fashion-mnist-2000', 'scenes', 'several', 'motion', 'motorcycle'), block=True)
    class_folder: str = knob(
        'top', 'the folder that names the class: top, directly below the split, or leaf, the last, as timm has it',
        choices=('top', 'leaf'), block=True)
    freeze: str = knob(
        '', 'what training leaves as it is: backbone, all but the classifier, or a number of parts from the input on, '
        'the stem and stages; batch norm there keeps its statistics', block=True)
    log_to: list[str] = knob(
        [], 'where to watch the run live, by the rows of summary.csv: tensorboard (below its folder), wandb, trackio, '
        'mlflow', choices=('tensorboard', 'wandb', 'trackio', 'mlflow'), block=True, free=True, private=True)
    patience: int = knob(
        0, 'end the run when so many evaluations in a row are no better than the best; 0: never', low=0, block=True,
        free=True)
    class_weights: str = knob(
        '', 'what images of each class count in the loss: auto, inverse to how many there are, or a CSV with the '
        'columns class and weight', block=True, private=True)
    balanced_sampling: bool = knob(
        False, 'show each class equally often in an epoch, which stays as long', block=True)
    inflate: str = knob(
        '', 'make initial_checkpoint, of a plain ResNet for images, fit a network for clips: its kernels in the centre '
        'frame, or their mean in all', choices=('', 'centre', 'mean'), block=True, free=True)
    ema_ramp: str = knob(
        'timm', 'curve of model_ema_warmup: timm\'s, or TensorFlow\'s min(decay, (1+t)/(10+t))',
        choices=('timm', 'tf'), block=True)
    loader: str = knob(
        'fast', 'fast: partial decoding and arrays; timm: timm\'s own loader (always, where data is streamed)',
        choices=('fast', 'timm'), block=True)
    decode: str = knob(
        'exact', 'scaled: decode training JPEGs at 1/2, 1/4 or 1/8 where the crop stays large enough: faster for '
        'photos of megapixels, but not the same pixels', choices=('exact', 'scaled'), block=True)
    max_bad_samples: int | None = knob(
        None, 'stop when more images than this cannot be read; when unset, 0.1 % of the data, at least 10', low=0,
        block=True, free=True)
    max_image_pixels: int | None = knob(
        None, 'images with more pixels than this are bad; when unset, than Pillow takes, 89 million', low=1,
        high=178_956_970, block=True)
    max_image_scans: int = knob(
        32, 'JPEGs in more scans than this are bad; each costs as much as an image', low=1, block=True)
    max_image_seconds: float = knob(
        60.0, 'images that take longer to decode are bad; seconds of the processor', above=0, high=86_400, block=True)
    checkpoint_interval_minutes: float = knob(
        10.0, 'minutes between checkpoints within an epoch; 0 for none by time', low=0, block=True, free=True)
    stop_timeout: float = knob(
        60.0, 'seconds after a signal until a run that hangs, and so cannot save itself, is ended', low=1, block=True,
        free=True)
    max_nonfinite_steps: int = knob(
        10, 'stop after so many updates in a row that are left out for a loss or gradient that is not finite', low=0,
        block=True, free=True)
    allow_recipe_change: bool = knob(
        False, 'resume although the recipe is not that of the checkpoint', block=True, free=True)
    bn_group_size: int | None = knob(
        None, 'images that share batch-norm statistics, 0 for all of the batch; when unset, those of a device',
        low=0, block=True)
    compile_cache: str = knob(
        '', 'folder that keeps what XLA has compiled for the next start', block=True, free=True, private=True)
    show_xla_metrics: bool = knob(
        False, 'print what XLA compiled, ran and transferred at the end', block=True, free=True)
    deterministic: bool = knob(
        False, 'the same bits each time, on GPUs too, at some cost of speed; faster_rcnn of task detection '
        'there needs much more memory for it', block=True, free=True)
    randaugment: str = knob(
        'timm', 'whose RandAugment: timm\'s, or the authors\' TensorFlow release\'s with the m and n of aa',
        choices=('timm', 'tf'), block=True)
    preprocessing: str = knob(
        'timm', 'whose crop, resize and flip: timm\'s, or the authors\' TensorFlow release\'s',
        choices=('timm', 'tf'), block=True)
    schedule: str = knob(
        'timm', 'where the warm-up of a cosine ends: timm\'s base rate, or the cosine itself as in TensorFlow',
        choices=('timm', 'tf'), block=True)
    weight_decay_rule: str = knob(
        'timm', 'what decays: timm\'s kernels, or as in the TF1 release all but batch norm, biases included',
        choices=('timm', 'tf'), block=True)
    weight_decay_by_rate: bool = knob(
        False, 'divide weight_decay by the learning rate, so that an update takes that share of a weight at any rate '
        '(SimCLR\'s grids)', block=True)

    pseudo_dir: str = knob(
        '', 'train also on the images that tools/pseudo_label.py has labelled and selected in this folder', block=True,
        free=True, private=True)
    pseudo_pool: str = knob(
        '', 'where those images are now; when unset, where they were labelled', block=True, free=True, private=True)
    pseudo_ratio: int = knob(3, 'pseudo-labelled images for each labelled one', low=1, block=True)
    pseudo_temperature: float = knob(1.0, 'flatten pseudo labels: p^(1/T)', above=0, block=True)
    pseudo_hard: bool = knob(False, 'take the likeliest class for the label, with smoothing', block=True)

    # The knobs that a task declares in its own file, by the task's name: in YAML a block of this name in `BLOCK`.
    task_knobs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def mixes_images(self) -> bool:
        """Whether mixup or cutmix is on: targets are then soft, and already smoothed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    @property
    def target_smoothing(self) -> float:
        """Label smoothing of soft targets: none with class weights, where the loss smooths what it has weighted."""
        return 0.0 if self.class_weights else self.smoothing

    def learning_rate(self, num_devices: int) -> float:
        """`lr`, or `lr_base` scaled from `lr_base_size` to the global batch (linearly; by the root for ada*, lamb)."""
        if self.lr is not None:
            return self.lr
        ratio = self.images_per_update(num_devices) / self.lr_base_size
        adaptive = any(name in self.opt.lower() for name in ('ada', 'lamb'))
        scale = self.lr_base_scale or ('sqrt' if adaptive else 'linear')
        return float(self.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio))

    def images_per_update(self, num_devices: int) -> int:
        """The global batch: images of all devices together."""
        return self.batch_size * num_devices * self.grad_accum_steps

    @property
    def image_mode(self) -> str:
        """The PIL mode that images are converted to."""
        return self.input_img_mode or ('RGB' if self.channels in (None, 3) else 'L')

    def public(self) -> 'Recipe':
        """Without what belongs to the machine that it ran on."""
        private = {name: getattr(Recipe(), name) for name, knob in FIELDS.items() if knob.metadata['private']}
        if self.class_weights == 'auto':  # and no file
            del private['class_weights']
        return dataclasses.replace(self, **private)

    @property
    def channels(self) -> int | None:
        """Channels of the images, as `input_size` or `in_chans` says; None leaves them to the model."""
        return self.input_size[0] if self.input_size else self.in_chans


@functools.cache
def fields_of(declared: type) -> dict[str, dataclasses.Field[Any]]:
    """The knobs that a dataclass declares, by name."""
    return {field.name: field for field in dataclasses.fields(declared) if field.metadata}


FIELDS = fields_of(Recipe)


@functools.cache  # a recipe asks for all of them
def value_type(name: str, declared: type = Recipe) -> tuple[type, type | None, bool]:
    """(container or scalar type, element type of a list, may be null) of a knob of a dataclass."""
    hint, optional = typing.get_type_hints(declared)[name], False
    if isinstance(hint, types.UnionType):
        hint, optional = next(arg for arg in hint.__args__ if arg is not types.NoneType), True
    origin = typing.get_origin(hint)
    if origin is list:
        return list, typing.get_args(hint)[0], optional
    return (dict if origin is dict else hint), None, optional
