"""The released ResNet-RS as a TensorFlow 1 graph, with weights that NumPy draws from the name of each variable.

Written after tensorflow/tpu `models/official/resnet/resnet_model.py`: the same layers, built in the same order,
since that order numbers the variables. Renew what the tests compare with, where the `convert` extra is installed:

    python tests/expected/tf1_resnet_rs.py
"""
import lzma
import os
import sys
import zlib
from pathlib import Path

import numpy as np

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DATA = Path(__file__).parent
AVERAGED = '/ExponentialMovingAverage'
# (depth, image size, weights) of the committed logits: sizes that halve evenly, and sizes that do not.
GOLDEN_LOGITS = [(50, 64, 'ema'), (50, 75, 'ema'), (50, 75, 'raw'), (50, 96, 'ema'), (101, 75, 'ema')]


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values for variable `name`; scaled by kind, so that the signal neither dies out nor explodes."""
    # RandomState: the one generator whose numbers NumPy promises never to change
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    variable = name.removesuffix(AVERAGED).rpartition('/')[2]
    if variable == 'kernel':
        noise /= np.sqrt(np.prod(shape[:-1]))
    elif variable == 'gamma':
        noise = 1 + 0.2 * noise
    elif variable == 'moving_variance':
        noise = np.exp(0.3 * noise)
    else:  # biases, beta, moving_mean
        noise *= 0.2
    return noise.astype(np.float32)


def images(size: int) -> np.ndarray:
    """One image of noise, (1, size, size, 3) float32, as the release feeds it after its normalisation."""
    return np.random.RandomState(size).standard_normal((1, size, size, 3)).astype(np.float32)


def build(tf, inputs, blocks):
    """Logits of the release in inference; `tf` is tensorflow.compat.v1, `inputs` (N, H, W, 3)."""

    def conv(x, filters, kernel, stride=1):
        if stride > 1:
            before = (kernel - 1) // 2
            x = tf.pad(x, [[0, 0], *[[before, kernel - 1 - before]] * 2, [0, 0]])
        return tf.layers.conv2d(x, filters, kernel, stride, 'SAME' if stride == 1 else 'VALID', use_bias=False)

    def norm(x, relu=True):
        x = tf.layers.batch_normalization(x, epsilon=1e-5, training=False, fused=True)
        return tf.nn.relu(x) if relu else x

    def squeeze_excite(x, filters):
        weight = tf.reduce_mean(x, [1, 2], keepdims=True)
        weight = tf.nn.relu(tf.layers.conv2d(weight, int(filters * 0.25), 1, padding='SAME'))
        return x * tf.sigmoid(tf.layers.conv2d(weight, filters, 1, padding='SAME'))

    def bottleneck(x, filters, stride, project):
        shortcut = x
        if project:
            if stride == 2:
                shortcut = tf.nn.avg_pool2d(shortcut, 2, 2, 'SAME')
            shortcut = norm(conv(shortcut, 4 * filters, 1), relu=False)
        x = norm(conv(x, filters, 1))
        x = norm(conv(x, filters, 3, stride))
        x = norm(conv(x, 4 * filters, 1), relu=False)
        return tf.nn.relu(squeeze_excite(x, 4 * filters) + shortcut)

    x = inputs
    for filters, stride in ((32, 2), (32, 1), (64, 1), (64, 2)):  # the last in place of the max pool
        x = norm(conv(x, filters, 3, stride))
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = bottleneck(x, 64 * 2 ** stage, 2 if stage and not block else 1, project=not block)
    return tf.layers.dense(tf.reduce_mean(x, [1, 2]), 1000)


class Release:
    """A session with the released network of `blocks`: raw weights, their averages, momentum and step."""

    def __init__(self, blocks):
        import tensorflow.compat.v1 as tf
        with tf.Graph().as_default():
            self.inputs = tf.placeholder(tf.float32, (None, None, None, 3))
            self.logits = build(tf, self.inputs, blocks)
            self.network = tf.global_variables()
            step = tf.train.get_or_create_global_step()
            optimizer = tf.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True)
            train = optimizer.minimize(tf.reduce_sum(self.logits), step)
            average = tf.train.ExponentialMovingAverage(0.9999, num_updates=step)
            with tf.control_dependencies([train]):
                average.apply(self.network)  # resnet_main.py: parameters and batch-norm statistics
            self.saver, self.everything = tf.train.Saver(), tf.global_variables()
            self.session = tf.Session(config=tf.ConfigProto(
                intra_op_parallelism_threads=1, inter_op_parallelism_threads=1))
            self.session.run(tf.global_variables_initializer(), self.drawn(self.everything))

    def drawn(self, variables, suffix=''):
        """What to feed to initialise `variables` with: the values drawn for the names that end with `suffix`."""
        return {variable.initializer.inputs[1]: draw(variable.op.name + suffix, tuple(variable.shape.as_list()))
                for variable in variables if variable.shape.rank and not variable.op.name.endswith('/Momentum')}

    def shapes(self):
        return {variable.op.name: tuple(variable.shape.as_list()) for variable in self.everything}

    def save(self, prefix):
        with self.session.graph.as_default():
            self.saver.save(self.session, str(prefix), write_meta_graph=False)

    def run(self, images, weights):
        """Logits (N, 1000) of the averaged or the raw weights."""
        suffix = AVERAGED if weights == 'ema' else ''
        self.session.run([variable.initializer for variable in self.network], self.drawn(self.network, suffix))
        return self.session.run(self.logits, {self.inputs: images})


def main():
    rows, logits = ['depth,variable,shape'], {}
    for depth, blocks in BLOCKS.items():
        release = Release(blocks)
        rows += [f'{depth},{name},{"x".join(map(str, shape))}' for name, shape in sorted(release.shapes().items())]
        for of_depth, size, weights in GOLDEN_LOGITS:
            if of_depth == depth:
                logits[f'{depth}_{size}_{weights}'] = release.run(images(size), weights)
    DATA.joinpath('tf1_variables.csv.xz').write_bytes(lzma.compress('\n'.join(rows).encode() + b'\n'))
    np.savez_compressed(DATA / 'tf1_logits.npz', **logits)


if __name__ == '__main__':
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    sys.exit(main())
