"""The shards in work: which samples of which shard are requested, and which shards are done.

One thread reads the samples of one shard after another, another one receives the predictions; the engine never waits
between two shards.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.errors import DatasetError
from florence2.pipeline.class_splitter import ClassSplitter

ReadShard = Callable[[int], Iterator[Sample]]


@dataclass(eq=False)
class ShardInWork:
    """A shard between the reading of its first sample and its last prediction; `error` says why reading failed."""

    index: int
    classes: ClassSplitter
    num_pending: int = 0
    is_read: bool = False
    error: str | None = None

    @property
    def is_done(self) -> bool:
        """Return whether no prediction is missing."""
        return self.is_read and self.num_pending == 0


class ShardTracker:
    """Assigns predictions to shards."""

    def __init__(self, shards: Iterable[int], read: ReadShard, make_classes: Callable[[], ClassSplitter]) -> None:
        """Take the shards to predict, and a function that reads the samples of one; a DatasetError fails its shard."""
        self._shards, self._read, self._make_classes = shards, read, make_classes
        self._open: list[ShardInWork] = []
        self._pending: dict[SampleKey, deque[tuple[ShardInWork, Sample]]] = {}
        self._lock = threading.Lock()

    def requests(self) -> Iterator[Sample]:
        """Yield the samples of all shards."""
        for index in self._shards:
            shard = ShardInWork(index, self._make_classes())
            with self._lock:
                self._open.append(shard)
            try:
                for sample in shard.classes.split(self._read(index)):
                    self._register(shard, sample)
                    yield sample
            except DatasetError as error:
                shard.error = error.line
            shard.is_read = True

    def assign(self, predictions: Iterable[Prediction]) -> Iterator[tuple[ShardInWork, Prediction]]:
        """Yield each prediction with its shard; those of single classes are merged."""
        for prediction in predictions:
            shard, request = self._take(prediction)
            if request.follow_up is not None and prediction.error is None:
                for follow_up in request.follow_up(prediction):
                    self._register(shard, follow_up)
            merged = list(shard.classes.merge([prediction]))
            for each in merged[:-1]:
                yield shard, each
            with self._lock:
                shard.num_pending -= 1
            if merged:
                yield shard, merged[-1]

    def pop_done(self) -> list[ShardInWork]:
        """Remove and return the shards whose predictions have all been yielded."""
        with self._lock:
            done = [shard for shard in self._open if shard.is_done]
            self._open = [shard for shard in self._open if not shard.is_done]
        return done

    def _register(self, shard: ShardInWork, sample: Sample) -> None:
        with self._lock:
            others = self._pending.setdefault(sample.key, deque())
            if others and others[0][1].image != sample.image:
                raise DatasetError(f"the id {sample.id} names another image in a shard that is in work, too")
            others.append((shard, sample))
            shard.num_pending += 1

    def _take(self, prediction: Prediction) -> tuple[ShardInWork, Sample]:
        with self._lock:
            entries = self._pending[prediction.key]
            entry = entries.popleft()
            if not entries:
                del self._pending[prediction.key]
            return entry
