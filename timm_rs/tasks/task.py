"""What the loop, the loader, the log, the checkpoints and the model card ask of a task."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import timm
import torch
from torch import nn

from timm_rs.data.datasets import create_datasets, open_split
from timm_rs.data.samples import AnyDataset
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.recipe.declaring import BLOCK, RecipeError, nearest
from timm_rs.recipe.knobs import Recipe, fields_of
from timm_rs.recipe.reading import check_value
from timm_rs.transforms.create import create_transform
from timm_rs.transforms.sample import SampleTransform


class Metric(NamedTuple):
    """A number that evaluation gives: the column eval_`name` of summary.csv."""

    name: str
    label: str  # for people, as in 'top-1'
    higher_is_better: bool
    unit: str = ''
    axis: str = ''  # of its curve, which metrics of the same axis share; empty: its label
    hub: tuple[str, str] | None = None  # type and name in the header of a model card; None: not there

    def text(self, value: float) -> str:
        """'top-1 76.543 %'."""
        return f'{self.label} {value:.3f} %' if self.unit == '%' else f'{self.label} {value:.4f} {self.unit}'.rstrip()

    @property
    def heading(self) -> str:
        """'top-1 (%)'."""
        return f'{self.label} ({self.unit})' if self.unit else self.label


class Evaluator(Protocol):
    """Keeps sums on the device while a data set passes."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Count a batch, but for samples whose target is the task's `blank`. The host must not wait here."""

    def compute(self) -> dict[str, float]:
        """Every metric of the task, and `num_samples`, over all processes. Raises UserError if no sample counts."""


