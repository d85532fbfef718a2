"""The metrics of each task: examples in, scores with confidence intervals out.

All custom prompts form one group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from florence2.errors import UserError
from florence2.metrics import text
from florence2.metrics.bootstrap import ConfidenceInterval, MetricValues, confidence_intervals, difference
from florence2.metrics.geometry import detection, masks
from florence2.metrics.geometry.matching import Ints, ItemsPair
from florence2.metrics.match_predictions import EvalExample
from florence2.model.tasks import OutputType, Task

TextMetrics = Literal["auto", "caption", "ocr", "answer"]

CUSTOM_PROMPTS = "custom_prompts"

_TEXT: dict[str, Callable[[Sequence[text.TextPair]], MetricValues]] = {
    "caption": text.caption_metrics,
    "ocr": text.ocr_metrics,
    "answer": text.vqa_metrics,
}
_TEXT_METRICS_BY_TASK = {
    "caption": "caption",
    "detailed_caption": "caption",
    "more_detailed_caption": "caption",
    "region_to_description": "caption",
    "ocr": "ocr",
    "region_to_ocr": "ocr",
}
_GEOMETRY: dict[OutputType, Callable[[Sequence[ItemsPair]], MetricValues]] = {
    OutputType.BOXES: detection.detection_metrics,
    OutputType.REGIONS: detection.region_proposal_metrics,
    OutputType.PHRASES: detection.grounding_metrics,
    OutputType.BOXES_OR_POLYGONS: detection.detection_metrics,
    OutputType.QUADS: masks.quad_metrics,
    OutputType.POLYGONS: masks.mask_metrics,
}


@dataclass(frozen=True, eq=False)
class TaskScores:
    """The examples of one task and their scores."""

    task: str
    output_type: OutputType
    examples: list[EvalExample]
    scores: MetricValues
    intervals: dict[str, ConfidenceInterval]

    def worst(self, num_worst: int) -> list[tuple[EvalExample, float]]:
        """Return the examples of the lowest quality, worst first, each with its quality from 0 to 1."""
        order = np.argsort(self.scores.quality_E, kind="stable")[: max(num_worst, 0)]
        return [(self.examples[e], float(self.scores.quality_E[e])) for e in order]


@dataclass(frozen=True, eq=False)
class ScoreDifference:
    """The scores of two predictions of the same examples, and the change from the first to the second."""

    before: TaskScores
    after: TaskScores
    changes: dict[str, ConfidenceInterval]


def score_tasks(
    examples: Sequence[EvalExample],
    *,
    text_metrics: TextMetrics = "auto",
    num_resamples: int = 1000,
    meteor: bool = False,
) -> list[TaskScores]:
    """Score the examples of each task, with intervals from `num_resamples` bootstrap resamples.

    Examples are sorted by image, so that neither scores nor intervals depend on the order of a file.
    """
    groups: dict[str, list[EvalExample]] = {}
    for example in examples:
        groups.setdefault(CUSTOM_PROMPTS if example.task.is_custom else example.task.name, []).append(example)
    if not groups:
        raise UserError("there is nothing to score")
    for group in groups.values():
        group.sort(key=lambda example: (example.sample.id, example.sample.input))
    return [_score_task(name, group, text_metrics, num_resamples, meteor) for name, group in groups.items()]


def compare(
    before: Sequence[TaskScores], after: Sequence[TaskScores], num_resamples: int = 1000
) -> list[ScoreDifference]:
    """Compare two lists of scores of the same tasks and examples."""
    return [
        ScoreDifference(old, new, difference(old.scores, new.scores, _image_index(old.examples), num_resamples))
        for old, new in zip(before, after, strict=True)
    ]


def _score_task(
    name: str, examples: list[EvalExample], text_metrics: TextMetrics, num_resamples: int, meteor: bool
) -> TaskScores:
    task = examples[0].task
    scores = _compute_metrics(task, examples, text_metrics, meteor)
    intervals = confidence_intervals(scores, _image_index(examples), num_resamples)
    return TaskScores(name, task.output_type, examples, scores, intervals)


def _compute_metrics(
    task: Task, examples: Sequence[EvalExample], text_metrics: TextMetrics, meteor: bool
) -> MetricValues:
    if task.output_type is OutputType.TEXT:
        kind = _TEXT_METRICS_BY_TASK.get(task.name, "answer") if text_metrics == "auto" else text_metrics
        texts = [(example.text, example.targets) for example in examples]
        return text.caption_metrics(texts, meteor) if kind == "caption" else _TEXT[kind](texts)
    pairs = [example.items() for example in examples]
    if task.name == "dense_region_caption":
        return detection.dense_caption_metrics(pairs)
    return _GEOMETRY[task.output_type](pairs)


def _image_index(examples: Sequence[EvalExample]) -> Ints:
    index: dict[str, int] = {}
    return np.array([index.setdefault(example.sample.id, len(index)) for example in examples])
