"""Write tests/expected/preprocessing.npz: what TensorFlow makes of crops and resizing as the release calls them.

    pip install tensorflow-cpu==2.15.1 "numpy<2"
    python tests/expected/make_preprocessing.py

Source of the calls: tensorflow/tpu, models/official/resnet/resnet_preprocessing.py. Keys:
'image', (45, 60, 3) uint8; 'resize/H/W', the image by `resize_bicubic`, float32;
'eval/SIZE', the evaluation's centre crop, float32; 'train/SIZE', the upper left 30x40 resized, then converted to
bfloat16 and uint8 as before RandAugment; 'train32/SIZE', without bfloat16; 'crops/H/W', (crops, 4) int16: top,
left, height, width drawn for an image of that size.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

RESIZES = ((24, 24), (45, 33), (50, 41))
SIZES = (20, 32)
SHAPES = {(375, 500): 1500, (500, 333): 1500, (100, 400): 1500, (20, 2000): 5}  # of an image: crops to draw


def picture():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:45, :60]
    image = np.stack([4 * x, 5 * y, 255 - 2 * (x + y)], axis=-1) + rng.integers(-30, 30, (45, 60, 3))
    image[5:25, 10:40] = (255, 128, 0)  # flat, with hard edges: the kernel overshoots there
    return np.clip(image, 0, 255).astype(np.uint8)


def resize(image, height, width):
    return tf.compat.v1.image.resize_bicubic(image[None], [height, width])[0]


def evaluate(image, size):
    height, width, _ = image.shape
    padding = round(size * (1 / 0.875 - 1))
    side = tf.cast((size / (size + padding)) * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return resize(tf.image.crop_to_bounding_box(image, top, left, side, side), size, size)


def train(image, size, dtype):
    resized = tf.image.convert_image_dtype(resize(image[:30, :40], size, size), dtype)
    return tf.cast(tf.clip_by_value(resized, 0.0, 255.0), tf.uint8)


def crops(height, width, count):
    box = tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4])
    drawn = []
    for _ in range(count):
        begin, size, _ = tf.compat.v1.image.sample_distorted_bounding_box(
            [height, width, 3], bounding_boxes=box, min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True)
        drawn.append([*begin.numpy()[:2], *size.numpy()[:2]])
    return np.array(drawn, np.int16)


def main():
    tf.random.set_seed(11)
    image = picture()
    goldens = dict(image=image)
    for height, width in RESIZES:
        goldens[f'resize/{height}/{width}'] = resize(image, height, width).numpy()
    for size in SIZES:
        goldens[f'eval/{size}'] = evaluate(image, size).numpy()
        goldens[f'train/{size}'] = train(image, size, tf.bfloat16).numpy()
        goldens[f'train32/{size}'] = train(image, size, tf.float32).numpy()
    for (height, width), count in SHAPES.items():
        goldens[f'crops/{height}/{width}'] = crops(height, width, count)
    np.savez_compressed(Path(__file__).with_name('preprocessing.npz'), **goldens)


if __name__ == '__main__':
    main()