class Task:
    """One kind of work. A subclass gives `metrics`, `blank`, `encoder`, `loss` and `evaluator`, and all else it needs.

    Attributes:
        name: of its block of knobs in a recipe.
        noun: what a sample is called.
        Knobs: dataclass of its own knobs, each declared by `knob(...)`; None if it has none.
        metrics: what evaluation gives. The first is what `model_best` is chosen by unless `eval_metric` names another.
        blank: the target of a sample that does not count, of the kind that `encoder` gives.
        hub: type and name of the task on the Hugging Face Hub.
        parts: what outputs are of, such as 'each pixel'; empty where they are of whole images.
        is_of_videos: whether samples are videos, and the network sees clips of them.
        starts_with_classes: whether the classes of `initial_checkpoint` are those of the data.
        is_of_classes: whether each sample is of one class: outputs are logits (N, classes), targets indices (N,).
        is_of_tags: whether each sample is of any number of classes: logits (N, classes), targets the same, 0 to 1.
        knobs: an instance of `Knobs`.
        best_by: the metric that `model_best` is chosen by.
    """

    name: ClassVar[str]
    noun: ClassVar[str] = 'image'
    Knobs: ClassVar[type | None] = None
    metrics: tuple[Metric, ...]
    blank: ClassVar[Any]
    hub: ClassVar[tuple[str, str]]
    parts: ClassVar[str] = ''
    is_of_videos: ClassVar[bool] = False
    starts_with_classes: ClassVar[bool] = True
    is_of_classes: ClassVar[bool] = False
    is_of_tags: ClassVar[bool] = False

    def __init__(self, recipe: Recipe):
        """Raises UserError for a recipe that asks for what this task does not have."""
        self.knobs: Any = None
        if self.Knobs:
            declared = fields_of(self.Knobs)
            given = recipe.task_knobs.get(self.name, {})
            where = f'{BLOCK}: {self.name}'
            if unknown := next((name for name in given if name not in declared), None):
                raise RecipeError(f'{where}: unknown key {unknown}.{nearest(str(unknown), declared)}')
            self.knobs = self.Knobs(**{
                name: check_value(name, value, where, self.Knobs) for name, value in given.items()})
        if not self.is_of_classes and (wrong := [
                name for name in ('class_weights', 'balanced_sampling') if getattr(recipe, name)]):
            raise UserError(f'{wrong[0]} is for samples of one class each, which task {self.name} does not have: leave '
                            'it out')
        if other := next((name for name in recipe.task_knobs if name != self.name or not self.Knobs), None):
            raise RecipeError(f'{BLOCK}: {other} has knobs of another task: this one is {self.name}')
        # timm's default, top1, stands for the first metric of a task that has none of this name.
        self.best_by = next((metric for metric in self.metrics if metric.name == recipe.eval_metric), self.metrics[0])

    # ---- data, on the host --------------------------------------------------------------------------------------

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Any | None, Any | None, int | None]:
        """Training and validation data, and how many outputs the model needs for them; see `data.datasets`."""
        return create_datasets(recipe, need_training, known, source, self.open_split)

    def open_split(self, recipe: Recipe, split: str, is_training: bool) -> AnyDataset:
        """One split of the data. Raises UserError where it cannot be used."""
        return open_split(recipe, split, is_training)

    def describe(self, dataset: Any, num_outputs: int) -> list[str]:
        """What there is to say of training data, in lines, before training."""
        return []

    def classes(self, dataset: Any) -> dict[Any, int]:
        """Names of the model's outputs, by the data: name -> index. Empty where outputs have no names."""
        return {}

    def eval_config(self, data_config: dict[str, Any]) -> dict[str, Any]:
        """timm's data configuration, for evaluation."""
        return data_config

    def shape(self, data_config: dict[str, Any], is_training: bool) -> tuple[int, ...]:
        """Of what `create_transform` makes: (H, W, C) of an image, (T, H, W, C) of a clip, (views, T, H, W, C)."""
        channels, height, width = data_config['input_size']
        return height, width, channels

    def create_transform(self, recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> SampleTransform:
        """What makes pixels of a sample and a seed, and its target as it is for them."""
        return create_transform(recipe, data_config, is_training)

    def encoder(self, num_outputs: int) -> Callable[[Any], Any]:
        """What makes a target of a sample's label: a number, or a tensor of always the same shape.

        Data workers call it, so it must pickle. It raises UserError for a label that the model has no output for.
        """
        raise NotImplementedError

    def blank_of(self, transform: Any) -> Any:
        """`blank`, of the shape that `transform` gives targets."""
        return self.blank

    def create_mixing(self, recipe: Recipe, num_outputs: int) -> dict[str, Any] | None:
        """Arguments of timm's `Mixup`, or None without. Raises UserError where the recipe wants what cannot be done."""
        if not recipe.mixes_images:
            return None
        if not (self.is_of_classes or self.is_of_tags):
            raise UserError(f'mixup and cutmix mix classes, which task {self.name} does not have')
        if recipe.batch_size % 2:
            raise UserError(f'mixup and cutmix need an even batch_size, got {recipe.batch_size}')
        return dict(
            mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, cutmix_minmax=recipe.cutmix_minmax,
            prob=recipe.mixup_prob, switch_prob=recipe.mixup_switch_prob, mode=recipe.mixup_mode,
            label_smoothing=recipe.target_smoothing, num_classes=num_outputs)

    # ---- the model, on the device -------------------------------------------------------------------------------

    def create_model(self, **arguments: Any) -> nn.Module:
        """The network, with `num_classes` outputs. `arguments` are those of `timm.create_model`, and so the errors."""
        return timm.create_model(**arguments)  # type: ignore[no-any-return]

    def initial(self, model: nn.Module, weights: dict[str, torch.Tensor]
                ) -> tuple[nn.Module, dict[str, torch.Tensor], list[str]]:
        """The part of `model` that `weights` of `initial_checkpoint` are for, those that go there, names of others."""
        return model, weights, []

    def to(self, device: torch.device) -> None:
        """Move what `loss` needs."""

    def forward(self, model: nn.Module, images: torch.Tensor, targets: Any) -> Any:
        """Outputs for `images` (N, C, H, W), under autocast. Targets are for models that make their loss themselves.

        Where samples have several views, there are as many images of each, one after the other.
        """
        return model(images)

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        """The mean loss of a batch, (), float32."""
        raise NotImplementedError

    def num_right(self, outputs: Any, targets: Any) -> torch.Tensor | None:
        """How many samples of a training batch count as right, (), where the first metric is the share of those.

        None where there is no such number, as for mixed images. The host must not wait here.
        """
        return None

    def evaluator(self, device: Device) -> Evaluator:
        """A new one for each pass over a validation set."""
        raise NotImplementedError

    # ---- for people ---------------------------------------------------------------------------------------------

    def results(self, computed: dict[str, float]) -> dict[str, float]:
        """What an evaluator computed, as it stands in the evaluation's JSON."""
        return {metric.name: computed[metric.name] for metric in self.metrics}

    def caption(self, target: Any, names: Sequence[str]) -> str:
        """What the target of one image says, below it; `names` are those of the model's outputs. Empty for nothing."""
        return ''

    def loading(self, data_config: dict[str, Any]) -> tuple[str, list[str]]:
        """For a model card, an import, and lines of Python that make a batch `x` for `model`."""
        mode = 'L' if data_config['input_size'][0] == 1 else 'RGB'
        return 'from PIL import Image', [
                'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))',
                f"x = transform(Image.open('image.jpg').convert('{mode}')).unsqueeze(0)"]

    def usage(self, num_outputs: int) -> list[str]:
        """Lines of Python for a model card, in which `model` and a batch `x` for it are there, without gradients."""
        return ['    print(model(x))']
