"""What can be streamed, in parts that can be read apart from each other: tars, and `datasets` here or on the hub.

A picture is not decoded before it is opened: of a tar it is known where it lies, of a row its bytes are held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from florence2.data import hub
from florence2.data.columns import Columns, samples_or_skipped
from florence2.data.folder import shown
from florence2.data.formats.shards import Shards, find_shards, read_tar
from florence2.data.image import PictureError, PictureSource
from florence2.data.resolve import split_off
from florence2.data.sample import Sample, Skipped
from florence2.data.tables import Row, is_table_name
from florence2.errors import UserError

_TABLES = ("*.parquet", "metadata.*")  # what makes a folder one that `datasets` can stream


class Parts(Protocol):
    """A source in parts; each can be read on its own, always in the same order."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def number(self) -> int: ...  # noqa: D102

    def read(self, part: int) -> Iterator[Sample | Skipped]: ...  # noqa: D102


def find_parts(spec: str, columns: Columns, *, offline: bool = False) -> Parts:
    """Find what can be streamed under a path or a name, which may end in `:split`; refuse what is a list anyway."""
    name, split = split_off(spec, None)
    path = Path(name).expanduser()
    if tars := None if hub.is_saved(path) else find_shards(name):
        return TarParts(tars, columns)
    if path.is_file() and not (path.suffix.lower() == ".parquet" and hub.holds_pictures(path)):
        raise UserError(f"{path} is a list, which is read at once anyway", "leave `--streaming` out")
    if path.is_dir() and not (hub.is_saved(path) or any(next(path.rglob(name), None) for name in _TABLES)):
        raise UserError(f"{shown(path)} holds neither tars nor parquet files", "leave `--streaming` out to list it")
    if not path.exists() and (is_table_name(name) or not hub.is_hub_id(name)):
        raise UserError(f"{path} does not exist", "a dataset of the hub is named `user/name`")
    dataset = hub.part_of(hub.streamed(name, split, offline=offline), name, split)
    dataset = dataset if dataset.features else dataset._resolve_features()
    column = hub.picture_column(dataset, name, columns.picture)
    hub.require_text(dataset, name, columns)
    return RowParts(name, hub.encoded(dataset, column), columns, column)


@dataclass(frozen=True)
class TarParts:
    """Tars, each a part."""

    tars: Shards
    columns: Columns

    @property
    def name(self) -> str:
        """Name the source as the user did."""
        return self.tars.name

    @property
    def number(self) -> int:
        """Count the tars."""
        return len(self.tars.paths)

    def read(self, part: int) -> Iterator[Sample | Skipped]:
        """Read a tar as far as it is wanted."""
        path = self.tars.paths[part]
        for told in read_tar(path):
            picture = Sample(f"{path.name}/{told.name}", told.picture, "")
            for row in told.rows:
                where = f"{path}: {told.name}"
                yield from samples_or_skipped({**row, "file_name": picture.id}, where, self.columns, picture)


@dataclass(frozen=True, eq=False)
class RowParts:
    """A streaming dataset of `datasets`, in its own shards."""

    name: str
    dataset: Any
    columns: Columns
    column: str

    @property
    def number(self) -> int:
        """Count the shards."""
        return int(self.dataset.num_shards)

    def read(self, part: int) -> Iterator[Sample | Skipped]:
        """Read a shard as far as it is wanted."""
        for index, row in enumerate(_rows(self.dataset.shard(num_shards=self.number, index=part))):
            name = f"{self.dataset.split or 'row'}/{part}/{index}"
            where = f"{self.name} {name}"
            picture = Sample(name, _picture(row.pop(self.column)), "")
            yield from samples_or_skipped(row, where, self.columns, picture)


def _rows(shard: Any) -> Iterator[Row]:
    """Read all rows, wherever: iterated itself, a dataset gives each of torch's workers but a part of them."""
    for batch in shard.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


@dataclass(frozen=True)
class RemotePicture:
    """A picture that lies where its row says; called, it gives the bytes."""

    url: str

    def __call__(self) -> PictureSource:
        """Read the bytes."""
        from datasets.utils.file_utils import xopen

        try:
            with xopen(self.url, "rb") as file:
                return bytes(file.read())
        except Exception as error:  # network, hub, file systems: each has errors of its own
            raise PictureError(f"{self.url} cannot be read: {error}") from None


def _picture(stored: Any) -> Any:
    if stored and stored.get("bytes"):
        return bytes(stored["bytes"])
    if not (stored and stored.get("path")):
        return b""  # opened, it is refused by its name
    path = str(stored["path"])
    return Path(path) if "://" not in path else RemotePicture(path)
