"""Which sample comes when: an order that seed and epoch alone decide, each sample as often as its weight says.

Knows samples by their number and nothing of what they hold.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch.utils.data import Sampler

GROUP = 50  # batches that are sorted together when pictures are grouped by length
FINE = 2**20  # steps in which chance is drawn, so that sums of whole numbers stay whole


class SampleDraw(NamedTuple):
    """One sample at its turn: `seen` counts the samples drawn before it, from the start of the training.

    `again` counts how often it was drawn before in the same epoch.
    """

    epoch: int
    global_index: int
    sample_index: int
    repeat: int = 0


class WeightedSampler(Sampler[SampleDraw]):
    """Draw every sample as often as its weight says in an epoch, in an order that only seed and epoch decide.

    Without `weights` that is once each. With `lengths` (one for each sample), samples of like length come together,
    `batch` at a time.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        batch: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.size = size
        self.seed = seed
        self.lengths = lengths
        self.batch = batch
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size if self.weights is None else num_draws(self.weights)

    def __iter__(self) -> Iterator[SampleDraw]:
        start, times = self.epoch * len(self), Counter[int]()
        for place, index in enumerate(self._indices()):
            yield SampleDraw(self.epoch, start + place, index, times[index])
            times[index] += 1

    def _indices(self) -> list[int]:
        chance = random.Random(f"order/{self.seed}/{self.epoch}")
        indices = list(range(self.size)) if self.weights is None else _weighted(self.weights, chance)
        chance.shuffle(indices)
        return indices if self.lengths is None else self._grouped(indices, self.lengths, chance)

    def _grouped(self, indices: list[int], lengths: Sequence[int], chance: random.Random) -> list[int]:
        many = GROUP * self.batch
        batches: list[list[int]] = []
        for start in range(0, len(indices), many):
            alike = sorted(indices[start : start + many], key=lengths.__getitem__, reverse=True)
            batches += [alike[at : at + self.batch] for at in range(0, len(alike), self.batch)]
        whole = [batch for batch in batches if len(batch) == self.batch]
        chance.shuffle(whole)
        return [index for batch in (*whole, *(b for b in batches if len(b) < self.batch)) for index in batch]


def num_draws(weights: Sequence[float]) -> int:
    """Count the samples of an epoch: the sum of the weights, rounded."""
    return sum(map(math.floor, weights)) + round(sum(weight - math.floor(weight) for weight in weights))


def _weighted(weights: Sequence[float], chance: random.Random) -> list[int]:
    """Draw each sample as often as the whole of its weight, and what is behind the point by chance.

    The chances are so linked that the number of samples is the same in every epoch.
    """
    indices = [index for index, weight in enumerate(weights) for _ in range(math.floor(weight))]
    rests = [(index, weight - math.floor(weight)) for index, weight in enumerate(weights) if weight % 1]
    many, total = num_draws(weights) - len(indices), sum(rest for _, rest in rests)
    chance.shuffle(rests)
    start = chance.randrange(FINE) / FINE
    ends = [start + many * passed / total for passed in accumulate(rest for _, rest in rests)]
    ends[-1:] = [start + many] if ends else []  # exactly, whatever was lost in adding up
    for (index, _), low, high in zip(rests, [start, *ends], ends, strict=False):
        indices += [index] * (math.floor(high) - math.floor(low))
    return indices
