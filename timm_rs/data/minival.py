"""minival: the 2 % of the training images that the paper tunes on, so that validation stays untouched.

The paper holds out 20 of ImageNet's 1,024 training shards (section 4.2), which are 25,022 of 1,281,167 images by the
count of the release (tensorflow/tpu, models/official/efficientnet/README.md).
# differs from the paper: which shards is not published, so the images are drawn here: class by class, by the hash of
their file names. No random generator, listing order, folder or archive influences the choice.
"""

import hashlib
import os
import re

from timm_rs.data.samples import Samples, Subset
from timm_rs.errors import UserError

MINIVAL = 'minival'  # as val_split
TRAIN_MINIVAL = 'train-minival'  # as train_split: the training images that are not in minival
SOURCE_SPLIT = 'train'  # what both are cut from

_MINIVAL_IMAGES, _TRAINING_IMAGES = 25_022, 1_281_167  # of ImageNet-1k

# The Hugging Face copy of ImageNet-1k appends the class to the authors' names: n01440764_10026_n01440764.JPEG.
_IMAGENET_WITH_CLASS = re.compile(r'(n\d{8}_\d+)_n\d{8}')


def split_minival(samples: Samples, seed: int = 0) -> tuple[Subset, Subset]:
    """Cut the training data `samples` in two: (minival, the rest), each in the order of `samples`.

    minival has round(N * 25022 / 1281167) of the N images. Classes share it in proportion to their size: each gets
    its exact share rounded up or down, and up where the fraction is largest. Within a class it takes the images with
    the smallest SHA-256 of 'seed/stem', the stem being the file's name without folder and suffix ('image 7' where
    there are no files); equal stems go by full name. No image is read. The default seed is the one to use: numbers
    on different minivals do not compare.

    Raises UserError when there are too few images (25) for a minival of one, and where labels come with the images.
    """
    classes: dict[int, list[tuple[bytes, str, int]]] = {}
    for index, (target, name) in enumerate(zip(samples.targets(), samples.all_names(), strict=True)):
        classes.setdefault(target, []).append((_draw(name, seed), name, index))
    total = len(samples)
    size = round(total * _MINIVAL_IMAGES / _TRAINING_IMAGES)
    if size == 0:
        raise UserError(f'minival is 2 % of the training images, and {total} are too few for it (26 make one); '
                        'validate on a split of its own')
    for images in classes.values():
        images.sort()
    taken = {target: size * len(images) // total for target, images in classes.items()}

    def claim(target: int) -> tuple[int, bytes, int]:
        """Orders classes for the images left over. ImageNet has 895 classes of one size: the next draw decides there,
        which does not depend on how classes are numbered; the number only where names repeat from class to class."""
        images = classes[target]
        return -(size * len(images) % total), images[taken[target]][0], target

    for target in sorted(classes, key=claim)[:size - sum(taken.values())]:
        taken[target] += 1
    minival = {index for target, images in classes.items() for _, _, index in images[:taken[target]]}
    return Subset(samples, sorted(minival)), Subset(samples, [i for i in range(total) if i not in minival])


def _draw(name: str, seed: int) -> bytes:
    stem = os.path.splitext(os.path.basename(name))[0]
    if found := _IMAGENET_WITH_CLASS.fullmatch(stem):
        stem = found[1]
    return hashlib.sha256(f'{seed}/{stem}'.encode(errors='surrogateescape')).digest()  # names need not be UTF-8
