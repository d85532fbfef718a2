"""A shuffled, endless stream of samples, split into disjoint shards for the workers of all processes.

The order depends only on the seed, the epoch and the shard, so a stream that starts at sample n continues one that
stopped after n samples. Where the source's shards can be divided evenly, each worker reads its own ones alone; else
every worker reads all of them and takes every n-th sample.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple, TypeVar

from florence2.data.sample import SENTENCE_REASONS, Sample, Skipped
from florence2.data.streams.shard_readers import ShardedSource
from florence2.data.validate import ALWAYS_SKIPPED, OnMissing, skip_hint
from florence2.errors import DatasetError
from florence2.log import count_noun, logger

BUFFER = 512  # samples in the shuffle buffer

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """The part of a stream that one worker reads: its index among `num_shards`."""

    index: int
    num_shards: int


SINGLE_SHARD = Shard(0, 1)


class StreamItem(NamedTuple):
    """A sample with its epoch and its position in the shard since the start."""

    epoch: int
    position: int
    sample: Sample


@dataclass(frozen=True, eq=False)
class SampleStream:
    """A shuffled stream of a source's samples; `on_missing` is the policy for samples without a target."""

    source: ShardedSource
    seed: int = 0
    on_missing: OnMissing = "error"
    buffer_size: int = BUFFER

    def items(self, shard: Shard = SINGLE_SHARD, start: int = 0) -> Iterator[StreamItem]:
        """Yield a shard's samples without end, epoch after epoch, from position `start`."""
        position = 0
        for epoch in count():
            before = position
            for sample in self.epoch(epoch, shard):
                if position >= start:
                    yield StreamItem(epoch, position, sample)
                position += 1
            if position == before:
                raise DatasetError(
                    f"{self.source.name} has too few samples for {shard.num_shards} workers",
                    "pass a smaller `--num_workers`",
                )

    def epoch(self, epoch: int, shard: Shard = SINGLE_SHARD) -> Iterator[Sample]:
        """Yield a shard's samples of one epoch."""
        order = list(range(self.source.num_shards))
        random.Random(f"parts/{self.seed}/{epoch}").shuffle(order)
        if len(order) % shard.num_shards == 0:
            samples = self._samples(order[shard.index :: shard.num_shards], is_counted=epoch == 0)
        else:
            is_counted = epoch == 0 and shard.index == 0
            samples = islice(self._samples(order, is_counted), shard.index, None, shard.num_shards)
        rng = random.Random(f"stream/{self.seed}/{epoch}/{shard.index}/{shard.num_shards}")
        return buffer_shuffle(samples, self.buffer_size, rng)

    def first(self, number: int) -> list[Sample]:
        """Return the first samples in unshuffled order."""
        return list(islice(self._samples(range(self.source.num_shards)), number))

    def _samples(self, indices: Iterable[int], is_counted: bool = False) -> Iterator[Sample]:
        """Read shards; with `is_counted`, log the numbers 1, 10, 100, ... of skipped samples, and the last."""
        num_skipped = 0
        first: Skipped | None = None
        for index in indices:
            for item in self.source.read(index):
                if isinstance(item, Sample):
                    yield item
                elif self.on_missing == "error" and item.reason not in ALWAYS_SKIPPED:
                    raise _skipped_error(item)
                else:
                    num_skipped += 1
                    first = first or item
                    if is_counted and str(num_skipped).strip("0") == "1":
                        self._log_skipped(num_skipped, first, " so far")
        if is_counted and first is not None:
            self._log_skipped(num_skipped, first, "")

    def _log_skipped(self, number: int, first: Skipped, when: str) -> None:
        name = first.where if first.reason in SENTENCE_REASONS else f"{first.where}, of those that {first.reason}"
        logger.warning(f"{self.source.name}: skipped {count_noun(number, 'sample')}{when}, the first: {name}")


def _skipped_error(skipped: Skipped) -> DatasetError:
    what = (
        skipped.where
        if skipped.reason in SENTENCE_REASONS
        else f"{skipped.where}: among the images that {skipped.reason}"
    )
    return DatasetError(what, skip_hint(skipped.hint))


def buffer_shuffle(items: Iterable[Item], buffer_size: int, rng: random.Random) -> Iterator[Item]:
    """Yield items in random order: each is sampled from a buffer of at most `buffer_size` items read so far."""
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        index = rng.randrange(buffer_size)
        sampled, buffer[index] = buffer[index], item
        yield sampled
    rng.shuffle(buffer)
    yield from buffer
