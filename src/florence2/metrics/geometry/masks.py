"""Scores of answers in quads and polygons: areas are painted with Pillow and compared pixel by pixel.

Knows no pictures and no tasks. A mask is the union of all polygons of an answer. A shape is painted at a size of its
own, so that small and large ones are measured alike.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence2.metrics.bootstrap import Floats, Metric, MetricValues, counted, mean, ratio
from florence2.metrics.geometry.matching import IOU_THRESHOLDS, Instances, Pair, match_greedily, normalize_label
from florence2.metrics.text import similarity

Run = Sequence[float]  # x, y, x, y, ...
Mask = NDArray[np.bool_]

SIDE = 1000  # pixels of the longer side that shapes are painted at: the model tells 1000 places apart


def mask_iou(said: Sequence[Run], wanted: Sequence[Run]) -> tuple[float, float]:
    """Give the areas of intersection and union of two masks, each a list of polygons, in their own units."""
    xs = [x for run in (*said, *wanted) for x in run[0::2]]
    ys = [y for run in (*said, *wanted) for y in run[1::2]]
    if not xs:
        return 0.0, 0.0
    scale = SIDE / max(max(xs) - min(xs), max(ys) - min(ys), 1e-6)
    size = round((max(xs) - min(xs)) * scale) + 1, round((max(ys) - min(ys)) * scale) + 1
    a, b = (_painted(runs, (min(xs), min(ys)), scale, size) for runs in (said, wanted))
    return float((a & b).sum()) / scale**2, float((a | b).sum()) / scale**2


def _painted(runs: Sequence[Run], corner: tuple[float, float], scale: float, size: tuple[int, int]) -> Mask:
    mask = Image.new("1", size)
    draw = ImageDraw.Draw(mask)
    for run in runs:
        points = [
            ((x - corner[0]) * scale, (y - corner[1]) * scale) for x, y in zip(run[0::2], run[1::2], strict=False)
        ]
        if len(points) > 2:
            draw.polygon(points, fill=1)
    return np.asarray(mask)


def mask_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score masks: mean overlap, overlap of all areas together, and how many overlap by at least half.

    Where nothing is wanted, saying nothing is right.
    """
    both, either = zip(*(mask_iou(_runs(said), _runs(wanted)) for said, wanted in pairs), strict=True)
    ious = [b / e if e > 0 else 1.0 for b, e in zip(both, either, strict=True)]
    measures: dict[str, Metric] = {
        "miou": mean(ious),
        "overall_iou": ratio(both, either),
        "precision_at_50": mean([float(iou >= IOU_THRESHOLDS[0]) for iou in ious]),
    }
    return MetricValues(measures, np.asarray(ious))


def _runs(objects: Instances) -> list[Run]:
    return [run for place in objects.places for run in place]


def quad_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score lines of text with their places: of the places alone, and end to end, where the text must be right too.

    A place is right at an overlap of 0.5. `text_similarity` is over matched lines; a line that was missed or made up
    counts as 0.
    """
    hits, read, alike, lines = [], [], [], []
    for said, wanted in pairs:
        taken = match_greedily(quad_ious(said.places, wanted.places), IOU_THRESHOLDS[:1])[0]
        texts = [(said.labels[d], wanted.labels[g]) for d, g in enumerate(taken) if g >= 0]
        hits.append(len(texts))
        read.append(sum(normalize_label(a) == normalize_label(b) for a, b in texts))
        alike.append(sum(similarity(" ".join(a.split()), " ".join(b.split())) for a, b in texts))
        lines.append(len(said.places) + len(wanted.places) - len(texts))
    counts = [len(said.places) for said, _ in pairs], [len(wanted.places) for _, wanted in pairs]
    end_to_end = counted(read, *counts, prefix="end_to_end_")
    measures = {**end_to_end, **counted(hits, *counts), "text_similarity": ratio(alike, lines)}
    good = [2 * r / (s + w) if s + w else 1.0 for r, s, w in zip(read, *counts, strict=True)]
    return MetricValues(measures, np.asarray(good))


def quad_ious(said: Sequence[Run], wanted: Sequence[Run]) -> Floats:
    """Give the overlap of each said quad with each wanted one."""
    found = np.zeros((len(said), len(wanted)))
    for d, a in enumerate(said):
        for g, b in enumerate(wanted):
            if _may_touch(a, b):
                both, either = mask_iou([a], [b])
                found[d, g] = both / either if either > 0 else 0.0
    return found


def _may_touch(a: Run, b: Run) -> bool:
    return all(max(a[i::2]) > min(b[i::2]) and max(b[i::2]) > min(a[i::2]) for i in (0, 1))
