"""The scores that each task gets: questions in, scores with their intervals out, task by task.

Knows no files. Prompts of one's own are one group, whatever they ask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from florence2.errors import UserError
from florence2.metrics import text as words
from florence2.metrics.bootstrap import Estimate, Scores, difference, estimate
from florence2.metrics.geometry import detection as boxes
from florence2.metrics.geometry import masks as shapes
from florence2.metrics.geometry import matching as overlaps
from florence2.metrics.match_predictions import Question
from florence2.model.tasks import Answers, Task

TextAs = Literal["auto", "caption", "ocr", "answer"]

OWN_PROMPTS = "own prompts"

_TEXT: dict[str, Callable[[Sequence[words.Pair]], Scores]] = {
    "caption": words.captions,
    "ocr": words.readings,
    "answer": words.answers,
}
_TEXT_OF_TASK = {
    "caption": "caption",
    "detailed_caption": "caption",
    "more_detailed_caption": "caption",
    "region_to_description": "caption",
    "ocr": "ocr",
    "region_to_ocr": "ocr",
}
_PLACES: dict[Answers, Callable[[Sequence[overlaps.Pair]], Scores]] = {
    Answers.BOXES: boxes.detections,
    Answers.REGIONS: boxes.regions,
    Answers.PHRASES: boxes.groundings,
    Answers.BOXES_OR_POLYGONS: boxes.detections,
    Answers.QUADS: shapes.quads,
    Answers.POLYGONS: shapes.masks,
}


@dataclass(frozen=True, eq=False)
class Graded:
    """The questions of one task and their scores."""

    task: str
    answers: Answers
    questions: list[Question]
    scores: Scores
    estimates: dict[str, Estimate]

    def worst(self, number: int) -> list[tuple[Question, float]]:
        """Give the questions that went worst, with how good each was, from 0 to 1."""
        order = np.argsort(self.scores.goodness_Q, kind="stable")[: max(number, 0)]
        return [(self.questions[q], float(self.scores.goodness_Q[q])) for q in order]


@dataclass(frozen=True, eq=False)
class Change:
    """Two sets of answers to the same questions, and how the scores changed from the first to the second."""

    before: Graded
    after: Graded
    changes: dict[str, Estimate]


def grade(
    questions: Sequence[Question], *, text_as: TextAs = "auto", times: int = 1000, meteor: bool = False
) -> list[Graded]:
    """Score the questions of each task; `times` is how often pictures are drawn for the intervals."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(OWN_PROMPTS if question.task.is_free else question.task.name, []).append(question)
    if not groups:
        raise UserError("there is nothing to score")
    return [_graded(name, group, text_as, times, meteor) for name, group in groups.items()]


def compare(before: Sequence[Graded], after: Sequence[Graded], times: int = 1000) -> list[Change]:
    """Say how the scores of the same questions changed."""
    return [
        Change(old, new, difference(old.scores, new.scores, _pictures(old.questions), times))
        for old, new in zip(before, after, strict=True)
    ]


def _graded(name: str, questions: list[Question], text_as: TextAs, times: int, meteor: bool) -> Graded:
    task = questions[0].task
    scores = _scores(task, questions, text_as, meteor)
    return Graded(name, task.answers, questions, scores, estimate(scores, _pictures(questions), times))


def _scores(task: Task, questions: Sequence[Question], text_as: TextAs, meteor: bool) -> Scores:
    if task.answers is Answers.TEXT:
        wanted = _TEXT_OF_TASK.get(task.name, "answer") if text_as == "auto" else text_as
        said = [(question.text, question.targets) for question in questions]
        return words.captions(said, meteor) if wanted == "caption" else _TEXT[wanted](said)
    pairs = [question.objects() for question in questions]
    return boxes.descriptions(pairs) if task.name == "dense_region_caption" else _PLACES[task.answers](pairs)


def _pictures(questions: Sequence[Question]) -> overlaps.Ints:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(question.sample.id, len(numbers)) for question in questions])
