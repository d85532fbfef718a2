"""A score is a number and how sure we are of it: measures over weighted questions, and the bootstrap.

Knows nothing of pictures or tasks. A measure gives the score of any weighting of the questions; the score itself
weighs each by 1, the bootstrap by how often its picture was drawn. Shapes: B drawings, Q questions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from florence2.errors import UserError

Floats = NDArray[np.float64]

_BLOCK, _MOST_WEIGHTS = 50, 5_000_000  # drawings whose weights are held at a time, and how many weights at most


class Metric(Protocol):
    """One score."""

    @property
    def higher_is_better(self) -> bool:
        """Tell whether more is better."""

    def of(self, weights_BQ: Floats) -> Floats:
        """Give the score of each row of weights; nan where there is nothing to divide by."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """A sum over questions divided by another: means, precision, recall, F1, error rates."""

    above_Q: Floats
    below_Q: Floats
    higher_is_better: bool = True

    def of(self, weights_BQ: Floats) -> Floats:
        """Give the score of each row of weights."""
        below_B = weights_BQ @ self.below_Q
        nothing = np.full_like(below_B, np.nan)
        return np.divide(weights_BQ @ self.above_Q, below_B, out=nothing, where=below_B > 0)


def ratio(above: ArrayLike, below: ArrayLike, *, rises: bool = True) -> Ratio:
    """Divide the sum of one list by that of another."""
    return Ratio(np.asarray(above, dtype=float), np.asarray(below, dtype=float), rises)


def mean(values: ArrayLike) -> Ratio:
    """Average one number of each question."""
    return ratio(values, np.ones_like(values, dtype=float))


def counted(hits: Sequence[int], said: Sequence[int], wanted: Sequence[int], prefix: str = "") -> dict[str, Metric]:
    """Make F1, precision and recall from how many objects of each question were right, said and wanted."""
    both = [2 * h for h in hits], [s + w for s, w in zip(said, wanted, strict=True)]
    return {
        f"{prefix}f1": ratio(*both),
        f"{prefix}precision": ratio(hits, said),
        f"{prefix}recall": ratio(hits, wanted),
    }


@dataclass(frozen=True, eq=False)
class MetricValues:
    """All scores of the questions of one task.

    `goodness_Q` puts the questions in order, 0 the worst and 1 perfect. `exact` holds the values of measures that a
    library computed itself, `labels` a score of each label.
    """

    metrics: dict[str, Metric]
    quality_Q: Floats
    library_values: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Give each score; nan where there is nothing to divide by."""
        whole = np.ones((1, len(self.quality_Q)))
        return {name: self.library_values.get(name, float(m.of(whole)[0])) for name, m in self.metrics.items()}


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value and the ends of its 95% interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def confidence_intervals(
    scores: MetricValues, images_Q: NDArray[np.int64], times: int
) -> dict[str, ConfidenceInterval]:
    """Give each score with its interval: pictures are drawn again and again, each with all its questions."""
    drawn = _resampled([scores], images_Q, times)[0]
    return {name: _estimated(value, drawn.get(name)) for name, value in scores.values().items()}


def difference(
    old: MetricValues, new: MetricValues, images_Q: NDArray[np.int64], times: int
) -> dict[str, ConfidenceInterval]:
    """Give by how much each score of the same questions changed; both are measured on the same drawings.

    `p` is the share of drawings on the other side of no change, twice.
    """
    drawn_old, drawn_new = _resampled([old, new], images_Q, times)
    before, after = old.values(), new.values()
    found = {}
    for name in (name for name in before if name in after):
        changes_B = drawn_new[name] - drawn_old[name] if drawn_old else None
        found[name] = _estimated(after[name] - before[name], changes_B, paired=True)
    return found


def _resampled(all_scores: Sequence[MetricValues], images_Q: NDArray[np.int64], times: int) -> list[dict[str, Floats]]:
    if times <= 0 or len(np.unique(images_Q)) < 2:
        return [{} for _ in all_scores]
    parts: list[dict[str, list[Floats]]] = [{name: [] for name in scores.metrics} for scores in all_scores]
    for weights_BQ in _resample_weights(images_Q, times):
        for scores, part in zip(all_scores, parts, strict=True):
            for name, measure in scores.metrics.items():
                part[name].append(measure.of(weights_BQ))
    return [{name: np.concatenate(blocks) for name, blocks in part.items()} for part in parts]


def _resample_weights(images_Q: NDArray[np.int64], times: int) -> Iterator[Floats]:
    rng = np.random.default_rng(0)
    _, index_Q = np.unique(images_Q, return_inverse=True)
    count = int(index_Q.max()) + 1
    block = max(1, min(_BLOCK, _MOST_WEIGHTS // len(index_Q)))
    for start in range(0, times, block):
        rows = min(block, times - start)
        drawn = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(rows)]
        yield np.stack(drawn).astype(float)[:, index_Q]


def _estimated(value: float, drawn_B: Floats | None, *, paired: bool = False) -> ConfidenceInterval:
    known_B = np.empty(0) if drawn_B is None else drawn_B[np.isfinite(drawn_B)]
    if not np.isfinite(value) or len(known_B) == 0:
        return ConfidenceInterval(float(value) if np.isfinite(value) else None)
    low, high = np.percentile(known_B, [2.5, 97.5])
    p = min(1.0, 2 * float(min((known_B <= 0).mean(), (known_B >= 0).mean()))) if paired else None
    return ConfidenceInterval(float(value), float(low), float(high), p)


def extra(module: str) -> Any:
    """Import a package that only scoring needs."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise UserError(f"scoring this needs `{package}`", "pip install 'florence2[evaluate]'") from error
