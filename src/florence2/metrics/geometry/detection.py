"""Metrics of boxes: average precision, F1, precision and recall, phrase accuracy.

Each metric function takes one pair of predicted and reference objects per example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from florence2.metrics.bootstrap import Metric, MetricValues, precision_recall_f1, ratio
from florence2.metrics.geometry.coco_ap import (
    SIZES,
    AveragePrecision,
    PrecisionRecallCurve,
    curve_of_size,
    precision_recall_curve,
    run_coco_eval,
)
from florence2.metrics.geometry.matching import (
    IOU_THRESHOLDS,
    Items,
    ItemsPair,
    box_ious,
    group_by_label,
    match_boxes,
    match_greedily,
    normalize_label,
    rank,
    without_crowds,
)
from florence2.metrics.text import anls


def detection_metrics(pairs: Sequence[ItemsPair]) -> MetricValues:
    """Compute mAP of labeled boxes, and F1, precision and recall at an IoU of 0.5 over all predicted boxes."""
    pairs = _normalize(pairs)
    labels = sorted({item.label for _, references in pairs for item in references if not item.is_crowd})
    all_labels = sorted({item.label for _, references in pairs for item in references})
    matches_E, ignored_E = np.zeros(len(pairs), dtype=int), np.zeros(len(pairs), dtype=int)
    curves: list[PrecisionRecallCurve] = []
    curves_by_size: dict[str, list[PrecisionRecallCurve]] = {size: [] for size in SIZES}
    by_label = [(group_by_label(predictions), group_by_label(references)) for predictions, references in pairs]
    for label in all_labels:
        rows = [(p.get(label, []), r.get(label, [])) for p, r in by_label]
        curve, label_matches_E, label_ignored_E = precision_recall_curve(rows)
        curves.append(curve)
        for size, area_range in SIZES.items():
            curves_by_size[size].append(curve_of_size(rows, area_range))
        matches_E += label_matches_E
        ignored_E += label_ignored_E
    library_values, label_ap = run_coco_eval(pairs, labels) if labels else ({}, {})
    thresholds = {"map": range(10), "map_50": [0], "map_75": [5]}
    metrics: dict[str, Metric] = {name: AveragePrecision(curves, indices) for name, indices in thresholds.items()}
    metrics |= {f"map_{size}": AveragePrecision(each, range(10)) for size, each in curves_by_size.items()}
    return _with_f1(metrics, matches_E.tolist(), pairs, ignored_E.tolist(), library_values, label_ap)


def _with_f1(
    metrics: dict[str, Metric],
    matches: Sequence[int],
    pairs: Sequence[ItemsPair],
    ignored: Sequence[int],
    library_values: Mapping[str, float] | None = None,
    labels: Mapping[str, float] | None = None,
) -> MetricValues:
    num_predictions = [len(p) - count for (p, _), count in zip(pairs, ignored, strict=True)]
    num_references = [len(without_crowds(r)) for _, r in pairs]
    counts = zip(matches, num_predictions, num_references, strict=True)
    quality = [2 * m / (p + r) if p + r else 1.0 for m, p, r in counts]
    metrics = {**metrics, **precision_recall_f1(matches, num_predictions, num_references)}
    return MetricValues(metrics, np.asarray(quality), library_values or {}, labels or {})


def _normalize(pairs: Sequence[ItemsPair]) -> list[ItemsPair]:
    """Normalize the labels of all objects, and rank the predicted ones."""
    return [(rank(_normalize_labels(predictions)), _normalize_labels(references)) for predictions, references in pairs]


def _normalize_labels(items: Items) -> Items:
    return [replace(item, label=normalize_label(item.label)) for item in items]


def dense_caption_metrics(pairs: Sequence[ItemsPair]) -> MetricValues:
    """Compute detection metrics of boxes without their captions, and the ANLS of the captions of matched boxes."""
    scores = region_proposal_metrics(pairs)
    similarities = [_caption_similarities(predictions, references) for predictions, references in pairs]
    num_references = [len(without_crowds(references)) for _, references in pairs]
    words_anls = ratio([sum(each) for each in similarities], num_references)
    return MetricValues({**scores.metrics, "words_anls": words_anls}, scores.quality_E, scores.library_values)


def region_proposal_metrics(pairs: Sequence[ItemsPair]) -> MetricValues:
    """Compute detection metrics of boxes without labels."""
    scores = detection_metrics([(_without_labels(p), _without_labels(r)) for p, r in pairs])
    return MetricValues(scores.metrics, scores.quality_E, scores.library_values)


def _without_labels(items: Items) -> Items:
    return [replace(item, label="") for item in items]


def _caption_similarities(predictions: Items, references: Items) -> list[float]:
    ranked, objects = rank(predictions), without_crowds(references)
    matches = match_greedily(box_ious(ranked, objects), IOU_THRESHOLDS[:1])[0]
    return [anls(item.label, [objects[g].label]) for item, g in zip(ranked, matches, strict=True) if g >= 0]


def grounding_metrics(pairs: Sequence[ItemsPair]) -> MetricValues:
    """Compute phrase accuracy, and F1, precision and recall of boxes at an IoU of 0.5.

    Phrase accuracy is the fraction of reference phrases whose most confident predicted box matches one of the
    phrase's reference boxes.
    """
    pairs = _normalize(pairs)
    matches, ignored, correct_phrases, phrases = [], [], [], []
    for predictions, references in pairs:
        predicted, boxes = group_by_label(predictions), group_by_label(references)
        matched = [match_boxes(predicted.get(label, []), boxes[label], IOU_THRESHOLDS[:1]) for label in boxes]
        matches.append(sum(int((matches_TD >= 0).sum()) for matches_TD, _ in matched))
        ignored.append(sum(int(ignored_TD.sum()) for _, ignored_TD in matched))
        objects = group_by_label(without_crowds(references))
        ious = [box_ious(predicted.get(label, [])[:1], objects[label]) for label in objects]
        correct_phrases.append(sum(bool((ious_DG >= IOU_THRESHOLDS[0]).any()) for ious_DG in ious))
        phrases.append(len(ious))
    return _with_f1({"phrase_accuracy": ratio(correct_phrases, phrases)}, matches, pairs, ignored)
