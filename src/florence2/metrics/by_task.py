"""The scores that each task gets: questions in, scores with their intervals out, task by task.

Knows no files. Prompts of one's own are one group, whatever they ask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from florence2.errors import UserError
from florence2.metrics import text as words
from florence2.metrics.bootstrap import ConfidenceInterval, MetricValues, confidence_intervals, difference
from florence2.metrics.geometry import detection as boxes
from florence2.metrics.geometry import masks as shapes
from florence2.metrics.geometry import matching as overlaps
from florence2.metrics.match_predictions import EvalExample
from florence2.model.tasks import OutputType, Task

TextMetrics = Literal["auto", "caption", "ocr", "answer"]

OWN_PROMPTS = "own prompts"

_TEXT: dict[str, Callable[[Sequence[words.Pair]], MetricValues]] = {
    "caption": words.caption_metrics,
    "ocr": words.ocr_metrics,
    "answer": words.vqa_metrics,
}
_TEXT_OF_TASK = {
    "caption": "caption",
    "detailed_caption": "caption",
    "more_detailed_caption": "caption",
    "region_to_description": "caption",
    "ocr": "ocr",
    "region_to_ocr": "ocr",
}
_PLACES: dict[OutputType, Callable[[Sequence[overlaps.Pair]], MetricValues]] = {
    OutputType.BOXES: boxes.detection_metrics,
    OutputType.REGIONS: boxes.region_proposal_metrics,
    OutputType.PHRASES: boxes.grounding_metrics,
    OutputType.BOXES_OR_POLYGONS: boxes.detection_metrics,
    OutputType.QUADS: shapes.quad_metrics,
    OutputType.POLYGONS: shapes.mask_metrics,
}


@dataclass(frozen=True, eq=False)
class TaskScores:
    """The questions of one task and their scores."""

    task: str
    answers: OutputType
    examples: list[EvalExample]
    scores: MetricValues
    estimates: dict[str, ConfidenceInterval]

    def worst(self, number: int) -> list[tuple[EvalExample, float]]:
        """Give the questions that went worst, with how good each was, from 0 to 1."""
        order = np.argsort(self.scores.quality_Q, kind="stable")[: max(number, 0)]
        return [(self.examples[q], float(self.scores.quality_Q[q])) for q in order]


@dataclass(frozen=True, eq=False)
class ScoreDifference:
    """Two sets of answers to the same questions, and how the scores changed from the first to the second."""

    before: TaskScores
    after: TaskScores
    changes: dict[str, ConfidenceInterval]


def score_tasks(
    questions: Sequence[EvalExample], *, text_as: TextMetrics = "auto", times: int = 1000, meteor: bool = False
) -> list[TaskScores]:
    """Score the questions of each task; `times` is how often pictures are drawn for the intervals."""
    groups: dict[str, list[EvalExample]] = {}
    for question in questions:
        groups.setdefault(OWN_PROMPTS if question.task.is_custom else question.task.name, []).append(question)
    if not groups:
        raise UserError("there is nothing to score")
    return [_graded(name, group, text_as, times, meteor) for name, group in groups.items()]


def compare(before: Sequence[TaskScores], after: Sequence[TaskScores], times: int = 1000) -> list[ScoreDifference]:
    """Say how the scores of the same questions changed."""
    return [
        ScoreDifference(old, new, difference(old.scores, new.scores, _images(old.examples), times))
        for old, new in zip(before, after, strict=True)
    ]


def _graded(name: str, questions: list[EvalExample], text_as: TextMetrics, times: int, meteor: bool) -> TaskScores:
    task = questions[0].task
    scores = _scores(task, questions, text_as, meteor)
    return TaskScores(
        name, task.output_type, questions, scores, confidence_intervals(scores, _images(questions), times)
    )


def _scores(task: Task, questions: Sequence[EvalExample], text_as: TextMetrics, meteor: bool) -> MetricValues:
    if task.output_type is OutputType.TEXT:
        wanted = _TEXT_OF_TASK.get(task.name, "answer") if text_as == "auto" else text_as
        said = [(question.text, question.targets) for question in questions]
        return words.caption_metrics(said, meteor) if wanted == "caption" else _TEXT[wanted](said)
    pairs = [question.objects() for question in questions]
    return (
        boxes.dense_caption_metrics(pairs) if task.name == "dense_region_caption" else _PLACES[task.output_type](pairs)
    )


def _images(questions: Sequence[EvalExample]) -> overlaps.Ints:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(question.sample.id, len(numbers)) for question in questions])
