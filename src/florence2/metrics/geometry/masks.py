"""Metrics of quads and polygons, whose IoU is computed on rasterized masks.

A mask is the union of all polygons of an answer. Masks are rasterized at a size relative to their extent, so that
small and large ones have the same precision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence2.metrics.bootstrap import Floats, Metric, MetricValues, mean, precision_recall_f1, ratio
from florence2.metrics.geometry.matching import (
    IOU_THRESHOLDS,
    Items,
    ItemsPair,
    match_greedily,
    normalize_label,
    rank,
)
from florence2.metrics.text import similarity
from florence2.model.geometry import Ring, bounding_box

Mask = NDArray[np.bool_]

RASTER_SIDE = 1000  # pixels of the longer side; the model's coordinates have 1000 bins


def mask_overlap(predictions: Sequence[Ring], references: Sequence[Ring]) -> tuple[float, float]:
    """Return the areas of intersection and union of two masks in the units of their coordinates."""
    if not any((*predictions, *references)):
        return 0.0, 0.0
    left, top, right, bottom = bounding_box((*predictions, *references))
    scale = RASTER_SIDE / max(right - left, bottom - top, 1e-6)
    size = round((right - left) * scale) + 1, round((bottom - top) * scale) + 1
    a, b = (_rasterize(polygons, (left, top), scale, size) for polygons in (predictions, references))
    return float((a & b).sum()) / scale**2, float((a | b).sum()) / scale**2


def _rasterize(polygons: Sequence[Ring], origin: tuple[float, float], scale: float, size: tuple[int, int]) -> Mask:
    mask = Image.new("1", size)
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        points = [
            ((x - origin[0]) * scale, (y - origin[1]) * scale)
            for x, y in zip(polygon[0::2], polygon[1::2], strict=False)
        ]
        if len(points) > 2:
            draw.polygon(points, fill=1)
    return np.asarray(mask)


def mask_metrics(pairs: Sequence[ItemsPair]) -> MetricValues:
    """Compute mean IoU, the IoU of all areas together, and the fraction of masks with an IoU of at least 0.5.

    An empty prediction for an empty reference has an IoU of 1.
    """
    intersections, unions = zip(*(mask_overlap(_polygons(p), _polygons(r)) for p, r in pairs), strict=True)
    ious = [i / u if u > 0 else 1.0 for i, u in zip(intersections, unions, strict=True)]
    metrics: dict[str, Metric] = {
        "miou": mean(ious),
        "overall_iou": ratio(intersections, unions),
        "precision_at_50": mean([float(iou >= IOU_THRESHOLDS[0]) for iou in ious]),
    }
    return MetricValues(metrics, np.asarray(ious))


def _polygons(items: Items) -> list[Ring]:
    return [ring for item in items for ring in item.rings]


def quad_metrics(pairs: Sequence[ItemsPair]) -> MetricValues:
    """Compute OCR metrics of quads alone and end to end, where the text must be equal, too.

    Quads match at an IoU of 0.5. `text_similarity` is the mean over matched lines; an unmatched line counts as 0.
    """
    matches, correct_texts, similarities, num_lines = [], [], [], []
    for unranked, references in pairs:
        predictions = rank(unranked)
        ious_DG = quad_ious(_polygons(predictions), _polygons(references))
        matched = match_greedily(ious_DG, IOU_THRESHOLDS[:1])[0]
        texts = [(predictions[d].label, references[g].label) for d, g in enumerate(matched) if g >= 0]
        matches.append(len(texts))
        correct_texts.append(sum(normalize_label(a) == normalize_label(b) for a, b in texts))
        similarities.append(sum(similarity(" ".join(a.split()), " ".join(b.split())) for a, b in texts))
        num_lines.append(len(predictions) + len(references) - len(texts))
    counts = [len(predictions) for predictions, _ in pairs], [len(references) for _, references in pairs]
    end_to_end = precision_recall_f1(correct_texts, *counts, prefix="end_to_end_")
    metrics = {
        **end_to_end,
        **precision_recall_f1(matches, *counts),
        "text_similarity": ratio(similarities, num_lines),
    }
    quality = [2 * c / (p + r) if p + r else 1.0 for c, p, r in zip(correct_texts, *counts, strict=True)]
    return MetricValues(metrics, np.asarray(quality))


def quad_ious(predictions: Sequence[Ring], references: Sequence[Ring]) -> Floats:
    """Compute the IoU of each predicted quad with each reference quad: DG."""
    ious_DG = np.zeros((len(predictions), len(references)))
    for d, a in enumerate(predictions):
        for g, b in enumerate(references):
            if _bounds_overlap(a, b):
                intersection, union = mask_overlap([a], [b])
                ious_DG[d, g] = intersection / union if union > 0 else 0.0
    return ious_DG


def _bounds_overlap(a: Ring, b: Ring) -> bool:
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = bounding_box([a]), bounding_box([b])
    return right_a > left_b and right_b > left_a and bottom_a > top_b and bottom_b > top_a
