"""Metrics over weighted examples, and their confidence intervals by bootstrap.

A metric is computed for any weights of the examples. The reported value weighs each example by 1; a bootstrap
resample weighs it by how often its image was drawn. Shapes: B resamples, E examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from florence2.errors import MissingPackageError

Floats = NDArray[np.float64]

_BLOCK_SIZE, _MAX_WEIGHTS = 50, 5_000_000  # resamples whose weights are in memory at once, and the most weights


class Metric(Protocol):
    """A metric that is computed for any weights of the examples."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""

    def compute(self, weights_BE: Floats) -> Floats:
        """Compute the value for each row of weights; nan where the denominator is 0."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """A sum over examples divided by another sum: means, precision, recall, F1, error rates."""

    numerator_E: Floats
    denominator_E: Floats
    higher_is_better: bool = True

    def compute(self, weights_BE: Floats) -> Floats:
        """Compute the value for each row of weights."""
        denominator_B = weights_BE @ self.denominator_E
        undefined_B = np.full_like(denominator_B, np.nan)
        return np.divide(weights_BE @ self.numerator_E, denominator_B, out=undefined_B, where=denominator_B > 0)


def ratio(numerator: ArrayLike, denominator: ArrayLike, *, higher_is_better: bool = True) -> Ratio:
    """Create the ratio of two sums from one number per example for each."""
    return Ratio(np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float), higher_is_better)


def mean(values: ArrayLike) -> Ratio:
    """Create the mean of one number per example."""
    return ratio(values, np.ones_like(values, dtype=float))


def precision_recall_f1(
    matches: Sequence[int], predictions: Sequence[int], references: Sequence[int], prefix: str = ""
) -> dict[str, Metric]:
    """Create F1, precision and recall from each example's number of matched, predicted and reference objects."""
    f1 = [2 * m for m in matches], [p + r for p, r in zip(predictions, references, strict=True)]
    return {
        f"{prefix}f1": ratio(*f1),
        f"{prefix}precision": ratio(matches, predictions),
        f"{prefix}recall": ratio(matches, references),
    }


@dataclass(frozen=True, eq=False)
class MetricValues:
    """The metrics of one task's examples.

    `quality_E` ranks the examples from 0, the worst, to 1, perfect. `library_values` has the values that a library
    computed itself, which replace those of `metrics`. `labels` has one score per label.
    """

    metrics: dict[str, Metric]
    quality_E: Floats
    library_values: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Compute each metric over all examples; nan where the denominator is 0."""
        ones = np.ones((1, len(self.quality_E)))
        return {
            name: self.library_values.get(name, float(metric.compute(ones)[0])) for name, metric in self.metrics.items()
        }


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value with its 95% interval; a number that does not exist is None."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def confidence_intervals(
    scores: MetricValues, images_E: NDArray[np.int64], num_resamples: int
) -> dict[str, ConfidenceInterval]:
    """Compute each metric with its interval; a resample draws images, each with all its examples."""
    resampled = _resample([scores], images_E, num_resamples)[0]
    return {name: _interval(value, resampled.get(name)) for name, value in scores.values().items()}


def difference(
    old: MetricValues, new: MetricValues, images_E: NDArray[np.int64], num_resamples: int
) -> dict[str, ConfidenceInterval]:
    """Compute the change of each metric between two predictions of the same examples, on the same resamples.

    `p` is twice the fraction of resamples in which the change has the other sign.
    """
    resampled_old, resampled_new = _resample([old, new], images_E, num_resamples)
    before, after = old.values(), new.values()
    changes = {}
    for name in (name for name in before if name in after):
        changes_B = resampled_new[name] - resampled_old[name] if resampled_old else None
        changes[name] = _interval(after[name] - before[name], changes_B, paired=True)
    return changes


def _resample(
    all_scores: Sequence[MetricValues], images_E: NDArray[np.int64], num_resamples: int
) -> list[dict[str, Floats]]:
    if num_resamples <= 0 or len(np.unique(images_E)) < 2:
        return [{} for _ in all_scores]
    all_blocks: list[dict[str, list[Floats]]] = [{name: [] for name in scores.metrics} for scores in all_scores]
    for weights_BE in _resample_weights(images_E, num_resamples):
        for scores, blocks in zip(all_scores, all_blocks, strict=True):
            for name, metric in scores.metrics.items():
                blocks[name].append(metric.compute(weights_BE))
    return [{name: np.concatenate(values) for name, values in blocks.items()} for blocks in all_blocks]


def _resample_weights(images_E: NDArray[np.int64], num_resamples: int) -> Iterator[Floats]:
    rng = np.random.default_rng(0)
    _, index_E = np.unique(images_E, return_inverse=True)
    count = int(index_E.max()) + 1
    block_size = max(1, min(_BLOCK_SIZE, _MAX_WEIGHTS // len(index_E)))
    for start in range(0, num_resamples, block_size):
        rows = min(block_size, num_resamples - start)
        counts = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(rows)]
        yield np.stack(counts).astype(float)[:, index_E]


def _interval(value: float, resampled_B: Floats | None, *, paired: bool = False) -> ConfidenceInterval:
    finite_B = np.empty(0) if resampled_B is None else resampled_B[np.isfinite(resampled_B)]
    if not np.isfinite(value) or len(finite_B) == 0:
        return ConfidenceInterval(float(value) if np.isfinite(value) else None)
    low, high = np.percentile(finite_B, [2.5, 97.5])
    p = min(1.0, 2 * float(min((finite_B <= 0).mean(), (finite_B >= 0).mean()))) if paired else None
    return ConfidenceInterval(float(value), float(low), float(high), p)


def import_extra(module: str) -> Any:
    """Import a module of the `evaluate` extra; raise MissingPackageError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise MissingPackageError(
            f"this metric needs `{package}`", "run `pip install 'florence2[evaluate]'`"
        ) from error
