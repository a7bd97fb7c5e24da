"""The official 3D networks by TensorFlow 2 itself, with weights that NumPy draws from the name of each variable.

Needs the `convert` extra and `pip install --no-deps tf-models-official==2.15.0`. Renew what the tests compare with:

    PYTHONPATH=tests python -m expected.tf2_resnet_rs_3d
"""
import functools
import importlib
import lzma
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from expected.tf1_resnet_rs import AVERAGED, draw

DATA = Path(__file__).parent
VALUE, SLOT = '/.ATTRIBUTES/VARIABLE_VALUE', '/.OPTIMIZER_SLOT/'
# Of each network the name and arguments here, and what `k400_resnet3drs_50_tpu.yaml` and CVRL's R3D-50 set.
RS = dict(stem_type='v1', se_ratio=0.25)
NETWORKS = {
    'rs': ('resnetrs3d_50', {}, RS),
    'gated': ('resnetrs3d_50', dict(self_gating=True), RS | dict(use_self_gating=[True] * 4)),
    'baseline': ('resnet3d_50', {}, dict(stem_type='v0')),
}
CLIPS = [(8, 64, 64), (5, 75, 75), (7, 64, 75), (16, 32, 32)]  # frames, height, width: even and odd
# (network, clip, weights) of the committed logits.
GOLDEN_LOGITS = [*((name, clip, 'ema') for name in NETWORKS for clip in CLIPS), ('gated', CLIPS[1], 'raw')]


def drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values for an entry of a checkpoint, averages among them."""
    variable, _, slot = key.removesuffix(VALUE).partition(SLOT)
    return draw(variable + AVERAGED if slot else variable, shape)


def clip(size: tuple[int, int, int]) -> np.ndarray:
    """One clip of noise, (1, frames, height, width, 3) float32 from 0 to 1."""
    return np.random.RandomState(sum(size)).uniform(size=(1, *size, 3)).astype(np.float32)


def label(name: str, size: tuple[int, int, int], weights: str) -> str:
    return '_'.join([name, *map(str, size), weights])


@functools.cache  # the second time, there would be nothing to look up
def import_official(*names: str) -> list[ModuleType]:
    """Modules of tf-models-official, past the `__init__` files that import half of the package and its dependencies."""
    root = Path(next(iter(find_spec('official').submodule_search_locations)))
    for name in ('', '.core', '.modeling', '.vision', '.vision.modeling', '.vision.modeling.backbones',
                 '.vision.modeling.layers', '.vision.ops', '.modeling.optimization'):
        package = ModuleType(f'official{name}')
        package.__path__ = [str(root.joinpath(*name.split('.')[1:]))]
        sys.modules[f'official{name}'] = package
    return [importlib.import_module(f'official.{name}') for name in names]


class Official:
    """A network of `NETWORKS` with its average and momentum, and the checkpoint that the official trainer saves."""

    def __init__(self, name: str):
        import tensorflow as tf
        resnet_3d, classification, ema = import_official(
            'vision.modeling.backbones.resnet_3d', 'vision.modeling.video_classification_model',
            'modeling.optimization.ema_optimizer')
        tf.keras.backend.clear_session()
        backbone = resnet_3d.ResNet3D(
            model_id=50, temporal_strides=[1] * 4, temporal_kernel_sizes=[(1,) * 3, (1,) * 4, (3,) * 6, (3,) * 3],
            stem_pool_temporal_stride=1, norm_epsilon=1e-5, **NETWORKS[name][2])
        self.model = classification.VideoClassificationModel(backbone, num_classes=400)
        optimizer = ema.ExponentialMovingAverage(
            tf.keras.optimizers.legacy.SGD(0.1, momentum=0.9), trainable_weights_only=False)
        optimizer.shadow_copy(self.model)
        optimizer._create_slots(self.model.trainable_variables)
        averages = [optimizer.get_slot(variable, 'average') for variable in self.model.variables]
        self.checkpoint = tf.train.Checkpoint(  # as in official/core/base_trainer.py
            global_step=tf.Variable(0), model=self.model, optimizer=optimizer, backbone=backbone)
        self.variables = dict(raw=self.model.variables, ema=averages)
        self.keys = self._find_keys(tf)

    def _find_keys(self, tf):
        """The entry of a checkpoint that holds each variable: all get a number of their own, and are saved."""
        flat = [variable for variables in self.variables.values() for variable in variables]
        for number, variable in enumerate(flat):
            variable.assign(np.full(variable.shape, number, np.float32))
        with tempfile.TemporaryDirectory() as folder:
            reader = tf.train.load_checkpoint(self.checkpoint.save(f'{folder}/numbered'))
            self.shapes = {key: tuple(shape) for key, shape in reader.get_variable_to_shape_map().items()}
            found = {round(float(reader.get_tensor(key).flat[0])): key for key in self.shapes
                     if key.endswith(VALUE) and self.shapes[key] and '/momentum/' not in key}
        keys = [found[number] for number in range(len(flat))]
        return dict(raw=keys[:len(flat) // 2], ema=keys[len(flat) // 2:])

    def _fill(self, variables, weights):
        for key, variable in zip(self.keys[weights], variables, strict=True):
            variable.assign(drawn(key, tuple(variable.shape)))

    def save(self, prefix) -> str:
        """Save as the trainer does, raw weights and averages; returns the checkpoint's prefix."""
        for weights, variables in self.variables.items():
            self._fill(variables, weights)
        return self.checkpoint.save(str(prefix))

    def run(self, pixels: np.ndarray, weights: str) -> np.ndarray:
        """Logits (N, 400) of the averaged or the raw weights for clips (N, frames, height, width, 3)."""
        self._fill(self.model.variables, weights)
        return self.model(pixels, training=False).numpy()


def main():
    rows, logits = ['network,variable,shape'], {}
    for name in NETWORKS:
        official = Official(name)
        rows += [f'{name},{key},{"x".join(map(str, shape))}' for key, shape in sorted(official.shapes.items())]
        for network, size, weights in GOLDEN_LOGITS:
            if network == name:
                logits[label(name, size, weights)] = official.run(clip(size), weights)
    DATA.joinpath('tf2_variables_3d.csv.xz').write_bytes(lzma.compress('\n'.join(rows).encode() + b'\n'))
    np.savez_compressed(DATA / 'tf2_logits_3d.npz', **logits)


if __name__ == '__main__':
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    sys.exit(main())
