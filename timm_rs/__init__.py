"""ResNet-RS and EfficientNet-RS (arXiv:2103.07579) for timm: importing this package registers the models.

They are there as soon as timm is, whichever is imported first. So nothing waits for timm and torch, which take seconds,
before it needs them: not the help of a program. `read_recipe`, `train`, `evaluate`, `load_run` and `predict` are those
of `timm_rs.api`, loaded when they are asked for.
"""
import importlib.abc
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import models as models
    from .api import evaluate, load_run, predict, read_recipe, train

__version__ = '0.1.0'
__all__ = ['evaluate', 'load_run', 'predict', 'read_recipe', 'train']


def _register() -> Any:
    return importlib.import_module('timm_rs.models')


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Registers the models at the end of the import of timm, which the other finders find."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != 'timm':
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                _register()
            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if 'timm' in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterTimm())


def __getattr__(name: str) -> Any:
    if name == 'models':
        return _register()
    if name in __all__:
        from . import api
        return getattr(api, name)
    raise AttributeError(f'module {__name__} has no attribute {name}')


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
