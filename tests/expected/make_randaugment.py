"""Write tests/expected/randaugment.npz: what TensorFlow makes of two images by the release's 16 operations.

    pip install tensorflow-cpu==2.15.1 "numpy<2"
    python tests/expected/make_randaugment.py

The operations are those of tensorflow/tpu, models/official/efficientnet/autoaugment.py, said again here in
TensorFlow's own functions (`contrib_image.transform` is the op ImageProjectiveTransform with nearest neighbours
and zeros outside; a fourth channel of ones shows where outside is). Keys: 'small' and 'large', the images, and
'IMAGE/OPERATION/MAGNITUDE', with '/+' or '/-' for the sign of geometric operations: the result, of the large image
its SHA-256. Cutout is centred at (y, x) = CENTRES[IMAGE].
"""

import os

os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'  # TensorFlow 1's own kernels, which the release ran on

import hashlib
import math
from pathlib import Path

import numpy as np
import tensorflow as tf

MAGNITUDES = (10, 15, 20)
CENTRES = dict(small=(5, 30), large=(100, 20))


def images():
    """A 32x40 noisy gradient with a flat corner, and 160x160 px of it in stripes of different brightness."""
    rng = np.random.default_rng(2103)
    y, x = np.mgrid[:32, :40]
    small = np.stack([6 * x, 7 * y, 3 * (x + y)], axis=-1) + rng.integers(-4, 5, (32, 40, 3))
    small[:10, :12] = (200, 100, 30)
    large = np.tile(small, (5, 4, 1)) * 3 // 4 + 12 * (np.arange(160) // 32)[:, None, None]
    pictures = dict(small=small, large=large)
    return {name: np.clip(picture, 0, 255).astype(np.uint8) for name, picture in pictures.items()}


def blend(start, end, factor):
    start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
    return tf.cast(tf.clip_by_value(start + factor * (end - start), 0.0, 255.0), tf.uint8)


def project(image, *matrix):
    opaque = tf.concat([image, tf.ones_like(image[..., :1])], axis=-1)
    transform = tf.stack([tf.cast(entry, tf.float32) for entry in (*matrix, 0.0, 0.0)])
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=opaque[None], transforms=transform[None], output_shape=image.shape[:2],
        fill_value=0.0, interpolation='NEAREST', fill_mode='CONSTANT')[0]
    return tf.where(moved[..., 3:] == 0, tf.constant(128, tf.uint8), moved[..., :3])


def rotate(image, degrees):
    height, width = (tf.constant(size, tf.float32) for size in image.shape[:2])
    angle = tf.constant(degrees, tf.float32) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    right, bottom = width - 1, height - 1
    shift_x = (right - (cos * right - sin * bottom)) / 2
    shift_y = (bottom - (sin * right + cos * bottom)) / 2
    return project(image, cos, -sin, shift_x, sin, cos, shift_y)


def autocontrast(image):
    def stretch(plane):
        low, high = (tf.cast(edge(plane), tf.float32) for edge in (tf.reduce_min, tf.reduce_max))
        if low == high:
            return plane
        scale = 255.0 / (high - low)
        return tf.cast(tf.clip_by_value(tf.cast(plane, tf.float32) * scale + -low * scale, 0.0, 255.0), tf.uint8)
    return tf.stack([stretch(image[..., channel]) for channel in range(3)], axis=2)


def equalize(image):
    def flatten(plane):
        plane = tf.cast(plane, tf.int32)
        counts = tf.histogram_fixed_width(plane, [0, 255], nbins=256)
        present = tf.boolean_mask(counts, counts != 0)
        step = (tf.reduce_sum(present) - present[-1]) // 255
        if step == 0:
            return tf.cast(plane, tf.uint8)
        table = (tf.cumsum(counts) + step // 2) // step
        table = tf.clip_by_value(tf.concat([[0], table[:-1]], axis=0), 0, 255)
        return tf.cast(tf.gather(table, plane), tf.uint8)
    return tf.stack([flatten(image[..., channel]) for channel in range(3)], axis=2)


def posterize(image, bits):
    shift = tf.constant((8 - bits) % 256, tf.uint8)  # TensorFlow 1 made a uint8 of a negative number
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def solarize(image, threshold):
    return tf.where(image < threshold, image, 255 - image)


def solarize_add(image, addend):
    added = tf.cast(tf.clip_by_value(tf.cast(image, tf.int64) + addend, 0, 255), tf.uint8)
    return tf.where(image < 128, added, image)


def color(image, factor):
    return blend(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image)), image, factor)


