"""Average precision as COCO defines it.

The value is computed by faster-coco-eval. Its interval is computed here by the same rules, because a bootstrap needs
weighted examples. Shapes: B resamples, E examples, T IoU thresholds, L labels, D predicted boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2.metrics.bootstrap import Floats, import_extra
from florence2.metrics.geometry.matching import (
    IOU_THRESHOLDS,
    AreaRange,
    Ints,
    Items,
    ItemsPair,
    is_in_range,
    match_boxes,
    reference_area,
    score_of,
)

RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of one label and image, as in COCO
SIZES: Mapping[str, AreaRange] = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # COCO's


@dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """The predicted boxes of one label by falling score, and the number of reference boxes of each example.

    A box that is ignored lies in a crowd and counts neither as right nor as wrong.
    """

    example_D: Ints
    is_match_TD: NDArray[np.bool_]
    is_ignored_TD: NDArray[np.bool_]
    num_references_E: Floats

    def average_precision(self, weights_BE: Floats, threshold_indices: Sequence[int]) -> Floats:
        """Average the interpolated precision over 101 recalls and the IoU thresholds: B; nan without references."""
        weights_BD = weights_BE[:, self.example_D]
        references_B1 = (weights_BE @ self.num_references_E)[:, None]
        total_B = np.zeros(len(weights_BE))
        for t in threshold_indices:
            matched_BD = (weights_BD * self.is_match_TD[t]).cumsum(1)
            predicted_BD = (weights_BD * ~self.is_ignored_TD[t]).cumsum(1) + np.spacing(1)
            precision_BD = np.maximum.accumulate((matched_BD / predicted_BD)[:, ::-1], axis=1)[:, ::-1]
            recall_BD = np.divide(matched_BD, references_B1, out=np.zeros_like(matched_BD), where=references_B1 > 0)
            recall_index_BD = np.searchsorted(RECALLS, recall_BD, side="right")
            total_B += (np.diff(recall_index_BD, prepend=0, axis=1) * precision_BD).sum(1) / len(RECALLS)
        return np.where(references_B1[:, 0] > 0, total_B / len(threshold_indices), np.nan)


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """COCO's mean average precision over all labels, at some of `IOU_THRESHOLDS`."""

    curves: Sequence[PrecisionRecallCurve]
    threshold_indices: Sequence[int]
    higher_is_better: bool = True

    def compute(self, weights_BE: Floats) -> Floats:
        """Compute the value for each row of weights."""
        ap_LB = np.array([curve.average_precision(weights_BE, self.threshold_indices) for curve in self.curves])
        ap_LB = ap_LB.reshape(-1, len(weights_BE))
        num_labels_B = np.isfinite(ap_LB).sum(0)
        undefined_B = np.full(len(weights_BE), np.nan)
        means_B: Floats = np.divide(np.nansum(ap_LB, 0), num_labels_B, out=undefined_B, where=num_labels_B > 0)
        return means_B


def curve_of_size(pairs: Sequence[ItemsPair], area_range: AreaRange) -> PrecisionRecallCurve:
    """Match the ranked boxes of one label; references and boxes outside the range of areas are ignored."""
    num_references_E = np.zeros(len(pairs))
    examples, columns = [np.zeros(0, dtype=int)], [np.zeros((2 * len(IOU_THRESHOLDS) + 1, 0))]
    for e, (predictions, references) in enumerate(pairs):
        predictions = predictions[:MAX_DETECTIONS]
        sizes = (reference_area(item) for item in references if not item.is_crowd)
        num_references_E[e] = sum(is_in_range(size, area_range) for size in sizes)
        if not predictions or not (num_references_E[e] or any(is_in_range(p.area, area_range) for p in predictions)):
            continue
        matches_TD, is_ignored_TD = match_boxes(predictions, references, IOU_THRESHOLDS, area_range)
        scores_1D = np.array([[score_of(item) for item in predictions]])
        column_D = np.concatenate([scores_1D, matches_TD >= 0, is_ignored_TD])[:, ~is_ignored_TD.all(0)]
        columns.append(column_D)  # the others weigh nothing
        examples.append(np.full(column_D.shape[1], e))
    example_D, columns_D = np.concatenate(examples), np.concatenate(columns, axis=1)
    order_D = np.argsort(-columns_D[0], kind="mergesort")
    is_match_TD, is_ignored_TD = np.split(columns_D[1:, order_D].astype(bool), 2)
    return PrecisionRecallCurve(example_D[order_D], is_match_TD, is_ignored_TD, num_references_E)


