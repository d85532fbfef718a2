"""Metrics of boxes: average precision, F1, precision and recall, phrase accuracy.

Each metric function takes one pair of predicted and reference `Instances` per example.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from florence2.metrics.bootstrap import Metric, MetricValues, precision_recall_f1, ratio
from florence2.metrics.geometry.coco_ap import AveragePrecision, precision_recall_curve, run_coco_eval
from florence2.metrics.geometry.matching import (
    EMPTY,
    IOU_THRESHOLDS,
    Instances,
    InstancesPair,
    box_ious,
    match_greedily,
    normalize_label,
)
from florence2.metrics.text import anls


def detection_metrics(pairs: Sequence[InstancesPair]) -> MetricValues:
    """Compute mAP of labeled boxes, and F1, precision and recall at an IoU of 0.5 over all predicted boxes."""
    pairs = [(_normalize_labels(predictions), _normalize_labels(references)) for predictions, references in pairs]
    labels = sorted({label for _, references in pairs for label in references.labels})
    matches_E = np.zeros(len(pairs), dtype=int)
    curves = []
    by_label = [(predictions.by_label(), references.by_label()) for predictions, references in pairs]
    for label in labels:
        curve, label_matches_E = precision_recall_curve(
            [(p.get(label, EMPTY), r.get(label, EMPTY)) for p, r in by_label]
        )
        curves.append(curve)
        matches_E += label_matches_E
    library_values, label_ap = run_coco_eval(pairs, labels) if labels else ({}, {})
    thresholds = {"map": range(10), "map_50": [0], "map_75": [5]}
    metrics: dict[str, Metric] = {name: AveragePrecision(curves, indices) for name, indices in thresholds.items()}
    return _with_f1(metrics, matches_E.tolist(), pairs, library_values, label_ap)


def _with_f1(
    metrics: dict[str, Metric],
    matches: Sequence[int],
    pairs: Sequence[InstancesPair],
    library_values: Mapping[str, float] | None = None,
    labels: Mapping[str, float] | None = None,
) -> MetricValues:
    num_predictions, num_references = [len(p) for p, _ in pairs], [len(r) for _, r in pairs]
    counts = zip(matches, num_predictions, num_references, strict=True)
    quality = [2 * m / (p + r) if p + r else 1.0 for m, p, r in counts]
    metrics = {**metrics, **precision_recall_f1(matches, num_predictions, num_references)}
    return MetricValues(metrics, np.asarray(quality), library_values or {}, labels or {})


def _normalize_labels(instances: Instances) -> Instances:
    return Instances(instances.geometries, [normalize_label(label) for label in instances.labels], instances.scores)


def dense_caption_metrics(pairs: Sequence[InstancesPair]) -> MetricValues:
    """Compute detection metrics of boxes without their captions, and the ANLS of the captions of matched boxes."""
    scores = region_proposal_metrics(pairs)
    similarities = [_caption_similarities(predictions, references) for predictions, references in pairs]
    words_anls = ratio([sum(each) for each in similarities], [len(references) for _, references in pairs])
    return MetricValues({**scores.metrics, "words_anls": words_anls}, scores.quality_E, scores.library_values)


def region_proposal_metrics(pairs: Sequence[InstancesPair]) -> MetricValues:
    """Compute detection metrics of boxes without labels."""
    scores = detection_metrics([(_without_labels(p), _without_labels(r)) for p, r in pairs])
    return MetricValues(scores.metrics, scores.quality_E, scores.library_values)


def _without_labels(instances: Instances) -> Instances:
    return Instances(instances.geometries, [""] * len(instances), instances.scores)


def _caption_similarities(predictions: Instances, references: Instances) -> list[float]:
    order = sorted(range(len(predictions)), key=lambda i: -predictions.scores[i])
    ious_DG = box_ious([predictions.geometries[i] for i in order], references.geometries)
    matches = zip(order, match_greedily(ious_DG, IOU_THRESHOLDS[:1])[0], strict=True)
    return [anls(predictions.labels[i], [references.labels[g]]) for i, g in matches if g >= 0]


def grounding_metrics(pairs: Sequence[InstancesPair]) -> MetricValues:
    """Compute phrase accuracy, and F1, precision and recall of boxes at an IoU of 0.5.

    Phrase accuracy is the fraction of reference phrases whose most confident predicted box matches one of the
    phrase's reference boxes.
    """
    pairs = [(_normalize_labels(predictions), _normalize_labels(references)) for predictions, references in pairs]
    matches, correct_phrases, phrases = [], [], []
    for predictions, references in pairs:
        predicted = predictions.by_label()
        ious = [
            box_ious(predicted.get(label, EMPTY).geometries, boxes.geometries)
            for label, boxes in references.by_label().items()
        ]
        matches.append(sum(int((match_greedily(ious_DG, IOU_THRESHOLDS[:1]) >= 0).sum()) for ious_DG in ious))
        correct_phrases.append(sum(bool((ious_DG[:1] >= IOU_THRESHOLDS[0]).any()) for ious_DG in ious))
        phrases.append(len(ious))
    return _with_f1({"phrase_accuracy": ratio(correct_phrases, phrases)}, matches, pairs)
