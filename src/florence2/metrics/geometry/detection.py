"""Scores of answers in boxes: average precision, F1, precision and recall, phrases that were found.

Knows no pictures and no tasks: `Objects` on either side, one pair for each question.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from florence2.metrics.bootstrap import Metric, MetricValues, counted, ratio
from florence2.metrics.geometry.coco_ap import AveragePrecision, ask_coco, curve_of
from florence2.metrics.geometry.matching import (
    EMPTY,
    IOU_THRESHOLDS,
    Instances,
    Pair,
    box_ious,
    match_greedily,
    normalize_label,
)
from florence2.metrics.text import anls


def detection_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score labelled boxes: mAP, and F1, precision and recall at an overlap of 0.5 over all that was said."""
    pairs = [(_fold(said), _fold(wanted)) for said, wanted in pairs]
    labels = sorted({label for _, wanted in pairs for label in wanted.labels})
    hits_Q = np.zeros(len(pairs), dtype=int)
    curves = []
    parts = [(said.by_label(), wanted.by_label()) for said, wanted in pairs]
    for label in labels:
        curve, right_Q = curve_of([(said.get(label, EMPTY), wanted.get(label, EMPTY)) for said, wanted in parts])
        curves.append(curve)
        hits_Q += right_Q
    exact, by_label = ask_coco(pairs, labels) if labels else ({}, {})
    overlaps = {"map": range(10), "map_50": [0], "map_75": [5]}
    measures: dict[str, Metric] = {name: AveragePrecision(curves, chosen) for name, chosen in overlaps.items()}
    return _with_counts(measures, hits_Q.tolist(), pairs, exact, by_label)


def _with_counts(
    measures: dict[str, Metric],
    hits: Sequence[int],
    pairs: Sequence[Pair],
    exact: Mapping[str, float] | None = None,
    labels: Mapping[str, float] | None = None,
) -> MetricValues:
    said, wanted = [len(s.places) for s, _ in pairs], [len(w.places) for _, w in pairs]
    good = [2 * h / (s + w) if s + w else 1.0 for h, s, w in zip(hits, said, wanted, strict=True)]
    return MetricValues({**measures, **counted(hits, said, wanted)}, np.asarray(good), exact or {}, labels or {})


def _fold(objects: Instances) -> Instances:
    return Instances(objects.places, [normalize_label(label) for label in objects.labels], objects.scores)


def dense_caption_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score boxes with descriptions: boxes as if they had no labels, and how alike the words of found ones are."""
    bare = [(_bare(said), _bare(wanted)) for said, wanted in pairs]
    scores = detection_metrics(bare)
    alike = [_alike(said, wanted) for said, wanted in pairs]
    words = ratio([sum(each) for each in alike], [len(wanted.places) for _, wanted in pairs])
    return MetricValues({**scores.metrics, "words_anls": words}, scores.quality_Q, scores.library_values)


def region_proposal_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score boxes without labels."""
    scores = detection_metrics([(_bare(said), _bare(wanted)) for said, wanted in pairs])
    return MetricValues(scores.metrics, scores.quality_Q, scores.library_values)


def _bare(objects: Instances) -> Instances:
    return Instances(objects.places, [""] * len(objects.places), objects.scores)


def _alike(said: Instances, wanted: Instances) -> list[float]:
    order = sorted(range(len(said.places)), key=lambda i: -said.scores[i])
    ious_DG = box_ious([said.places[i] for i in order], wanted.places)
    taken = zip(order, match_greedily(ious_DG, IOU_THRESHOLDS[:1])[0], strict=True)
    return [anls(said.labels[i], [wanted.labels[g]]) for i, g in taken if g >= 0]


def grounding_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score phrases and their boxes at an overlap of 0.5.

    Recall is over wanted boxes. `phrase_accuracy` is over wanted phrases: is the surest box said for it on any of
    the boxes wanted for it?
    """
    pairs = [(_fold(said), _fold(wanted)) for said, wanted in pairs]
    hits, found, phrases = [], [], []
    for said, wanted in pairs:
        there = said.by_label()
        ious = [box_ious(there.get(label, EMPTY).places, each.places) for label, each in wanted.by_label().items()]
        hits.append(sum(int((match_greedily(ious_DG, IOU_THRESHOLDS[:1]) >= 0).sum()) for ious_DG in ious))
        found.append(sum(bool((ious_DG[:1] >= IOU_THRESHOLDS[0]).any()) for ious_DG in ious))
        phrases.append(len(ious))
    return _with_counts({"phrase_accuracy": ratio(found, phrases)}, hits, pairs)
