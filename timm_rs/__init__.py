"""ResNet-RS and EfficientNet-RS (arXiv:2103.07579) for timm: importing this package registers the models.

`read_recipe`, `train`, `evaluate`, `load_run` and `predict` are those of `timm_rs.api`, loaded when they are asked for.
"""
from typing import TYPE_CHECKING, Any

from . import models as models

if TYPE_CHECKING:
    from .api import evaluate, load_run, predict, read_recipe, train

__version__ = '0.1.0'
__all__ = ['evaluate', 'load_run', 'predict', 'read_recipe', 'train']


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api
        return getattr(api, name)
    raise AttributeError(f'module {__name__} has no attribute {name}')


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
