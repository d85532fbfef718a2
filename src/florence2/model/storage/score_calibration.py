"""The calibration of object scores, which a model's folder may have: `score_calibration.json`.

It maps the probabilities of an object's label and location to the fraction of such objects that are right: with the
same label and an IoU of at least 0.5. It holds for one set of weights on images like those that it was fitted on, so
that neither an adapter nor a fine-tuned model inherits it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from florence2.errors import CheckpointError

FILE_NAME = "score_calibration.json"
_SMALLEST = 1e-6
_MOST_ODDS = 50.0


@dataclass(frozen=True)
class TaskCalibration:
    """A logistic regression of one task's objects on the log-odds of label and location."""

    label: float
    location: float
    bias: float

    def apply(self, label: float | None, location: float) -> float:
        """Return the calibrated score; an object without a label is scored by its location."""
        odds = self.bias + self.location * log_odds(location)
        odds += self.label * log_odds(label) if label is not None else 0.0
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
            content = json.loads(path.read_text(encoding="utf-8"))["tasks"]
            return cls({name: TaskCalibration(**_numbers(row)) for name, row in content.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path} is not a calibration of scores", "remove it, or copy it again") from None

    def apply(self, task: str, label: float | None, location: float) -> float | None:
        """Return the calibrated score of an object; None for a task without a calibration."""
        calibration = self.tasks.get(task)
        return None if calibration is None else calibration.apply(label, location)


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability, away from 0 and 1."""
    clipped = min(max(probability, _SMALLEST), 1 - _SMALLEST)
    return math.log(clipped / (1 - clipped))


def _numbers(row: Mapping[str, float]) -> dict[str, float]:
    numbers = {name: float(row[name]) for name in ("label", "location", "bias")}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("not finite")
    return numbers
