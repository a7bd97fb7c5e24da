"""What was measured of a model: on which images, made how, and what came out."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from timm_rs.data.annotated import layout_of
from timm_rs.data.builtin import is_builtin
from timm_rs.errors import UserError
from timm_rs.files import read_csv, sha256_of
from timm_rs.recipe.knobs import Recipe


@dataclasses.dataclass(frozen=True)
class Setting:
    """The images that a model was measured on, and what was made of them.

    Attributes:
        data: name of the dataset or of its folder.
        split: its name.
        input_size: channels, height, width.
        crop_pct: centre crop, share of the short side.
        interpolation: resize filter.
        mean, std: for normalisation, per channel.
        preprocessing: 'timm' or 'tf'.
        num_classes: those in the data, which may lack some of the model's; None: all.
        elsewhere: whether the folder is another than that of the training, although it may be called the same.
    """
    data: str
    split: str
    input_size: tuple[int, ...]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: str
    num_classes: int | None = dataclasses.field(default=None, compare=False)
    elsewhere: bool = False

    @property
    def size(self) -> str:
        """'224 px' or '224 x 192 px'."""
        _, height, width = self.input_size
        return f'{height} px' if height == width else f'{height} x {width} px'


@dataclasses.dataclass
class Measured:
    """Metrics by name, what they were measured on, and the number of images where it is known."""
    metrics: dict[str, float]
    images: int | None
    setting: Setting


def create_setting(recipe: Recipe, data_config: dict[str, Any]) -> Setting:
    """What an evaluation with this recipe and timm's data configuration measures; no path is in it."""
    if recipe.dataset and not layout_of(recipe.dataset):  # a layout is of many data sets
        name = recipe.dataset.partition('/')[2] or recipe.dataset
    elif is_builtin(recipe.builtin_data, recipe.data_dir):
        name = recipe.builtin_data
    else:
        name = Path(recipe.data_dir or '').name or 'unknown'
    return Setting(name, recipe.val_split or 'validation', tuple(data_config['input_size']), data_config['crop_pct'],
                   data_config['interpolation'], tuple(data_config['mean']), tuple(data_config['std']),
                   recipe.preprocessing)


def create_record(recipe: Recipe, data_config: dict[str, Any], num_classes: int, checkpoint: Path, trained_on: Any
                  ) -> dict[str, Any]:
    """What an evaluation of `checkpoint` has to say of itself in its JSON; `trained_on`: its args, if there are any."""
    setting = dataclasses.replace(create_setting(recipe, data_config), num_classes=num_classes)
    if isinstance(trained_on, dict):
        here, there = ((dataset, Path(str(data_dir or '')).resolve()) for dataset, data_dir in (
            (recipe.dataset, recipe.data_dir), (trained_on.get('dataset'), trained_on.get('data_dir'))))
        setting = dataclasses.replace(setting, elsewhere=here != there)
    return dict(dataclasses.asdict(setting), checkpoint=checkpoint.name, checkpoint_sha256=sha256_of(checkpoint))


def read_evaluation(path: Path, checkpoint: Path, weights: str, metrics: list[str]) -> Measured | None:
    """What the JSON at `path` says of these weights of `checkpoint`; None unless it says on what they were measured.

    Raises UserError for a damaged file.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        says = {field.name: content.get(field.name) for field in dataclasses.fields(Setting)}
        if (None in says.values() or content.get('weights') != weights
                or content.get('checkpoint_sha256') != sha256_of(checkpoint)):  # a run that went on has another one
            return None
        setting = Setting(**says | {name: tuple(says[name]) for name in ('input_size', 'mean', 'std')})
        return Measured({name: float(content[name]) for name in metrics}, int(content['num_samples']), setting)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise _damaged(path, error) from None


def read_summary(path: Path, epoch: int | None, prefix: str, metrics: list[str]) -> dict[str, float]:
    """Metrics that summary.csv has of an epoch, in columns with that prefix. Raises UserError for a damaged file."""
    try:
        row = next((row for row in read_csv(path) if row['epoch'] == str(epoch)), {})
        return {name: float(row[prefix + name]) for name in metrics if row.get(prefix + name)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f'{path} is damaged ({error!r}): mend it, or move it away to publish without')
