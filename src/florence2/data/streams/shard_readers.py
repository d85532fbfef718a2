"""Shard readers: sources whose shards can be read independently, either tars or streamed `datasets`.

An image is decoded only when it is opened: a sample holds its position in a tar, or its encoded bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from florence2.data import hub
from florence2.data.columns import ColumnMapping, DatasetRow, samples_from_rows
from florence2.data.folders.class_names import name_classes
from florence2.data.folders.foreign_jsonl import translate_rows
from florence2.data.folders.listing import display_path
from florence2.data.image import ImageError, ImageSource
from florence2.data.resolve import split_spec
from florence2.data.sample import Sample, Skipped
from florence2.data.streams.tar_source import TarSource, find_shards, tar_rows
from florence2.data.tables import Row, is_table_name
from florence2.errors import DatasetError

_STREAMABLE_FILES = ("*.parquet", "metadata.*")  # a folder with one of these can be streamed by `datasets`


class ShardedSource(Protocol):
    """A source in shards; each can be read independently, always in the same order."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def num_shards(self) -> int: ...  # noqa: D102

    def read(self, index: int) -> Iterator[Sample | Skipped]: ...  # noqa: D102


def find_sharded_source(spec: str, columns: ColumnMapping, *, offline: bool = False) -> ShardedSource:
    """Find a source that can be streamed by its path or name, which may end in `:split`; reject tables."""
    name, split = split_spec(spec, None)
    path = Path(name).expanduser()
    if tars := None if hub.is_saved_dataset(path) else find_shards(name):
        return TarShards(tars, columns)
    if path.is_file() and not (path.suffix.lower() == ".parquet" and hub.parquet_has_images(path)):
        raise DatasetError(f"{path} is a table, which cannot be streamed", "remove `--streaming`")
    is_streamable = hub.is_saved_dataset(path) or any(next(path.rglob(name), None) for name in _STREAMABLE_FILES)
    if path.is_dir() and not is_streamable:
        raise DatasetError(
            f"{display_path(path)} contains neither tars nor parquet files", "remove `--streaming` to list its images"
        )
    if not path.exists() and (is_table_name(name) or not hub.is_hub_id(name)):
        raise DatasetError(f"{path} does not exist", "pass a dataset on the hub as `user/name`")
    dataset = hub.select_split(hub.stream_hub_dataset(name, split, offline=offline), name, split)
    dataset = dataset if dataset.features else dataset._resolve_features()
    column = hub.find_image_column(dataset, name, columns.image)
    hub.require_text(dataset, name, columns)
    return DatasetShards(name, hub.without_decoding(dataset, column), columns, column)


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
    def num_shards(self) -> int:
        """Return the number of tars."""
        return len(self.tars.paths)

    def read(self, index: int) -> Iterator[Sample | Skipped]:
        """Read a tar lazily."""
        path = self.tars.paths[index]
        return samples_from_rows(tar_rows(path, self.columns, f"{path.name}/"), self.columns, "")


@dataclass(frozen=True, eq=False)
class DatasetShards:
    """The shards of an `IterableDataset` of `datasets`."""

    name: str
    dataset: Any
    columns: ColumnMapping
    column: str

    @property
    def num_shards(self) -> int:
        """Return the number of shards."""
        return int(self.dataset.num_shards)

    def read(self, index: int) -> Iterator[Sample | Skipped]:
        """Read a shard lazily."""
        return samples_from_rows(translate_rows(self._rows(index), self.columns), self.columns, "")

    def _rows(self, index: int) -> Iterator[DatasetRow]:
        rows = _read_rows(self.dataset.shard(num_shards=self.num_shards, index=index))
        for number, row in enumerate(name_classes(rows, self.dataset.features)):
            name = f"{self.dataset.split or 'row'}/{index}/{number}"
            image = Sample(name, _stored_image(row.pop(self.column)), "")
            yield DatasetRow(f"{self.name} {name}", row, image)


def _read_rows(shard: Any) -> Iterator[Row]:
    """Read all rows in any process; plain iteration would give each of torch's workers only a part of them."""
    for batch in shard.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


@dataclass(frozen=True)
class RemoteImage:
    """An image at a URL; a call returns its bytes."""

    url: str

    def __call__(self) -> ImageSource:
        """Read the bytes."""
        from datasets.utils.file_utils import xopen

        try:
            with xopen(self.url, "rb") as file:
                return bytes(file.read())
        except Exception as error:  # network, hub, file systems: each has errors of its own
            raise ImageError(f"{self.url} cannot be read: {error}") from None


def _stored_image(stored: Any) -> Any:
    if stored and stored.get("bytes"):
        return bytes(stored["bytes"])
    if not (stored and stored.get("path")):
        return b""  # raises an error that names the sample when it is opened
    path = str(stored["path"])
    return Path(path) if "://" not in path else RemoteImage(path)
