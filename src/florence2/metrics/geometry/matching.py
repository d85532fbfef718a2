"""Objects of a picture, how much their boxes overlap, and which said object is which wanted one.

Knows no pictures and no tasks. Labels are compared without regard to case and white space. Shapes: T overlaps,
D said objects, G wanted ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2.metrics.bootstrap import Floats

Ints = NDArray[np.int64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Instances:
    """Objects of one picture: places (boxes, quads or masks), labels, and scores where there are any."""

    places: Sequence[Any]
    labels: Sequence[str]
    scores: Sequence[float]

    def by_label(self) -> dict[str, "Instances"]:
        """Part the objects by label, the surest first."""
        rows = sorted(zip(self.places, self.labels, self.scores, strict=True), key=lambda row: -row[2])
        parts: dict[str, list[tuple[Any, str, float]]] = {}
        for row in rows:
            parts.setdefault(row[1], []).append(row)
        return {label: Instances(*map(list, zip(*part, strict=True))) for label, part in parts.items()}


EMPTY = Instances((), (), ())
Pair = tuple[Instances, Instances]  # said, wanted


def normalize_label(label: str) -> str:
    """Give a label as it is compared."""
    return " ".join(label.split()).casefold()


def box_ious(said: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> Floats:
    """Give the overlap of each said box with each wanted one: intersection over union, DG."""
    a_D14 = np.asarray(said, dtype=float).reshape(-1, 1, 4)
    b_1G4 = np.asarray(wanted, dtype=float).reshape(1, -1, 4)
    near, far = np.maximum(a_D14[..., :2], b_1G4[..., :2]), np.minimum(a_D14[..., 2:], b_1G4[..., 2:])
    both_DG = np.clip(far - near, 0, None).prod(-1)
    union_DG = _areas(a_D14) + _areas(b_1G4) - both_DG
    ious_DG: Floats = np.divide(both_DG, union_DG, out=np.zeros_like(both_DG), where=union_DG > 0)
    return ious_DG


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1))


def match_greedily(ious_DG: Floats, least: Floats) -> Ints:
    """Give each said object, in order, the free wanted one it overlaps most, by at least so much; -1 for none: TD.

    Of equal overlaps the last is taken, as in COCO.
    """
    taken_TD = np.full((len(least), len(ious_DG)), -1)
    for t, enough in enumerate(np.minimum(least, 1 - 1e-10)):
        free_DG = np.where(ious_DG >= enough, ious_DG, -1.0)
        for d in np.flatnonzero(free_DG.max(1, initial=-1.0) >= 0):
            best = free_DG.shape[1] - 1 - int(free_DG[d, ::-1].argmax())
            if free_DG[d, best] >= 0:
                taken_TD[t, d] = best
                free_DG[:, best] = -1.0
    return taken_TD