def contrast(image, factor):
    gray = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
    mean = tf.reduce_sum(tf.cast(tf.histogram_fixed_width(gray, [0, 255], nbins=256), tf.float32)) / 256.0
    constant = tf.clip_by_value(tf.ones_like(gray, tf.float32) * mean, 0.0, 255.0)
    return blend(tf.image.grayscale_to_rgb(tf.cast(constant, tf.uint8)), image, factor)


def sharpness(image, factor):
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[..., None, None] / 13.0
    smooth = tf.nn.depthwise_conv2d(
        tf.cast(image, tf.float32)[None], tf.tile(kernel, [1, 1, 3, 1]), [1, 1, 1, 1], padding='VALID')[0]
    smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)
    border = [[1, 1], [1, 1], [0, 0]]
    inside = tf.pad(tf.ones_like(smooth), border)
    return blend(tf.where(inside == 1, tf.pad(smooth, border), image), image, factor)


def cutout(image, half, centre):
    (height, width, _), (y, x) = image.shape, centre
    top, bottom = max(0, y - half), max(0, height - y - half)
    left, right = max(0, x - half), max(0, width - x - half)
    hole = tf.zeros([height - top - bottom, width - left - right], tf.uint8)
    mask = tf.pad(hole, [[top, bottom], [left, right]], constant_values=1)[..., None]
    return tf.where(mask == 0, tf.constant(128, tf.uint8), image)


def operations(image, magnitude, centre):
    """(name, sign, result) of every operation at `magnitude`; geometric ones with both signs."""
    level = magnitude / 10.0
    factor = level * 1.8 + 0.1
    yield 'AutoContrast', '', autocontrast(image)
    yield 'Equalize', '', equalize(image)
    yield 'Invert', '', 255 - image
    yield 'Posterize', '', posterize(image, int(level * 4))
    yield 'Solarize', '', solarize(image, int(level * 256))
    yield 'SolarizeAdd', '', solarize_add(image, int(level * 110))
    yield 'Color', '', color(image, factor)
    yield 'Contrast', '', contrast(image, factor)
    yield 'Brightness', '', blend(tf.zeros_like(image), image, factor)
    yield 'Sharpness', '', sharpness(image, factor)
    yield 'Cutout', '', cutout(image, int(level * 40), centre)
    for sign, one in (('/+', 1.0), ('/-', -1.0)):
        slope, pixels = one * level * 0.3, one * level * 100.0
        yield 'Rotate', sign, rotate(image, one * level * 30.0)
        yield 'ShearX', sign, project(image, 1.0, slope, 0.0, 0.0, 1.0, 0.0)
        yield 'ShearY', sign, project(image, 1.0, 0.0, 0.0, slope, 1.0, 0.0)
        yield 'TranslateX', sign, project(image, 1.0, 0.0, pixels, 0.0, 1.0, 0.0)
        yield 'TranslateY', sign, project(image, 1.0, 0.0, 0.0, 0.0, 1.0, pixels)


def main():
    goldens = images()
    for name, picture in list(goldens.items()):
        for magnitude in MAGNITUDES:
            for operation, sign, result in operations(tf.constant(picture), magnitude, CENTRES[name]):
                digest = hashlib.sha256(result.numpy().tobytes()).digest()
                goldens[f'{name}/{operation}/{magnitude}{sign}'] = (
                    result.numpy() if name == 'small' else np.frombuffer(digest, np.uint8))
    # Above 20 (EfficientNet-B7 was trained with 28) Posterize shifts by a negative number.
    goldens['small/Posterize/28'] = posterize(tf.constant(goldens['small']), int(2.8 * 4)).numpy()
    np.savez_compressed(Path(__file__).with_name('randaugment.npz'), **goldens)


if __name__ == '__main__':
    main()
