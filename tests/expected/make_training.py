"""Write tests/expected/training.npz: a small network as TensorFlow trains it the way the authors' releases do.

    pip install tensorflow-cpu==2.15.1 "numpy<2"
    python tests/expected/make_training.py [OUTPUT]

Everything that learns is TensorFlow's own, in graph mode: layers, gradients, optimizers, moving average. How they
are put together follows tensorflow/tpu, `models/official/resnet/resnet_main.py` (runs 'sgd') and
`models/official/efficientnet/main.py` (run 'rmsprop'); the warm-up of the cosine is that of tensorflow/models,
`official/modeling/optimization/lr_schedule.py`. Keys: images, labels (one row per update of an epoch),
initial/NAME, and per run RUN/loss and RUN/lr (one per update), RUN/final/NAME and RUN/ema/NAME, with TensorFlow's
names and layouts.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1
EPOCHS, UPDATES_PER_EPOCH, WARMUP_EPOCHS = 20, 6, 5
CLASSES = 5

RUNS = {
    # Weight decay on kernels only, as the TF2 code and timm; then on all but batch norm, as the TF1 release.
    'sgd': dict(lr=0.1, decay=4e-5, decayed=('kernel',), bn_momentum=0.0, bn_eps=1e-5),
    'sgd_release': dict(lr=0.1, decay=4e-5, decayed=('kernel', 'bias'), bn_momentum=0.0, bn_eps=1e-5),
    'rmsprop': dict(lr=0.002, decay=1e-5, decayed=('kernel', 'bias'), bn_momentum=0.99, bn_eps=1e-3),
}


def main() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (UPDATES_PER_EPOCH, 8, 8, 8, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, (UPDATES_PER_EPOCH, 8))
    initial = {
        'conv2d/kernel': rng.normal(0, 0.2, (3, 3, 3, 8)), 'conv2d_1/kernel': rng.normal(0, 0.1, (3, 3, 8, 10)),
        'dense/kernel': rng.normal(0, 0.3, (10, CLASSES)), 'dense/bias': rng.normal(0, 0.3, CLASSES)}
    for name, channels in (('batch_normalization', 8), ('batch_normalization_1', 10)):
        initial |= {f'{name}/gamma': np.ones(channels), f'{name}/beta': np.zeros(channels),
                    f'{name}/moving_mean': np.zeros(channels), f'{name}/moving_variance': np.ones(channels)}
    initial = {name: value.astype(np.float32) for name, value in initial.items()}
    goldens = {'images': images, 'labels': labels.astype(np.uint8)}
    goldens |= {f'initial/{name}': value for name, value in initial.items()}
    for name, options in RUNS.items():
        goldens |= {f'{name}/{key}': value for key, value in train(name, options, images, labels, initial).items()}
    output = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name('training.npz')
    np.savez_compressed(output, **goldens)


def train(run: str, options: dict, images: np.ndarray, labels: np.ndarray, initial: dict) -> dict[str, np.ndarray]:
    """The losses, learning rates, final and averaged variables of one run from `initial`."""
    with tf.Graph().as_default(), tf1.Session() as session:
        pixels = tf1.placeholder(tf.float32, (8, 8, 8, 3))
        classes = tf1.placeholder(tf.int64, (8,))
        cross_entropy = tf1.losses.softmax_cross_entropy(
            tf.one_hot(classes, CLASSES), network(pixels, options), label_smoothing=0.1)
        decayed = [v for v in tf1.trainable_variables() if v.op.name.endswith(options['decayed'])]
        loss = cross_entropy + options['decay'] * tf.add_n([tf.nn.l2_loss(v) for v in decayed])

        global_step = tf1.train.create_global_step()
        if run == 'rmsprop':
            lr = staircase_with_warmup(options['lr'], global_step)
            optimizer = tf1.train.RMSPropOptimizer(lr, decay=0.9, momentum=0.9, epsilon=1e-3)
        else:
            lr = cosine_with_warmup(options['lr'], global_step)
            optimizer = tf1.train.MomentumOptimizer(lr, momentum=0.9, use_nesterov=True)
        with tf.control_dependencies(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)):
            train_op = optimizer.minimize(loss, global_step)
        # The average runs after the whole training op, hence after global_step was incremented.
        statistics = [v for v in tf1.global_variables() if 'moving_' in v.name]
        ema = tf1.train.ExponentialMovingAverage(0.9999, num_updates=global_step)
        averaged = tf1.trainable_variables() + statistics
        with tf.control_dependencies([train_op]):
            train_op = ema.apply(averaged)

        variables = {v.op.name: v for v in averaged}
        assert variables.keys() == initial.keys()
        assign = [variable.assign(initial[name]) for name, variable in variables.items()]
        average = [ema.average(variable).assign(initial[name]) for name, variable in variables.items()]
        session.run(tf1.global_variables_initializer())
        session.run(assign + average)
        losses, rates = [], []
        for update in range(EPOCHS * UPDATES_PER_EPOCH):
            row = update % UPDATES_PER_EPOCH
            feed = {pixels: images[row] / np.float32(128) - 1, classes: labels[row]}
            value, rate, _ = session.run([cross_entropy, lr, train_op], feed)
            losses.append(value)
            rates.append(rate)
        final = session.run({f'final/{name}': variable for name, variable in variables.items()})
        return final | session.run({f'ema/{name}': ema.average(v) for name, v in variables.items()}) | {
            'loss': np.array(losses), 'lr': np.array(rates)}


def network(pixels: tf.Tensor, options: dict) -> tf.Tensor:
    """Two convolutions, the second with stride 2, each with batch norm and ReLU; mean over pixels; dense."""
    for channels, stride in ((8, 1), (10, 2)):
        pixels = tf.pad(pixels, [[0, 0], [1, 1], [1, 1], [0, 0]])  # fixed padding, as resnet_model.py
        pixels = tf1.layers.conv2d(pixels, channels, 3, stride, padding='valid', use_bias=False)
        pixels = tf.nn.relu(tf1.layers.batch_normalization(
            pixels, momentum=options['bn_momentum'], epsilon=options['bn_eps'], training=True, fused=True))
    return tf1.layers.dense(tf.reduce_mean(pixels, [1, 2]), CLASSES)


def cosine_with_warmup(base: float, global_step: tf.Variable) -> tf.Tensor:
    """A cosine over all updates; the warm-up replaces its start, linearly from 0 to where the cosine then is."""
    warmup, total = WARMUP_EPOCHS * UPDATES_PER_EPOCH, EPOCHS * UPDATES_PER_EPOCH
    ramp = tf.cast(global_step, tf.float32) / warmup * tf1.train.cosine_decay(base, warmup, total)
    return tf.where(global_step < warmup, ramp, tf1.train.cosine_decay(base, global_step, total))


def staircase_with_warmup(base: float, global_step: tf.Variable) -> tf.Tensor:
    """x 0.97 every 2.4 epochs, counted from the first update; the warm-up ramps from 0 to `base`."""
    warmup = WARMUP_EPOCHS * UPDATES_PER_EPOCH
    decayed = tf1.train.exponential_decay(base, global_step, 2.4 * UPDATES_PER_EPOCH, 0.97, staircase=True)
    return tf.where(global_step < warmup, base * tf.cast(global_step, tf.float32) / warmup, decayed)


if __name__ == '__main__':
    main()
