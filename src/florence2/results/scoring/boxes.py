"""Scores of answers in boxes: average precision as COCO defines it, F1, precision and recall, phrases found.

Knows no pictures and no tasks: `Objects` on either side, one pair for each question. Labels are compared without
regard to case and white space. Average precision is faster-coco-eval's; its interval is computed here, by the same
rules, because drawing pictures again and again asks for weights. Shapes: T overlaps, D said objects, G wanted ones.
"""
# ruff: noqa: N803, N806, N815 - shape suffixes

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2.results.scoring.measures import Floats, Measure, Scores, counted, extra, ratio
from florence2.results.scoring.words import anls

Ints = NDArray[np.int64]

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes of one label and picture, as in COCO


@dataclass(frozen=True)
class Objects:
    """Objects of one picture: places (boxes, quads or masks), labels, and scores where there are any."""

    places: Sequence[Any]
    labels: Sequence[str]
    scores: Sequence[float]

    def by_label(self) -> dict[str, "Objects"]:
        """Part the objects by label, the surest first."""
        rows = sorted(zip(self.places, self.labels, self.scores, strict=True), key=lambda row: -row[2])
        parts: dict[str, list[tuple[Any, str, float]]] = {}
        for row in rows:
            parts.setdefault(row[1], []).append(row)
        return {label: Objects(*map(list, zip(*part, strict=True))) for label, part in parts.items()}


NONE = Objects((), (), ())
Pair = tuple[Objects, Objects]  # said, wanted


def folded(label: str) -> str:
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


def assign(ious_DG: Floats, least: Floats) -> Ints:
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


@dataclass(frozen=True, eq=False)
class Curve:
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

    curves: Sequence[Curve]
    chosen: Sequence[int]
    rises: bool = True

    def of(self, weights_BQ: Floats) -> Floats:
        """Give the score of each row of weights."""
        found_LB = np.array([curve.precision(weights_BQ, self.chosen) for curve in self.curves])
        found_LB = found_LB.reshape(-1, len(weights_BQ))
        known_B = np.isfinite(found_LB).sum(0)
        nothing = np.full(len(weights_BQ), np.nan)
        means_B: Floats = np.divide(np.nansum(found_LB, 0), known_B, out=nothing, where=known_B > 0)
        return means_B


def detections(pairs: Sequence[Pair]) -> Scores:
    """Score labelled boxes: mAP, and F1, precision and recall at an overlap of 0.5 over all that was said."""
    pairs = [(_fold(said), _fold(wanted)) for said, wanted in pairs]
    labels = sorted({label for _, wanted in pairs for label in wanted.labels})
    hits_Q = np.zeros(len(pairs), dtype=int)
    curves = []
    parts = [(said.by_label(), wanted.by_label()) for said, wanted in pairs]
    for label in labels:
        curve, right_Q = _curve([(said.get(label, NONE), wanted.get(label, NONE)) for said, wanted in parts])
        curves.append(curve)
        hits_Q += right_Q
    exact, by_label = _coco(pairs, labels) if labels else ({}, {})
    overlaps = {"map": range(10), "map_50": [0], "map_75": [5]}
    measures: dict[str, Measure] = {name: AveragePrecision(curves, chosen) for name, chosen in overlaps.items()}
    return _with_counts(measures, hits_Q.tolist(), pairs, exact, by_label)


def _with_counts(
    measures: dict[str, Measure],
    hits: Sequence[int],
    pairs: Sequence[Pair],
    exact: Mapping[str, float] | None = None,
    labels: Mapping[str, float] | None = None,
) -> Scores:
    said, wanted = [len(s.places) for s, _ in pairs], [len(w.places) for _, w in pairs]
    good = [2 * h / (s + w) if s + w else 1.0 for h, s, w in zip(hits, said, wanted, strict=True)]
    return Scores({**measures, **counted(hits, said, wanted)}, np.asarray(good), exact or {}, labels or {})


def _fold(objects: Objects) -> Objects:
    return Objects(objects.places, [folded(label) for label in objects.labels], objects.scores)


