"""The kinds of small runs that tools/stress_resume.py disturbs: what train.py is told."""

from typing import NamedTuple


class Kind(NamedTuple):
    """The `arguments` of train.py, in which {} is a folder, and which data of `stress_data` these are about."""

    arguments: list[str]
    data: str


ANY = [
    '--model-kwargs', 'layers=(1,1,1,1)', 'width=0.125', '--epochs', '3', '--batch-size', '4', '--warmup-epochs', '1',
    '--lr', '0.02', '--log-interval', '2', '--recovery-interval', '1', '--model-ema', '--model-ema-warmup',
    '--drop-path', '0.1']
CLASSES = [*ANY, '--drop', '0.2', '--mixup', '0.2']
BFLOAT16 = ['--amp', '--amp-dtype', 'bfloat16']
IMAGES = [
    *CLASSES, '--model', 'resnetrs', '--img-size', '32', '--aa', 'rand-m9-n2', '--reprob', '0.5', '--cutmix', '1.0',
    '--data-dir', '{}/data']
PIXELS = [
    *ANY, '--model', 'resnetrs', '--img-size', '32', '--pyramid-channels', '8', '--head-convs', '1', '--scale-jitter',
    '0.5', '2', '--colour', '0.2', '--data-dir', '{}/pixels']
BOXES = [
    *ANY, '--model', 'resnetrs', '--img-size', '64', '--task', 'detection', '--pyramid-channels', '8',
    '--head-channels', '8', '--sampled-boxes', '32', '--finest', '16', '--no-coarser-levels', '--anchor-scale', '2',
    '--scale-jitter', '0.5', '2', '--colour', '0.2', '--data-dir', '{}/boxes']
VIDEOS = [
    *CLASSES, '--model', 'resnetrs3d', '--img-size', '24', '--task', 'video', '--num-frames', '6', '--color-jitter',
    '0', '--train-interpolation', 'bilinear', '--mean', '0', '--std', '1']
KINDS = {  # each has a run of its own that is left alone
    'folder': Kind([*IMAGES, '--workers', '0'], 'images'),
    'workers': Kind([*IMAGES, '--workers', '2', '--grad-accum-steps', '4', '--sched-on-updates'], 'images'),
    'shards': Kind([*IMAGES, '--workers', '0', '--dataset', 'wds/data', *BFLOAT16], 'images'),
    'pseudo': Kind([*IMAGES, '--workers', '2', '--pseudo-dir', '{}/labels', '--batch-size', '8'], 'images'),
    'tags': Kind([*IMAGES, '--workers', '2', '--task', 'multilabel', '--loss', 'asymmetric', '--grad-accum-steps', '2',
                  '--data-dir', '{}/tags', *BFLOAT16], 'tags'),
    'segmentation': Kind([*PIXELS, '--workers', '2', '--task', 'segmentation', '--dataset', 'folders', '--decoder',
                          'fused', '--grad-accum-steps', '2', *BFLOAT16], 'pixels'),
    'depth': Kind([*PIXELS, '--workers', '0', '--task', 'depth', '--dataset', 'depth_folders'], 'pixels'),
    'faster_rcnn': Kind([*BOXES, '--workers', '0'], 'boxes'),
    'retinanet': Kind([*BOXES, '--workers', '2', '--detector', 'retinanet', '--grad-accum-steps', '2', *BFLOAT16],
                      'boxes'),
    'videos': Kind([*VIDEOS, '--workers', '2', '--data-dir', '{}/videos'], 'videos'),
    'frames': Kind([*VIDEOS, '--workers', '0', '--data-dir', '{}/frames', '--eval-clips', '2', '--eval-crops', '3',
                    '--grad-accum-steps', '2', *BFLOAT16], 'videos'),
}
