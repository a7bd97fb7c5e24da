"""Write tests/expected/clips.npz: frames, crops and views as the official video code takes them, by TensorFlow itself.

Needs what `tf2_resnet_rs_3d` needs. Renew:

    PYTHONPATH=tests python -m expected.make_clips

Keys: 'image', (30, 41, 3) uint8; 'starts/LENGTH', (256,) first frames of clips of 32 at stride 2 for training;
'middle/LENGTH', (32,) the frames of one clip for evaluation, 'spread/LENGTH', (10, 32) those of ten; 'resize/H/W', the
image by `tf.image.resize` and a cast, uint8; 'short/SIDE', the image with its short side so long; 'crops/SIDE/N',
N crops of that, (N, SIDE, SIDE, 3) uint8; 'boxes/H/W', (1000, 4) int16: top, left, height, width of crops for training.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from expected.tf2_resnet_rs_3d import import_official

FRAMES = dict(num_steps=32, stride=2)
LENGTHS = (1, 5, 40, 62, 63, 64, 65, 150, 250, 300)
RESIZES = ((20, 20), (33, 21), (60, 50), (30, 41))
SIDES = (16, 19, 30)
SHAPES = ((240, 320), (320, 240), (90, 400))


def picture():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (30, 41, 3))
    image[5:20, 10:30] = (255, 128, 1)  # flat: no level may be lost there
    return image.astype(np.uint8)


def main():
    tf.random.set_seed(11)
    ops, = import_official('vision.ops.preprocess_ops_3d')
    expected = dict(image=(image := picture()))
    for length in LENGTHS:
        video = tf.range(length)
        expected[f'starts/{length}'] = np.array(
            [ops.sample_sequence(video, random=True, **FRAMES)[0] for _ in range(256)], np.int16)
        expected[f'middle/{length}'] = ops.sample_sequence(video, random=False, **FRAMES).numpy().astype(np.int16)
        expected[f'spread/{length}'] = ops.sample_linspace_sequence(
            video, num_windows=10, **FRAMES).numpy().reshape(10, 32).astype(np.int16)
    for height, width in RESIZES:
        expected[f'resize/{height}/{width}'] = tf.cast(tf.image.resize(image, (height, width)), tf.uint8).numpy()
    for side in SIDES:
        frames = ops.resize_smallest(tf.constant(image[None]), side)
        expected[f'short/{side}'] = frames[0].numpy()
        for crops in (1, 3):
            expected[f'crops/{side}/{crops}'] = ops.crop_image(frames, side, side, num_crops=crops).numpy()
    for shape in SHAPES:
        box = tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4])
        drawn = (tf.image.sample_distorted_bounding_box(
            [*shape, 3], bounding_boxes=box, min_object_covered=0.1, aspect_ratio_range=(0.5, 2.0),
            area_range=(0.08, 1.0), max_attempts=100, use_image_if_no_bounding_boxes=True) for _ in range(1000))
        expected['boxes/{}/{}'.format(*shape)] = np.array(
            [[*begin.numpy()[:2], *size.numpy()[:2]] for begin, size, _ in drawn], np.int16)
    np.savez_compressed(Path(__file__).with_name('clips.npz'), **expected)


if __name__ == '__main__':
    main()