def precision_recall_curve(pairs: Sequence[ItemsPair]) -> tuple[PrecisionRecallCurve, Ints, Ints]:
    """Match the ranked boxes of one label; also count each example's matched and ignored at the lowest threshold."""
    matched = [match_boxes(predictions, references, IOU_THRESHOLDS) for predictions, references in pairs]
    num_matches_E = np.array([(matches[0] >= 0).sum() for matches, _ in matched])
    num_ignored_E = np.array([ignored[0].sum() for _, ignored in matched])
    example_D = np.concatenate([np.full(min(len(p), MAX_DETECTIONS), e) for e, (p, _) in enumerate(pairs)])
    scores_D = np.concatenate(
        [np.array([score_of(item) for item in p[:MAX_DETECTIONS]], dtype=float) for p, _ in pairs]
    )
    is_match_TD = np.concatenate([matches[:, :MAX_DETECTIONS] >= 0 for matches, _ in matched], axis=1)
    is_ignored_TD = np.concatenate([ignored[:, :MAX_DETECTIONS] for _, ignored in matched], axis=1)
    order_D = np.argsort(-scores_D, kind="mergesort")
    num_references_E = np.array([sum(not item.is_crowd for item in references) for _, references in pairs], dtype=float)
    curve = PrecisionRecallCurve(
        example_D[order_D].astype(int), is_match_TD[:, order_D], is_ignored_TD[:, order_D], num_references_E
    )
    return curve, num_matches_E, num_ignored_E


def run_coco_eval(pairs: Sequence[ItemsPair], labels: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Compute mAP with faster-coco-eval; also return the average precision of each label."""
    package = import_extra("faster_coco_eval")
    ids = {label: i for i, label in enumerate(labels, start=1)}
    ground_truth = package.COCO(
        {
            "images": [{"id": e, "width": 1, "height": 1} for e in range(len(pairs))],
            "categories": [{"id": i, "name": label} for label, i in ids.items()],
            "annotations": _coco_annotations([references for _, references in pairs], ids),
        }
    )
    if not (rows := _coco_annotations([predictions for predictions, _ in pairs], ids)):
        return _values_without_predictions(pairs), dict.fromkeys(labels, 0.0)  # older releases load no empty list
    coco_eval = package.COCOeval_faster(ground_truth, ground_truth.loadRes(rows), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    values = {name: _nan_if_negative(coco_eval.stats_as_dict[stat]) for name, stat in _COCO_STATS.items()}
    precision_TRL = coco_eval.eval["precision"][..., 0, -1]
    return values, {label: _nan_if_negative(precision_TRL[..., i - 1].mean()) for label, i in ids.items()}


def _values_without_predictions(pairs: Sequence[ItemsPair]) -> dict[str, float]:
    areas = [reference_area(item) for _, references in pairs for item in references if not item.is_crowd]
    by_size = {f"map_{name}": any(is_in_range(area, range_) for area in areas) for name, range_ in SIZES.items()}
    return {name: 0.0 if by_size.get(name, True) else float("nan") for name in _COCO_STATS}


_COCO_STATS = {"map": "AP_all", "map_50": "AP_50", "map_75": "AP_75"}
_COCO_STATS |= {f"map_{size}": f"AP_{size}" for size in SIZES}


def _coco_annotations(examples: Sequence[Items], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    numbers = count(1)
    return [
        {
            "id": next(numbers),
            "image_id": e,
            "category_id": ids[item.label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": reference_area(item),
            "iscrowd": int(item.is_crowd),
            "score": score_of(item),
        }
        for e, items in enumerate(examples)
        for item in items
        for x1, y1, x2, y2 in item.rings
        if item.label in ids
    ]


def _nan_if_negative(value: float) -> float:
    """Return nan for -1, which COCO reports where there are no references."""
    return float(value) if value >= 0 else float("nan")