def _curve(pairs: Sequence[Pair]) -> tuple[Curve, Ints]:
    """Match the boxes of one label, and count what was right in each question."""
    taken = [_taken(said, wanted) for said, wanted in pairs]
    right_Q = np.array([(each[0] >= 0).sum() for each in taken])
    question_D = np.concatenate([np.full(min(len(s.places), MOST), q) for q, (s, _) in enumerate(pairs)])
    scores_D = np.concatenate([np.asarray(s.scores[:MOST], dtype=float) for s, _ in pairs])
    hits_TD = np.concatenate([each[:, :MOST] >= 0 for each in taken], axis=1)
    order_D = np.argsort(-scores_D, kind="mergesort")
    wanted_Q = np.array([len(wanted.places) for _, wanted in pairs], dtype=float)
    return Curve(question_D[order_D].astype(int), hits_TD[:, order_D], wanted_Q), right_Q


def _taken(said: Objects, wanted: Objects) -> Ints:
    if not said.places or not wanted.places:
        return np.full((len(OVERLAPS), len(said.places)), -1)
    return assign(box_ious(said.places, wanted.places), OVERLAPS)


def _coco(pairs: Sequence[Pair], labels: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
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
    said = wanted.loadRes(_rows([said for said, _ in pairs], ids))
    run = package.COCOeval_faster(wanted, said, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    exact = {name: _known(run.stats_as_dict[theirs]) for name, theirs in _THEIRS.items()}
    precision_TRL = run.eval["precision"][..., 0, -1]
    return exact, {label: _known(precision_TRL[..., i - 1].mean()) for label, i in ids.items()}


_THEIRS = {"map": "AP_all", "map_50": "AP_50", "map_75": "AP_75"}


def _rows(sides: Sequence[Objects], ids: Mapping[str, int]) -> list[dict[str, Any]]:
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


def descriptions(pairs: Sequence[Pair]) -> Scores:
    """Score boxes with descriptions: boxes as if they had no labels, and how alike the words of found ones are."""
    bare = [(_bare(said), _bare(wanted)) for said, wanted in pairs]
    scores = detections(bare)
    alike = [_alike(said, wanted) for said, wanted in pairs]
    words = ratio([sum(each) for each in alike], [len(wanted.places) for _, wanted in pairs])
    return Scores({**scores.measures, "words_anls": words}, scores.goodness_Q, scores.exact)


def regions(pairs: Sequence[Pair]) -> Scores:
    """Score boxes without labels."""
    scores = detections([(_bare(said), _bare(wanted)) for said, wanted in pairs])
    return Scores(scores.measures, scores.goodness_Q, scores.exact)


def _bare(objects: Objects) -> Objects:
    return Objects(objects.places, [""] * len(objects.places), objects.scores)


def _alike(said: Objects, wanted: Objects) -> list[float]:
    order = sorted(range(len(said.places)), key=lambda i: -said.scores[i])
    ious_DG = box_ious([said.places[i] for i in order], wanted.places)
    taken = zip(order, assign(ious_DG, OVERLAPS[:1])[0], strict=True)
    return [anls(said.labels[i], [wanted.labels[g]]) for i, g in taken if g >= 0]


def groundings(pairs: Sequence[Pair]) -> Scores:
    """Score phrases and their boxes at an overlap of 0.5.

    Recall is over wanted boxes. `phrase_accuracy` is over wanted phrases: is the surest box said for it on any of
    the boxes wanted for it?
    """
    pairs = [(_fold(said), _fold(wanted)) for said, wanted in pairs]
    hits, found, phrases = [], [], []
    for said, wanted in pairs:
        there = said.by_label()
        ious = [box_ious(there.get(label, NONE).places, each.places) for label, each in wanted.by_label().items()]
        hits.append(sum(int((assign(ious_DG, OVERLAPS[:1]) >= 0).sum()) for ious_DG in ious))
        found.append(sum(bool((ious_DG[:1] >= OVERLAPS[0]).any()) for ious_DG in ious))
        phrases.append(len(ious))
    return _with_counts({"phrase_accuracy": ratio(found, phrases)}, hits, pairs)
