"""What can be streamed, in parts that can be read apart from each other: tars, and `datasets` here or on the hub.

A picture is not decoded before it is opened: of a tar it is known where it lies, of a row its bytes are held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from florence2.data import hub
from florence2.data.columns import ColumnMapping, samples_or_skipped
from florence2.data.folder import display_path
from florence2.data.formats.shards import TarSource, find_shards, read_tar
from florence2.data.image import ImageError, ImageSource
from florence2.data.resolve import split_spec
from florence2.data.sample import Sample, Skipped
from florence2.data.tables import Row, is_table_name
from florence2.errors import UserError

_TABLES = ("*.parquet", "metadata.*")  # what makes a folder one that `datasets` can stream


class ShardedSource(Protocol):
    """A source in parts; each can be read on its own, always in the same order."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def num_shards(self) -> int: ...  # noqa: D102

    def read(self, part: int) -> Iterator[Sample | Skipped]: ...  # noqa: D102


def find_sharded_source(spec: str, columns: ColumnMapping, *, offline: bool = False) -> ShardedSource:
    """Find what can be streamed under a path or a name, which may end in `:split`; refuse what is a list anyway."""
    name, split = split_spec(spec, None)
    path = Path(name).expanduser()
    if tars := None if hub.is_saved_dataset(path) else find_shards(name):
        return TarShards(tars, columns)
    if path.is_file() and not (path.suffix.lower() == ".parquet" and hub.parquet_has_images(path)):
        raise UserError(f"{path} is a list, which is read at once anyway", "leave `--streaming` out")
    if path.is_dir() and not (hub.is_saved_dataset(path) or any(next(path.rglob(name), None) for name in _TABLES)):
        raise UserError(
            f"{display_path(path)} holds neither tars nor parquet files", "leave `--streaming` out to list it"
        )
    if not path.exists() and (is_table_name(name) or not hub.is_hub_id(name)):
        raise UserError(f"{path} does not exist", "a dataset of the hub is named `user/name`")
    dataset = hub.select_split(hub.stream_hub_dataset(name, split, offline=offline), name, split)
    dataset = dataset if dataset.features else dataset._resolve_features()
    column = hub.find_image_column(dataset, name, columns.image)
    hub.require_text(dataset, name, columns)
    return DatasetShards(name, hub.without_decoding(dataset, column), columns, column)


@dataclass(frozen=True)
class TarShards:
    """Tars, each a part."""

    tars: TarSource
    columns: ColumnMapping

    @property
    def name(self) -> str:
        """Name the source as the user did."""
        return self.tars.name

    @property
    def num_shards(self) -> int:
        """Count the tars."""
        return len(self.tars.paths)

    def read(self, part: int) -> Iterator[Sample | Skipped]:
        """Read a tar as far as it is wanted."""
        path = self.tars.paths[part]
        for told in read_tar(path):
            image = Sample(f"{path.name}/{told.name}", told.image, "")
            for row in told.rows:
                where = f"{path}: {told.name}"
                yield from samples_or_skipped({**row, "file_name": image.id}, where, self.columns, image)


@dataclass(frozen=True, eq=False)
class DatasetShards:
    """A streaming dataset of `datasets`, in its own shards."""

    name: str
    dataset: Any
    columns: ColumnMapping
    column: str

    @property
    def num_shards(self) -> int:
        """Count the shards."""
        return int(self.dataset.num_shards)

    def read(self, part: int) -> Iterator[Sample | Skipped]:
        """Read a shard as far as it is wanted."""
        for index, row in enumerate(_rows(self.dataset.shard(num_shards=self.num_shards, index=part))):
            name = f"{self.dataset.split or 'row'}/{part}/{index}"
            where = f"{self.name} {name}"
            image = Sample(name, _image(row.pop(self.column)), "")
            yield from samples_or_skipped(row, where, self.columns, image)


def _rows(shard: Any) -> Iterator[Row]:
    """Read all rows, wherever: iterated itself, a dataset gives each of torch's workers but a part of them."""
    for batch in shard.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


@dataclass(frozen=True)
class RemoteImage:
    """A picture that lies where its row says; called, it gives the bytes."""

    url: str

    def __call__(self) -> ImageSource:
        """Read the bytes."""
        from datasets.utils.file_utils import xopen

        try:
            with xopen(self.url, "rb") as file:
                return bytes(file.read())
        except Exception as error:  # network, hub, file systems: each has errors of its own
            raise ImageError(f"{self.url} cannot be read: {error}") from None


def _image(stored: Any) -> Any:
    if stored and stored.get("bytes"):
        return bytes(stored["bytes"])
    if not (stored and stored.get("path")):
        return b""  # opened, it is refused by its name
    path = str(stored["path"])
    return Path(path) if "://" not in path else RemoteImage(path)
