"""IoU of boxes, and the matching of predicted and reference objects.

Labels are compared without case and extra white space. Shapes: T IoU thresholds, D predicted objects, G reference
objects.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from florence2.metrics.bootstrap import Floats
from florence2.model.answer import AnswerItem

Ints = NDArray[np.int64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AreaRange = tuple[float, float]
ALL_AREAS: AreaRange = (-math.inf, math.inf)


Items = Sequence[AnswerItem]
ItemsPair = tuple[Items, Items]  # predictions, references


def score_of(item: AnswerItem) -> float:
    """Return the score of an object; 1 if it has none."""
    return 1.0 if item.score is None else item.score


def reference_area(item: AnswerItem) -> float:
    """Return the area that decides on the size of a reference: the annotated one, else that of its box."""
    return item.area if item.annotated_area is None else item.annotated_area


def rank(items: Items) -> list[AnswerItem]:
    """Sort objects by falling score; ties by their coordinates, so that the order of a file does not count."""
    return sorted(items, key=lambda item: (-score_of(item), item.rings, item.label))


def without_crowds(items: Items) -> list[AnswerItem]:
    """Return the objects that are not crowds."""
    return [item for item in items if not item.is_crowd]


def group_by_label(items: Items) -> dict[str, list[AnswerItem]]:
    """Group objects by label, and keep their order in each group."""
    groups: dict[str, list[AnswerItem]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def normalize_label(label: str) -> str:
    """Return a label without case and extra white space."""
    return " ".join(label.split()).casefold()


def box_ious(predictions: Items, references: Items) -> Floats:
    """Compute the IoU of each predicted box with each reference box: DG."""
    a_D14, b_1G4 = _boxes(predictions).reshape(-1, 1, 4), _boxes(references).reshape(1, -1, 4)
    intersection_DG = _intersections(a_D14, b_1G4)
    return _divide(intersection_DG, _areas(a_D14) + _areas(b_1G4) - intersection_DG)


def _boxes(items: Items) -> Floats:
    return np.asarray([item.rings for item in items], dtype=float)


def _intersections(a_D14: Floats, b_1G4: Floats) -> Floats:
    near, far = np.maximum(a_D14[..., :2], b_1G4[..., :2]), np.minimum(a_D14[..., 2:], b_1G4[..., 2:])
    return np.asarray(np.clip(far - near, 0, None).prod(-1))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1))


def is_in_range(area: float, area_range: AreaRange) -> bool:
    """Return whether an area is in a range, its ends included."""
    return area_range[0] <= area <= area_range[1]


def match_boxes(
    predictions: Items, references: Items, thresholds: Floats, area_range: AreaRange = ALL_AREAS
) -> tuple[Ints, NDArray[np.bool_]]:
    """Match predicted boxes in order; also return which of them count neither as right nor as wrong: both TD.

    As in COCO, those are boxes without a match of which the fraction `threshold` lies in one crowd, which match a
    reference outside the range of areas, or which are outside it themselves. The numbers of matches count through the
    references that are no crowds and in the range.
    """
    is_counted = [not item.is_crowd and is_in_range(reference_area(item), area_range) for item in references]
    objects = [item for item, counts in zip(references, is_counted, strict=True) if counts]
    others = [item for item, counts in zip(references, is_counted, strict=True) if not counts]
    matches_TD = match_greedily(box_ious(predictions, objects), thresholds)
    is_ignored_TD = np.zeros_like(matches_TD, dtype=bool)
    if others and (matches_TD < 0).any():
        is_crowd_G = np.array([item.is_crowd for item in others])
        ious_DG = box_ious(predictions, others)
        if is_crowd_G.any():
            ious_DG = np.where(is_crowd_G, _covered_fractions(predictions, others), ious_DG)
        if not objects:
            is_ignored_TD = match_greedily(ious_DG, thresholds, is_crowd_G) >= 0
        for t in range(len(thresholds)) if objects else ():
            free_DG = np.where(matches_TD[t, :, None] < 0, ious_DG, -1.0)
            is_ignored_TD[t] = match_greedily(free_DG, thresholds[t : t + 1], is_crowd_G)[0] >= 0
    if area_range == ALL_AREAS:
        return matches_TD, is_ignored_TD
    is_outside_D = np.array([not is_in_range(item.area, area_range) for item in predictions], dtype=bool)
    return matches_TD, is_ignored_TD | ((matches_TD < 0) & is_outside_D)


def _covered_fractions(predictions: Items, crowds: Items) -> Floats:
    """Compute the fraction of each predicted box that lies in each crowd: DG."""
    a_D14 = _boxes(predictions).reshape(-1, 1, 4)
    intersections_DG = _intersections(a_D14, _boxes(crowds).reshape(1, -1, 4))
    return _divide(intersections_DG, _areas(a_D14) + np.zeros(len(crowds)))


def match_greedily(ious_DG: Floats, thresholds: Floats, is_crowd_G: NDArray[np.bool_] | None = None) -> Ints:
    """Match each predicted object, in order, with the free reference object of the highest IoU: TD, -1 for none.

    Of equal IoUs the last is taken, as in COCO. A crowd stays free.
    """
    matches_TD = np.full((len(thresholds), len(ious_DG)), -1)
    limits_T = np.minimum(thresholds, 1 - 1e-10)
    if ious_DG.size == 0 or ious_DG.max() < limits_T[0]:
        return matches_TD
    if len(ious_DG) == 1:
        best = ious_DG.shape[1] - 1 - int(ious_DG[0, ::-1].argmax())
        matches_TD[ious_DG[0, best] >= limits_T, 0] = best
        return matches_TD
    for t, threshold in enumerate(limits_T):
        free_DG = np.where(ious_DG >= threshold, ious_DG, -1.0)
        for d in np.flatnonzero(free_DG.max(1, initial=-1.0) >= 0):
            best = free_DG.shape[1] - 1 - int(free_DG[d, ::-1].argmax())
            if free_DG[d, best] >= 0:
                matches_TD[t, d] = best
                free_DG[:, best] = free_DG[:, best] if is_crowd_G is not None and is_crowd_G[best] else -1.0
    return matches_TD
