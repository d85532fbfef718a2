"""A stream that is shared out: each taker gets its samples, shuffled, over and over, and none that another gets.

Everything follows from the seed, the epoch and the share, so a taker that starts at its n-th sample goes on where one
that took n stopped. Where the parts can be dealt out evenly, a share reads its own alone; else all shares read all
parts, and of the samples each takes every so manieth.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple, TypeVar

from florence2.data.sample import Sample, Skipped
from florence2.data.streams.shard_readers import ShardedSource
from florence2.data.validate import OnMissing
from florence2.errors import UserError

BUFFER = 512  # samples among which the next is drawn

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """One taker, and of how many."""

    index: int
    num_shards: int


SINGLE_SHARD = Shard(0, 1)


class StreamItem(NamedTuple):
    """A sample that comes by: in which epoch, and as which of its share since the start."""

    epoch: int
    position: int
    sample: Sample


@dataclass(frozen=True, eq=False)
class SampleStream:
    """Samples in turn; `missing` says what becomes of those without an answer."""

    source: ShardedSource
    seed: int = 0
    on_missing: OnMissing = "error"
    buffer_size: int = BUFFER

    def items(self, share: Shard = SINGLE_SHARD, start: int = 0) -> Iterator[StreamItem]:
        """Give a share's samples without end, epoch after epoch, from its `start`-th on."""
        place = 0
        for epoch in count():
            before = place
            for sample in self.epoch(epoch, share):
                if place >= start:
                    yield StreamItem(epoch, place, sample)
                place += 1
            if place == before:
                raise UserError(
                    f"{self.source.name} holds too few samples for {share.num_shards} takers",
                    "pass a smaller `--num_workers`",
                )

    def epoch(self, epoch: int, share: Shard = SINGLE_SHARD) -> Iterator[Sample]:
        """Give a share's samples of one epoch."""
        order = list(range(self.source.num_shards))
        random.Random(f"parts/{self.seed}/{epoch}").shuffle(order)
        if len(order) % share.num_shards == 0:
            mine = self._samples(order[share.index :: share.num_shards])
        else:
            mine = islice(self._samples(order), share.index, None, share.num_shards)
        chance = random.Random(f"stream/{self.seed}/{epoch}/{share.index}/{share.num_shards}")
        return buffer_shuffle(mine, self.buffer_size, chance)

    def first(self, number: int) -> list[Sample]:
        """Give the first samples, in their own order."""
        return list(islice(self._samples(range(self.source.num_shards)), number))

    def _samples(self, parts: Iterable[int]) -> Iterator[Sample]:
        for part in parts:
            for each in self.source.read(part):
                if isinstance(each, Sample):
                    yield each
                elif self.on_missing == "error":
                    raise _refusal(each)


def _refusal(skipped: Skipped) -> UserError:
    mend = f"{skipped.hint}, or pass --on_missing skip" if skipped.hint else "pass --on_missing skip to leave such out"
    return UserError(f"{skipped.where}: among the pictures that {skipped.reason}", mend)


def buffer_shuffle(items: Iterable[Item], buffer: int, chance: random.Random) -> Iterator[Item]:
    """Give items in another order: each is drawn from those that came and were not given yet, `buffer` at most."""
    held: list[Item] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        which = chance.randrange(buffer)
        given, held[which] = held[which], item
        yield given
    chance.shuffle(held)
    yield from held
