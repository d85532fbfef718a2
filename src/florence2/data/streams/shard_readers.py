"""Shard readers: sources whose shards can be read independently, either tars or streamed `datasets`.

An image is decoded only when it is opened: a sample holds its position in a tar, or its encoded bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from florence2.data.columns import ColumnMapping, DatasetRow, samples_from_rows
from florence2.data.folders.dataset_features import name_classes
from florence2.data.folders.foreign_jsonl import translate_rows
from florence2.data.sample import Sample, Skipped
from florence2.data.stores.store_path import AnyPath
from florence2.data.streams.shard_paths import common_folder, relative_names
from florence2.data.streams.table_shards import stored_image
from florence2.data.streams.tars.tar_source import TarSource, tar_rows
from florence2.data.tables import Row, dataset_errors


class ShardedSource(Protocol):
    """A source in shards; each can be read independently, always in the same order.

    `root` is the folder or address that ids are relative to, None for `datasets`. `paths` are the files of the shards,
    where each shard is one file. `reader` returns a function that
    reads the rows of a shard and can be sent to another machine.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def root(self) -> str | None: ...  # noqa: D102

    @property
    def paths(self) -> Sequence[AnyPath]: ...  # noqa: D102

    @property
    def num_shards(self) -> int: ...  # noqa: D102

    @property
    def columns(self) -> ColumnMapping: ...  # noqa: D102

    def shard_name(self, index: int) -> str: ...  # noqa: D102

    def reader(self, index: int) -> Callable[[], Iterator[DatasetRow]]: ...  # noqa: D102

    def read(self, index: int) -> Iterator[Sample | Skipped]: ...  # noqa: D102


@dataclass(frozen=True)
class TarShards:
    """Tars, each one shard."""

    tars: TarSource
    columns: ColumnMapping

    @property
    def name(self) -> str:
        """Return the source's name as the user passed it."""
        return self.tars.name

    @property
    def paths(self) -> Sequence[AnyPath]:
        """Return the tars."""
        return self.tars.paths

    @cached_property
    def root(self) -> str:
        """Return what ids are relative to: the folder that all tars are in, or the one tar that is predicted."""
        return str(common_folder(self.tars.paths) if self._has_prefix else self.tars.paths[0])

    @cached_property
    def _names(self) -> list[str]:
        return relative_names(self.tars.paths)

    @property
    def _has_prefix(self) -> bool:
        return self.num_shards > 1 or self.columns.with_targets

    @property
    def num_shards(self) -> int:
        """Return the number of tars."""
        return len(self.tars.paths)

    def shard_name(self, index: int) -> str:
        """Return the path of a tar within the folder that all are in."""
        return self._names[index]

    def reader(self, index: int) -> Callable[[], Iterator[DatasetRow]]:
        """Return a function that reads the rows of a tar; ids begin with its name, unless one tar is predicted."""
        prefix = f"{self.shard_name(index)}/" if self._has_prefix else ""
        return partial(tar_rows, self.tars.paths[index], self.columns, prefix)

    def read(self, index: int) -> Iterator[Sample | Skipped]:
        """Read the samples of a tar lazily."""
        return samples_from_rows(self.reader(index)(), self.columns, "")


@dataclass(frozen=True, eq=False)
class DatasetShards:
    """The shards of an `IterableDataset` of `datasets`."""

    name: str
    dataset: Any
    columns: ColumnMapping
    column: str
    root: None = None
    paths: tuple[AnyPath, ...] = ()

    @property
    def num_shards(self) -> int:
        """Return the number of shards."""
        return int(self.dataset.num_shards)

    def shard_name(self, index: int) -> str:
        """Return the number of a shard."""
        return f"{index:05d}"

    def reader(self, index: int) -> Callable[[], Iterator[DatasetRow]]:
        """Return a function that reads the rows of a shard."""
        return partial(self._translated_rows, index)

    def read(self, index: int) -> Iterator[Sample | Skipped]:
        """Read the samples of a shard lazily."""
        return samples_from_rows(self.reader(index)(), self.columns, "")

    def _translated_rows(self, index: int) -> Iterator[DatasetRow]:
        return translate_rows(self._rows(index), self.columns)

    def _rows(self, index: int) -> Iterator[DatasetRow]:
        rows = _read_rows(self.dataset.shard(num_shards=self.num_shards, index=index), self.name)
        for number, row in enumerate(name_classes(rows, self.dataset.features)):
            name = f"{self.dataset.split or 'row'}/{index}/{number}"
            image = Sample(name, stored_image(row.pop(self.column), name), "")
            yield DatasetRow(f"{self.name} {name}", row, image)


def _read_rows(shard: Any, dataset: str) -> Iterator[Row]:
    """Read all rows in any process; plain iteration would give each of torch's workers only a part of them."""
    with dataset_errors(dataset):
        for batch in shard.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}
