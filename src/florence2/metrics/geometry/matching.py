"""IoU of boxes, and the matching of predicted and reference objects.

Labels are compared without case and extra white space. Shapes: T IoU thresholds, D predicted objects, G reference
objects.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from florence2.metrics.bootstrap import Floats
from florence2.model.answer import AnswerItem

Ints = NDArray[np.int64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


Items = Sequence[AnswerItem]
ItemsPair = tuple[Items, Items]  # predictions, references


def score_of(item: AnswerItem) -> float:
    """Return the score of an object; 1 if it has none."""
    return 1.0 if item.score is None else item.score


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


def match_boxes(predictions: Items, references: Items, thresholds: Floats) -> tuple[Ints, NDArray[np.bool_]]:
    """Match predicted boxes in order; also return which of them count neither as right nor as wrong: both TD.

    As in COCO, those are boxes without a match of which the fraction `threshold` lies in one crowd. The numbers of
    matches count through the references that are no crowds.
    """
    crowds = [item for item in references if item.is_crowd]
    objects = without_crowds(references)
    matches_TD = match_greedily(box_ious(predictions, objects), thresholds)
    if not crowds or not predictions:
        return matches_TD, np.zeros_like(matches_TD, dtype=bool)
    a_D14 = _boxes(predictions).reshape(-1, 1, 4)
    covered_DG = _divide(_intersections(a_D14, _boxes(crowds).reshape(1, -1, 4)), _areas(a_D14) + np.zeros(len(crowds)))
    is_covered_TD = covered_DG.max(1) >= np.minimum(thresholds, 1 - 1e-10)[:, None]
    return matches_TD, (matches_TD < 0) & is_covered_TD


def match_greedily(ious_DG: Floats, thresholds: Floats) -> Ints:
    """Match each predicted object, in order, with the free reference object of the highest IoU: TD, -1 for none.

    Of equal IoUs the last is taken, as in COCO.
    """
    matches_TD = np.full((len(thresholds), len(ious_DG)), -1)
    for t, threshold in enumerate(np.minimum(thresholds, 1 - 1e-10)):
        free_DG = np.where(ious_DG >= threshold, ious_DG, -1.0)
        for d in np.flatnonzero(free_DG.max(1, initial=-1.0) >= 0):
            best = free_DG.shape[1] - 1 - int(free_DG[d, ::-1].argmax())
            if free_DG[d, best] >= 0:
                matches_TD[t, d] = best
                free_DG[:, best] = -1.0
    return matches_TD
