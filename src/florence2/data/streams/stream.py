"""A shuffled, endless stream of samples, split into disjoint shards for the workers of all processes.

The order depends only on the seed, the epoch and the shard, so a stream that starts at sample n continues one that
stopped after n samples. Where the source's shards can be divided evenly, each worker reads its own ones alone; else
every worker reads all of them and takes every n-th sample.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple, TypeVar

from florence2.data.columns import DatasetRow, samples_from_rows
from florence2.data.sample import SENTENCE_REASONS, Sample, Skipped, SkipReason
from florence2.data.streams.shard_readers import ShardedSource
from florence2.data.validate import ALWAYS_SKIPPED, OnMissing, skip_hint
from florence2.errors import DatasetError
from florence2.log import count_kinds, count_noun, logger, name_columns

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
        unread = UnreadCounter(self.source.name)
        samples = list(islice(self._samples(range(self.source.num_shards), unread=unread), number))
        unread.log(f" in the first {count_noun(len(samples), 'sample')}")
        return samples

    def _samples(
        self, indices: Iterable[int], is_counted: bool = False, unread: "UnreadCounter | None" = None
    ) -> Iterator[Sample]:
        """Read shards; with `is_counted`, log the numbers 1, 10, 100, ... of skipped samples, and the last."""
        num_skipped = 0
        first: Skipped | None = None
        unread = unread or UnreadCounter(self.source.name, is_logged=is_counted)
        for index in indices:
            rows = unread.count(self.source.reader(index)())
            for item in self._shard_items(rows):
                if isinstance(item, Sample):
                    unread.count_doubts(item)
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
        if is_counted:
            unread.log("")

    def _shard_items(self, rows: Iterable[DatasetRow]) -> Iterator[Sample | Skipped]:
        """Read a shard; one that cannot be read to its end is skipped from there, unless missing samples are errors."""
        try:
            yield from samples_from_rows(rows, self.source.columns, "")
        except DatasetError as error:
            if self.on_missing == "error":
                hint = "pass `--on_missing skip` to leave the shard out"
                raise DatasetError(error.what, f"{error.hint}, or {hint}" if error.hint else hint) from None
            yield Skipped("", SkipReason.MALFORMED, error.what, error.hint)

    def _log_skipped(self, number: int, first: Skipped, when: str) -> None:
        name = first.where if first.reason in SENTENCE_REASONS else f"{first.where}, of those that {first.reason}"
        logger.warning(f"{self.source.name}: skipped {count_noun(number, 'sample')}{when}, the first: {name}")


class UnreadCounter:
    """Counts the columns, objects and files of a stream that are not read; `is_logged` logs 100, 1000, ... of them."""

    def __init__(self, name: str, *, is_logged: bool = False) -> None:
        """Start with nothing; `name` is that of the source."""
        self._name, self._is_logged = name, is_logged
        self._columns: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._doubts: Counter[str] = Counter()
        self._num_rows = 0
        self._first = self._first_doubt = ""

    def count(self, rows: Iterable[DatasetRow]) -> Iterator[DatasetRow]:
        """Yield rows, and count what is not read of them."""
        for row in rows:
            if row.unread_columns or row.ignored_shapes:
                self._columns.update(row.unread_columns)
                self._kinds.update(row.ignored_shapes)
                self._num_rows += 1
                self._first = self._first or row.where
                if self._is_logged and self._num_rows >= 100 and str(self._num_rows).strip("0") == "1":
                    self.log(" so far")
            yield row

    def count_doubts(self, sample: Sample) -> None:
        """Count what is probably wrong with the target of a sample."""
        if sample.doubts:
            self._doubts.update(sample.doubts)
            self._first_doubt = self._first_doubt or sample.id

    def log(self, when: str) -> None:
        """Log the counts, unless they are zero."""
        if self._doubts:
            doubts = count_kinds(self._doubts.elements())
            logger.warning(f"{self._name}: doubtful{when}: {doubts}, the first in {self._first_doubt}")
        parts = [f"columns {name_columns(self._columns)}"] if self._columns else []
        parts += [count_kinds(self._kinds.elements())] if self._kinds else []
        if parts:
            logger.warning(f"{self._name}: not read{when}: {'; '.join(parts)}; the first in {self._first}")


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
