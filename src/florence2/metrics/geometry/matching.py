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


def group_by_label(items: Items) -> dict[str, list[AnswerItem]]:
    """Group objects by label; each group is sorted by falling score."""
    groups: dict[str, list[AnswerItem]] = {}
    for item in sorted(items, key=lambda item: -score_of(item)):
        groups.setdefault(item.label, []).append(item)
    return groups


def normalize_label(label: str) -> str:
    """Return a label without case and extra white space."""
    return " ".join(label.split()).casefold()


def box_ious(predictions: Items, references: Items) -> Floats:
    """Compute the IoU of each predicted box with each reference box: DG."""
    a_D14 = np.asarray([item.rings for item in predictions], dtype=float).reshape(-1, 1, 4)
    b_1G4 = np.asarray([item.rings for item in references], dtype=float).reshape(1, -1, 4)
    near, far = np.maximum(a_D14[..., :2], b_1G4[..., :2]), np.minimum(a_D14[..., 2:], b_1G4[..., 2:])
    intersection_DG = np.clip(far - near, 0, None).prod(-1)
    union_DG = _areas(a_D14) + _areas(b_1G4) - intersection_DG
    ious_DG: Floats = np.divide(intersection_DG, union_DG, out=np.zeros_like(intersection_DG), where=union_DG > 0)
    return ious_DG


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1))


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
