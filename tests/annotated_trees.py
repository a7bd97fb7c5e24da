"""Small trees of images and masks, boxes or depths, as the layouts of `data/annotated.py` have them."""

from pathlib import Path

import numpy as np
from PIL import Image

from timm_rs.data.scenes import voc_xml

PALETTE = [value for number in range(256) for value in (number * 37 % 256, number * 91 % 256, number * 151 % 256)]


def scene(rng, height=40, width=48, num_classes=3):
    """A noisy image (H, W, 3) with a rectangle in the colour of its class, and its mask with a void rim: (H, W)."""
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(4, height // 2), rng.integers(4, width // 2)
    mask[top - 1:top + 17, left - 1:left + 17] = 255
    label = rng.integers(1, num_classes)
    mask[top:top + 16, left:left + 16] = label
    image = rng.integers(0, 90, (height, width, 3))
    image[mask == label] += 45 * np.eye(3, dtype=int)[label % 3] * 3
    return image.astype(np.uint8), mask


def save_mask(mask, path):
    image = Image.fromarray(mask)
    image.putpalette(PALETTE)
    image.save(path)


def write_depth(root, num_train=16, num_val=5) -> Path:
    """images/SPLIT/*.png and depth/SPLIT/*.png, 16 bits of millimetres: what is brighter is nearer."""
    rng = np.random.default_rng(0)
    for split, count in (('train', num_train), ('val', num_val)):
        for kind in ('images', 'depth'):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            near = np.kron(rng.uniform(0.2, 1, (5, 6)), np.ones((8, 8)))
            Image.fromarray(np.uint8(near[..., None] * [200, 150, 100])).save(root / f'images/{split}/{index}.png')
            depth = (2000 / near).astype(np.uint16)
            depth[:3] = 0  # not measured
            Image.fromarray(depth).save(root / f'depth/{split}/{index}.png')
    return root


def write_voc(root, num_train=16, num_val=5, classes=('ground', 'red', 'green')) -> Path:
    """ImageSets/Segmentation/{train,val}.txt, JPEGImages, SegmentationClass, classes.txt."""
    for folder in ('ImageSets/Segmentation', 'JPEGImages', 'SegmentationClass'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (('train', num_train), ('val', num_val)):
        names = [f'{split}_{index:03}' for index in range(count)]
        (root / f'ImageSets/Segmentation/{split}.txt').write_text('\n'.join(names) + '\n')
        for index, name in enumerate(names):
            image, mask = scene(rng, *((40, 48) if index % 2 else (48, 36)), num_classes=len(classes))
            Image.fromarray(image).save(root / f'JPEGImages/{name}.jpg', quality=95)
            save_mask(mask, root / f'SegmentationClass/{name}.png')
    (root / 'classes.txt').write_text('\n'.join(classes))
    return root


def write_voc_boxes(root, num_train=16, num_val=5, size=40) -> Path:
    """ImageSets/Main/{train,val}.txt, JPEGImages, Annotations, classes.txt: a square each, none in every fifth."""
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (('train', num_train), ('val', num_val)):
        names = [f'{split}_{index:03}' for index in range(count)]
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
        for index, name in enumerate(names):
            image, mask = scene(rng, size, size + 8)
            label = int(mask[mask < 255].max())
            rows, columns = (np.flatnonzero((mask == label).any(axis)) for axis in (1, 0))
            box = ('ground', 'red', 'green')[label], columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            Image.fromarray(image).save(root / f'JPEGImages/{name}.jpg', quality=95)
            text = voc_xml(f'{name}.jpg', size + 8, size, [box] if index % 5 != 4 else [])
            if index % 5 == 3:
                text = text.replace('<difficult>0', '<difficult>1')
            (root / f'Annotations/{name}.xml').write_text(text)
    (root / 'classes.txt').write_text('red\ngreen\n')
    return root
