"""The calibration of object scores, which a model's folder may have: `score_calibration.json`.

It maps the score of an object to the fraction of such objects that are right: with the same label and an IoU of at
least 0.5. It keeps their order. It holds for one set of weights on images like those that it was fitted on, so that
neither an adapter nor a fine-tuned model inherits it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.errors import CheckpointError
from florence2.files import parse_json

FILE_NAME = "score_calibration.json"
_SMALLEST = 1e-6
_MOST_ODDS = 50.0


@dataclass(frozen=True)
class TaskCalibration:
    """A logistic regression of one task's objects on the log-odds of their scores."""

    scale: float
    bias: float

    def apply(self, score: float) -> float:
        """Return the calibrated score."""
        odds = self.bias + self.scale * log_odds(score)
        return 1 / (1 + math.exp(-min(max(odds, -_MOST_ODDS), _MOST_ODDS)))


@dataclass(frozen=True)
class ScoreCalibration:
    """The calibrations of a model by the name of the task; the scores of other tasks stay as they are."""

    tasks: Mapping[str, TaskCalibration]

    @classmethod
    def read(cls, folder: Path) -> ScoreCalibration | None:
        """Read the calibration of a model's folder; None where it has none."""
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            content = parse_json(path.read_text(encoding="utf-8"))["tasks"]
            return cls({name: _task_calibration(row) for name, row in content.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path} is not a calibration of scores", "remove it, or copy it again") from None

    def apply(self, task: str, score: float) -> float:
        """Return the calibrated score of an object; the same score for a task without a calibration."""
        calibration = self.tasks.get(task)
        return score if calibration is None else calibration.apply(score)


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability, away from 0 and 1."""
    clipped = min(max(probability, _SMALLEST), 1 - _SMALLEST)
    return math.log(clipped / (1 - clipped))


def _task_calibration(row: Mapping[str, Any]) -> TaskCalibration:
    scale, bias = float(row["scale"]), float(row["bias"])
    if not (math.isfinite(scale) and math.isfinite(bias) and scale > 0):
        raise ValueError("a calibration keeps the order of scores")
    return TaskCalibration(scale, bias)
