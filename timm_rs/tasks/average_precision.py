"""How well boxes are found: COCO's average precision, and that of VOC 2007."""

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timm_rs.errors import UserError

Rows = npt.NDArray[np.float64]
OVERLAP = 0.5  # intersection by union that makes a hit in VOC
POINTS = 11
MOST = 100  # detections of an image that COCO counts


class Judged(NamedTuple):
    """Boxes of an image: `truth` (K, 6) left, top, right, bottom, label, set aside or not; `found` (D, 6), with the
    score at the end."""

    truth: Rows
    found: Rows


def check_installed() -> None:
    """Raise UserError without what evaluates as COCO does."""
    if importlib.util.find_spec('faster_coco_eval') is None:
        raise UserError('to evaluate boxes takes the package faster-coco-eval: pip install faster-coco-eval (or '
                        'timm_rs[transfer]); --val-split "" trains without evaluation')


def coco_precision(images: Sequence[Judged], num_classes: int) -> dict[str, float]:
    """`ap` (%), the mean over overlaps from 0.5 to 0.95, `ap50` and `ap75`, each over 101 points and over classes.

    Boxes set aside are as COCO's crowds: they overlap with all that lies within them. nan where no box counts.
    """
    from faster_coco_eval import COCO, COCOeval_faster
    truth, found = ([_as_coco(number, row) for number, image in enumerate(images) for row in image[side]]
                    for side in (0, 1))
    for number, annotation in enumerate(truth, start=1):
        aside = annotation.pop('last') > 0
        annotation |= dict(id=number, area=annotation['bbox'][2] * annotation['bbox'][3], iscrowd=int(aside))
    for detection in found:
        detection['score'] = detection.pop('last')
    reference = COCO(dict(images=[dict(id=number) for number in range(len(images))], annotations=truth,
                          categories=[dict(id=label, name=str(label)) for label in range(num_classes)]))
    judge = COCOeval_faster(reference, reference.loadRes(found), 'bbox')
    judge.params.maxDets = [1, 10, MOST]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return {name: 100 * float(value) if value >= 0 else float('nan')
            for name, value in zip(('ap', 'ap50', 'ap75'), judge.stats, strict=False)}


def _as_coco(image: int, row: Rows) -> dict[str, Any]:
    left, top, right, bottom, label, last = row.tolist()
    return dict(image_id=image, category_id=int(label), bbox=[left, top, right - left, bottom - top], last=last)


def voc07_precision(images: Sequence[Judged], num_classes: int) -> float:
    """VOC 2007's mean average precision (%) at an overlap of 0.5, over the classes with a box that counts.

    Source: `VOCevaldet.m` of the VOC 2007 development kit: a detection is judged by the box that it overlaps most,
    and one that is set aside makes it neither a hit nor an error. nan where no box counts.
    """
    precisions = []
    for label in range(num_classes):
        truths = [image.truth[image.truth[:, 4] == label] for image in images]
        if num_counting := sum(int((truth[:, 5] == 0).sum()) for truth in truths):
            hits = _hits(truths, [image.found[image.found[:, 4] == label] for image in images])
            precisions.append(_eleven_points(hits, num_counting))
    return 100 * float(np.mean(precisions)) if precisions else float('nan')


def _hits(truths: Sequence[Rows], founds: Sequence[Rows]) -> npt.NDArray[np.bool_]:
    """Of the detections of a class that count, from the best score on, which are hits."""
    ranked = sorted(((row, number) for number, found in enumerate(founds) for row in found),
                    key=lambda pair: -pair[0][5])
    taken = [np.zeros(len(truth), bool) for truth in truths]
    hits = []
    for row, number in ranked:
        overlaps = _overlaps(truths[number], row)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or overlaps[best] < OVERLAP:
            hits.append(False)
        elif not truths[number][best, 5]:
            hits.append(not taken[number][best])
            taken[number][best] = True
    return np.array(hits, bool)


def _overlaps(truth: Rows, row: Rows) -> Rows:
    """Intersection by union of one box with each of `truth`: (K,)."""
    inner = np.minimum(truth[:, 2:4], row[2:4]) - np.maximum(truth[:, :2], row[:2])
    shared = inner.clip(min=0).prod(1)
    areas = (truth[:, 2:4] - truth[:, :2]).prod(1) + (row[2:4] - row[:2]).prod()
    return shared / (areas - shared)  # type: ignore[no-any-return]


def _eleven_points(hits: npt.NDArray[np.bool_], num_counting: int) -> float:
    """The mean over recalls 0, 0.1, ... 1 of the best precision at that recall or a higher one."""
    so_far = hits.cumsum()
    precision = so_far / np.arange(1, len(hits) + 1)
    # Whole numbers, since 3 hits of 10 are a recall of 0.3, and 3 * 0.1 is more.
    return sum(precision[so_far * (POINTS - 1) >= point * num_counting].max(initial=0.0)
               for point in range(POINTS)) / POINTS
