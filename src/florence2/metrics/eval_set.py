"""The evaluation set of a training: a fixed set of samples and the metrics by which checkpoints are compared.

The metrics have the names that `florence2 evaluate` prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2.data.sample import Prediction, ResolvedDataset, Sample
from florence2.errors import OptionError
from florence2.metrics.by_task import score_tasks
from florence2.metrics.match_predictions import PredictionRow, match_predictions
from florence2.settings_io import closest_name_hint


@dataclass(frozen=True)
class EvalScore:
    """A metric's value and its direction."""

    value: float
    higher_is_better: bool


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Samples with all their references, and the metrics to compute; `higher_is_better` maps each to its direction."""

    samples: Sequence[Sample]
    higher_is_better: Mapping[str, bool]

    @property
    def unlabeled_samples(self) -> list[Sample]:
        """Return each sample once, however many references it has."""
        return list({sample.key: sample for sample in self.samples}.values())

    def scores(self, predictions: Iterable[Prediction]) -> dict[str, float]:
        """Compute the metrics; a metric without a value, such as the precision of no boxes, is the worst score."""
        scores = score_by_name(self.samples, predictions)
        return {
            name: _or_worst(scores.get(name), higher_is_better)
            for name, higher_is_better in self.higher_is_better.items()
        }


def make_eval_set(samples: Sequence[Sample], metrics: Sequence[str], max_samples: int) -> EvalSet:
    """Select at most `max_samples` samples at even distances, and check that the metrics can be computed on them."""
    keys = list(dict.fromkeys(sample.key for sample in samples))
    step = max(len(keys) / max(max_samples, 1), 1)
    selected_keys = {keys[int(index * step)] for index in range(min(max_samples, len(keys)))}
    selected = [sample for sample in samples if sample.key in selected_keys]
    available = score_by_name(selected, [_perfect_prediction(sample) for sample in selected])
    for name in metrics:
        if name not in available:
            hint = closest_name_hint(name, ["loss", *available])
            raise OptionError(f"`--eval_metrics {name}` is not a metric of these tasks", hint)
        if not math.isfinite(available[name].value):
            raise OptionError(
                f"`{name}` cannot be computed on a validation set of size {len(selected_keys)}",
                "add validation images, such as `--val_dataset 0.2`",
            )
    return EvalSet(selected, {name: available[name].higher_is_better for name in metrics})


def score_by_name(samples: Sequence[Sample], predictions: Iterable[Prediction]) -> dict[str, EvalScore]:
    """Compute all metrics by name: the mean over the tasks, and of several tasks also each one, such as `od_f1`."""
    rows = [PredictionRow(prediction, Path(prediction.file_name)) for prediction in predictions]
    matched = match_predictions(rows, ResolvedDataset("the validation set", None, list(samples)))
    tasks = score_tasks(matched.examples, num_resamples=0)
    found: dict[str, list[EvalScore]] = {}
    for task in tasks:
        for name, value in task.scores.values().items():
            score = EvalScore(value, task.scores.metrics[name].higher_is_better)
            found.setdefault(name, []).append(score)
            if len(tasks) > 1:
                found.setdefault(f"{task.task}_{name}", []).append(score)
    return {name: _mean(scores) for name, scores in found.items()}


def _perfect_prediction(sample: Sample) -> Prediction:
    return Prediction(sample.id, sample.task, sample.input, sample.target or "")


def _mean(scores: Sequence[EvalScore]) -> EvalScore:
    values = [score.value for score in scores if math.isfinite(score.value)]
    return EvalScore(sum(values) / len(values) if values else math.nan, scores[0].higher_is_better)


def _or_worst(score: EvalScore | None, higher_is_better: bool) -> float:
    if score is None or not math.isfinite(score.value):
        return 0.0 if higher_is_better else 1.0
    return score.value
