"""Read tasks: each reads one shard, and yields its images in packs, one row of a Ray dataset each."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import Any

from florence2.data.sample import Sample, SampleKey
from florence2.errors import DatasetError
from florence2.recipes.shards.shard_samples import IgnoredFiles

MAX_PACK_BYTES = 32 * 2**20

ImageSamples = list[Sample]  # the samples of one image


@dataclass(frozen=True)
class PackReader:
    """Reads a shard in packs of images; samples that are `predicted` are left out."""

    shard: int
    read: Callable[[IgnoredFiles], Iterator[Sample]]
    pack_size: int
    predicted: frozenset[SampleKey] = frozenset()

    def __call__(self) -> Iterator[Any]:
        """Yield a table of one row for each pack; the last one has what was not read, and why reading failed."""
        number, error = 0, ""
        pending: list[ImageSamples] = []
        ignored = IgnoredFiles()
        packs = self._packs(ignored)
        while True:
            try:
                following = next(packs, None)
            except DatasetError as problem:
                following, error = None, problem.line
            if following is None:
                yield self._table(number, pending, ignored, is_last=True, error=error)
                return
            if pending:
                yield self._table(number, pending, ignored)
                number += 1
            pending = following

    def _packs(self, ignored: IgnoredFiles) -> Iterator[list[ImageSamples]]:
        pack: list[ImageSamples] = []
        num_bytes = 0
        for _, group in groupby(self.read(ignored), key=lambda sample: sample.id):
            samples = [sample for sample in group if sample.key not in self.predicted]
            if not samples:
                continue
            size = len(samples[0].image) if isinstance(samples[0].image, bytes) else 0
            if pack and (len(pack) == self.pack_size or num_bytes + size > MAX_PACK_BYTES):
                yield pack
                pack, num_bytes = [], 0
            pack.append(samples)
            num_bytes += size
        if pack:
            yield pack

    def _table(
        self, number: int, pack: list[ImageSamples], ignored: IgnoredFiles, *, is_last: bool = False, error: str = ""
    ) -> Any:
        row = {"shard": self.shard, "pack": number, "is_last": is_last, "error": error, "samples": pickle.dumps(pack)}
        row["ignored"] = pickle.dumps(ignored if is_last else None)
        return import_module("pyarrow").Table.from_pylist([row])


def packs_dataset(ray: Any, readers: Sequence[PackReader], read_cpus: float) -> Any:
    """Return a Ray dataset whose read tasks are the readers."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    metadata = BlockMetadata(None, None, None, None)

    class ShardDatasource(Datasource):  # type: ignore[misc]
        """The shards as a source of Ray Data."""

        def estimate_inmemory_data_size(self) -> int | None:
            """Return None: the size is not known."""
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:  # noqa: ARG002
            """Return a read task for each shard."""
            return [ReadTask(reader, metadata) for reader in readers]

    return ray.data.read_datasource(ShardDatasource(), override_num_blocks=len(readers), num_cpus=read_cpus)
