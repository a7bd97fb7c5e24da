"""Average precision: COCO's is pycocotools', VOC 2007's is worked out by hand."""

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from timm_rs.tasks.average_precision import Judged, coco_precision, voc07_precision

CLASSES = 5


def random_images(seed, num_images=40, aside=0.2, absent=()):
    """Truth of a few classes, and detections near it and elsewhere."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        count, more = rng.integers(0, 5), rng.integers(0, 6)
        corners = rng.uniform(0, 50, (count + more, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (count + more, 2))], 1)
        labels = rng.choice([label for label in range(CLASSES) if label not in absent], count + more)
        truth = np.column_stack([boxes[:count], labels[:count], rng.random(count) < aside])
        found = np.column_stack([boxes + rng.normal(0, 2, boxes.shape), labels, rng.random(count + more)])
        found[:, 2:4] = np.maximum(found[:, 2:4], found[:, :2] + 1)
        images.append(Judged(truth, np.concatenate([found, found[:count // 2]])))
    return images


def pycocotools_of(images):
    truth = [dict(id=0, image_id=number, category_id=int(row[4]), iscrowd=int(row[5]),
                  bbox=[*row[:2], *(row[2:4] - row[:2])], area=(row[2] - row[0]) * (row[3] - row[1]))
             for number, image in enumerate(images) for row in image.truth]
    for number, annotation in enumerate(truth, start=1):
        annotation['id'] = number
    found = [dict(image_id=number, category_id=int(row[4]), score=row[5], bbox=[*row[:2], *(row[2:4] - row[:2])])
             for number, image in enumerate(images) for row in image.found]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = dict(images=[dict(id=number) for number in range(len(images))], annotations=truth,
                                 categories=[dict(id=label) for label in range(CLASSES)])
        reference.createIndex()
        judge = COCOeval(reference, reference.loadRes(found), 'bbox')
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(('ap', 'ap50', 'ap75'), 100 * judge.stats[:3], strict=True))


@pytest.mark.parametrize(('seed', 'options'), [
    (0, {}), (1, dict(aside=0.0)), (2, dict(absent=(0, 4))), (3, dict(num_images=1)), (4, dict(aside=0.8))])
def test_cocos_precision_is_that_of_pycocotools(seed, options):
    images = random_images(seed, **options)
    found = coco_precision(images, CLASSES)
    assert found == pytest.approx(pycocotools_of(images), abs=1e-6)
    assert 0 < found['ap'] < found['ap50'] and 0 <= found['ap75'] < found['ap50']


def test_without_detections_or_truth():
    truth = [Judged(image.truth, image.found[:0]) for image in random_images(0)]
    assert coco_precision(truth, CLASSES) == dict(ap=0, ap50=0, ap75=0) and voc07_precision(truth, CLASSES) == 0
    found = [Judged(image.truth[:0], image.found) for image in random_images(0)]
    assert all(map(math.isnan, [*coco_precision(found, CLASSES).values(), voc07_precision(found, CLASSES)]))


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)


def judged(truth, found, label=0):
    """Boxes, with 1 behind those set aside; boxes with scores."""
    return Judged(np.array([[*box, label, aside] for box, aside in truth], float).reshape(-1, 6),
                  np.array([[*box, label, score] for box, score in found], float).reshape(-1, 6))


@pytest.mark.parametrize(('truth', 'found', 'expected'), [
    ([(A, 0)], [(A, 0.9)], 1), ([(A, 0)], [], 0),
    ([(A, 0), (B, 1)], [(B, 0.9), (A, 0.5)], 1),  # difficult, found: no error
    ([(A, 0), (B, 1)], [(B, 0.9)], 0),  # nor a hit
    ([(A, 0), (B, 1)], [(A, 0.5)], 1),  # difficult, missed: no miss
    ([(A, 0), (B, 1)], [(B, 0.9), (B, 0.8), (A, 0.5)], 1),  # nor when it is found twice
    ([(A, 0), (B, 0)], [(A, 0.9), (A, 0.8)], 6 / 11),  # the second is an error; recall ends at 0.5
    ([(A, 0)], [(B, 0.9), (A, 0.8)], 0.5),  # an error first
    ([(A, 0), (B, 0)], [(A, 0.9), (C, 0.8), (B, 0.7)], (6 * 1 + 5 * 2 / 3) / 11),
    ([(A, 0)], [((0, 0, 10, 5), 0.9)], 1), ([(A, 0)], [((0, 0, 10, 4.9), 0.9)], 0),  # half is enough
    # A detection is of the box that it overlaps most, though that one is taken and the next would do.
    ([(A, 0), ((0, 0, 10, 12), 0)], [(A, 0.9), ((0, 0, 10, 10.5), 0.8)], 6 / 11),
    ([((20 * number, 0, 20 * number + 10, 10), 0) for number in range(10)],
     [((20 * number, 0, 20 * number + 10, 10), 0.9) for number in range(3)], 4 / 11)])  # a recall of 0.3 reaches 0.3
def test_the_11_points_of_voc_2007(truth, found, expected):
    assert voc07_precision([judged(truth, found)], 1) == pytest.approx(100 * expected)


def test_a_box_is_found_in_its_own_image_only_and_scores_are_ranked_over_all():
    images = [judged([(A, 0)], [(B, 0.9)]), judged([(B, 0)], [(B, 0.5)])]
    assert voc07_precision(images, 1) == pytest.approx(100 * 0.5 * 6 / 11)


def test_the_mean_is_over_classes_with_a_box_that_counts():
    images = [judged([(A, 0)], [(A, 0.9)]), judged([], [(B, 0.9)], label=1), judged([(C, 1)], [], label=2),
              judged([(A, 0)], [], label=3)]
    assert voc07_precision(images, 5) == 50
