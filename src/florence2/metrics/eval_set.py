"""An exam that is set again and again: the same questions, and a few scores by name, for a model that is learning.

Knows no model. The names are those that `florence2 evaluate` prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2.data.sample import Prediction, ResolvedDataset, Sample
from florence2.errors import UserError
from florence2.metrics.by_task import score_tasks
from florence2.metrics.match_predictions import PredictionRow, match_predictions
from florence2.settings_io import closest_name_hint

Key = tuple[str, str, str]


@dataclass(frozen=True)
class EvalScore:
    """One number of a report; `rises` says whether more is better."""

    value: float
    higher_is_better: bool


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Questions with all their right answers, and the scores that are wanted; `rises` says of which more is better."""

    samples: Sequence[Sample]
    higher_is_better: Mapping[str, bool]

    @property
    def unlabeled_samples(self) -> list[Sample]:
        """Give each question once, however many right answers it has."""
        return list({sample.key: sample for sample in self.samples}.values())

    def scores(self, predictions: Iterable[Prediction]) -> dict[str, float]:
        """Score the answers; where there is nothing to divide by, as where no box was said, it is the worst score."""
        found = score_by_name(self.samples, predictions)
        return {name: _or_worst(found.get(name), rises) for name, rises in self.higher_is_better.items()}


def make_eval_set(samples: Sequence[Sample], names: Sequence[str], most: int) -> EvalSet:
    """Choose at most so many questions, evenly, and check that they can be scored by these names."""
    questions = list(dict.fromkeys(sample.key for sample in samples))
    step = max(len(questions) / max(most, 1), 1)
    chosen = {questions[int(place * step)] for place in range(min(most, len(questions)))}
    asked = [sample for sample in samples if sample.key in chosen]
    known = score_by_name(asked, [_perfect(sample) for sample in asked])
    for name in names:
        if name not in known:
            raise UserError(f"`--eval_metrics {name}` is no score here", closest_name_hint(name, ["loss", *known]))
        if not math.isfinite(known[name].value):
            raise UserError(f"there is no `{name}` of {len(chosen)} questions like these", "hold back more pictures")
    return EvalSet(asked, {name: known[name].higher_is_better for name in names})


def score_by_name(samples: Sequence[Sample], predictions: Iterable[Prediction]) -> dict[str, EvalScore]:
    """Give all scores by name; of several tasks the mean, and each task's own as `od_f1`."""
    said = [PredictionRow(prediction, Path(prediction.file_name)) for prediction in predictions]
    graded = score_tasks(
        match_predictions(said, ResolvedDataset("the validation set", None, list(samples))).examples, times=0
    )
    found: dict[str, list[EvalScore]] = {}
    for task in graded:
        for name, value in task.scores.values().items():
            score = EvalScore(value, task.scores.metrics[name].higher_is_better)
            found.setdefault(name, []).append(score)
            if len(graded) > 1:
                found.setdefault(f"{task.task}_{name}".replace(" ", "_"), []).append(score)
    return {name: _mean(scores) for name, scores in found.items()}


def _perfect(sample: Sample) -> Prediction:
    return Prediction(sample.id, sample.task, sample.input, sample.target or "")


def _mean(scores: Sequence[EvalScore]) -> EvalScore:
    known = [score.value for score in scores if math.isfinite(score.value)]
    return EvalScore(sum(known) / len(known) if known else math.nan, scores[0].higher_is_better)


def _or_worst(score: EvalScore | None, rises: bool) -> float:
    if score is None or not math.isfinite(score.value):
        return 0.0 if rises else 1.0
    return score.value
