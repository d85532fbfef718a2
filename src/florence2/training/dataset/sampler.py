"""The sampler: the order of samples in an epoch, with weights and grouping by length."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch.utils.data import Sampler

BATCHES_PER_GROUP = 50  # batches that are sorted by length together
RESOLUTION = 2**20  # random offsets are multiples of its inverse, a power of two, so that sums of integers are exact


class SampleDraw(NamedTuple):
    """One draw of a sample.

    `global_index` counts the draws since the start of the training. `repeat` counts the earlier draws of the same
    sample in this epoch.
    """

    epoch: int
    global_index: int
    sample_index: int
    repeat: int = 0


class WeightedSampler(Sampler[SampleDraw]):
    """Draws samples in an order that follows from the seed and the epoch.

    `weights` holds the number of times an epoch draws each sample; without it, each is drawn once. `lengths` holds the
    length of each sample; with it, samples of similar length are drawn together, `batch_size` at a time.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.lengths = lengths
        self.batch_size = batch_size
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples if self.weights is None else num_draws(self.weights)

    def __iter__(self) -> Iterator[SampleDraw]:
        start, counts = self.epoch * len(self), Counter[int]()
        for offset, index in enumerate(self._indices()):
            yield SampleDraw(self.epoch, start + offset, index, counts[index])
            counts[index] += 1

    def _indices(self) -> list[int]:
        rng = random.Random(f"order/{self.seed}/{self.epoch}")
        indices = list(range(self.num_samples)) if self.weights is None else _weighted_indices(self.weights, rng)
        rng.shuffle(indices)
        return indices if self.lengths is None else self._group_by_length(indices, self.lengths, rng)

    def _group_by_length(self, indices: list[int], lengths: Sequence[int], rng: random.Random) -> list[int]:
        size, group_size = self.batch_size, BATCHES_PER_GROUP * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(indices), group_size):
            group = sorted(indices[start : start + group_size], key=lengths.__getitem__, reverse=True)
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        full_batches = [batch for batch in batches if len(batch) == size]
        rng.shuffle(full_batches)
        partial_batches = [batch for batch in batches if len(batch) < size]
        return [index for batch in (*full_batches, *partial_batches) for index in batch]


def num_draws(weights: Sequence[float]) -> int:
    """Return the number of samples that an epoch draws: the sum of the weights, rounded."""
    return sum(map(math.floor, weights)) + round(sum(weight - math.floor(weight) for weight in weights))


def _weighted_indices(weights: Sequence[float], rng: random.Random) -> list[int]:
    """Repeat each index by the integer part of its weight, and once more with the probability of the fractional part.

    Systematic sampling draws the extra indices: the fractions lie end to end on a line, and an index is drawn where its
    fraction contains one of equally spaced points with a random offset. So every epoch has the same number of samples.
    """
    indices = [index for index, weight in enumerate(weights) for _ in range(math.floor(weight))]
    fractions = [(index, weight - math.floor(weight)) for index, weight in enumerate(weights) if weight % 1]
    num_extra, total = num_draws(weights) - len(indices), sum(fraction for _, fraction in fractions)
    rng.shuffle(fractions)
    start = rng.randrange(RESOLUTION) / RESOLUTION
    ends = [start + num_extra * end / total for end in accumulate(fraction for _, fraction in fractions)]
    ends[-1:] = [start + num_extra] if ends else []  # exact, without the rounding errors of the sum
    for (index, _), low, high in zip(fractions, [start, *ends], ends, strict=False):
        indices += [index] * (math.floor(high) - math.floor(low))
    return indices
