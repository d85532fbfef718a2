"""Average precision as COCO defines it.

The score is faster-coco-eval's. Its interval is computed here, by the same rules, because drawing pictures again and
again asks for weights. Shapes: B drawings, Q questions, T overlaps, L labels, D said boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2.metrics.bootstrap import Floats, extra
from florence2.metrics.geometry.matching import IOU_THRESHOLDS, Instances, Ints, Pair, box_ious, match_greedily

RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes of one label and picture, as in COCO


@dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """All said boxes of one label, the surest first: which were right, and how many each question wanted."""

    question_D: Ints
    hits_TD: NDArray[np.bool_]
    wanted_Q: Floats

    def precision(self, weights_BQ: Floats, chosen: Sequence[int]) -> Floats:
        """Average the best precision at 101 recalls and the chosen overlaps: B; nan where none is wanted."""
        weights_BD = weights_BQ[:, self.question_D]
        said_BD = weights_BD.cumsum(1) + np.spacing(1)
        wanted_B1 = (weights_BQ @ self.wanted_Q)[:, None]
        found_B = np.zeros(len(weights_BQ))
        for t in chosen:
            right_BD = (weights_BD * self.hits_TD[t]).cumsum(1)
            best_BD = np.maximum.accumulate((right_BD / said_BD)[:, ::-1], axis=1)[:, ::-1]
            recall_BD = np.divide(right_BD, wanted_B1, out=np.zeros_like(right_BD), where=wanted_B1 > 0)
            reached_BD = np.searchsorted(RECALLS, recall_BD, side="right")
            found_B += (np.diff(reached_BD, prepend=0, axis=1) * best_BD).sum(1) / len(RECALLS)
        return np.where(wanted_B1[:, 0] > 0, found_B / len(chosen), np.nan)


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """COCO's average precision over all labels, at the chosen overlaps."""

    curves: Sequence[PrecisionRecallCurve]
    chosen: Sequence[int]
    higher_is_better: bool = True

    def of(self, weights_BQ: Floats) -> Floats:
        """Give the score of each row of weights."""
        found_LB = np.array([curve.precision(weights_BQ, self.chosen) for curve in self.curves])
        found_LB = found_LB.reshape(-1, len(weights_BQ))
        known_B = np.isfinite(found_LB).sum(0)
        nothing = np.full(len(weights_BQ), np.nan)
        means_B: Floats = np.divide(np.nansum(found_LB, 0), known_B, out=nothing, where=known_B > 0)
        return means_B


def curve_of(pairs: Sequence[Pair]) -> tuple[PrecisionRecallCurve, Ints]:
    """Match the boxes of one label, and count what was right in each question."""
    taken = [_taken(said, wanted) for said, wanted in pairs]
    right_Q = np.array([(each[0] >= 0).sum() for each in taken])
    question_D = np.concatenate([np.full(min(len(s.places), MOST), q) for q, (s, _) in enumerate(pairs)])
    scores_D = np.concatenate([np.asarray(s.scores[:MOST], dtype=float) for s, _ in pairs])
    hits_TD = np.concatenate([each[:, :MOST] >= 0 for each in taken], axis=1)
    order_D = np.argsort(-scores_D, kind="mergesort")
    wanted_Q = np.array([len(wanted.places) for _, wanted in pairs], dtype=float)
    return PrecisionRecallCurve(question_D[order_D].astype(int), hits_TD[:, order_D], wanted_Q), right_Q


def _taken(said: Instances, wanted: Instances) -> Ints:
    if not said.places or not wanted.places:
        return np.full((len(IOU_THRESHOLDS), len(said.places)), -1)
    return match_greedily(box_ious(said.places, wanted.places), IOU_THRESHOLDS)


def ask_coco(pairs: Sequence[Pair], labels: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Ask faster-coco-eval: all scores, and the average precision of each label."""
    package = extra("faster_coco_eval")
    ids = {label: i for i, label in enumerate(labels, start=1)}
    wanted = package.COCO(
        {
            "images": [{"id": q, "width": 1, "height": 1} for q in range(len(pairs))],
            "categories": [{"id": i, "name": label} for label, i in ids.items()],
            "annotations": _rows([wanted for _, wanted in pairs], ids),
        }
    )
    if not (rows := _rows([said for said, _ in pairs], ids)):  # older releases cannot read an empty list
        return dict.fromkeys(_THEIRS, 0.0), dict.fromkeys(labels, 0.0)
    said = wanted.loadRes(rows)
    run = package.COCOeval_faster(wanted, said, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    exact = {name: _known(run.stats_as_dict[theirs]) for name, theirs in _THEIRS.items()}
    precision_TRL = run.eval["precision"][..., 0, -1]
    return exact, {label: _known(precision_TRL[..., i - 1].mean()) for label, i in ids.items()}


_THEIRS = {"map": "AP_all", "map_50": "AP_50", "map_75": "AP_75"}


def _rows(sides: Sequence[Instances], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    numbers = count(1)
    return [
        {
            "id": next(numbers),
            "image_id": q,
            "category_id": ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": score,
        }
        for q, side in enumerate(sides)
        for (x1, y1, x2, y2), label, score in zip(side.places, side.labels, side.scores, strict=True)
        if label in ids
    ]


def _known(value: float) -> float:
    return float(value) if value >= 0 else float("nan")
