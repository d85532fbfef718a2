"""Tables as shards: JSONL, CSV, JSON or Parquet; Parquet may contain the encoded images, other rows name them.

A row names an image by an address, or by its path relative to the table's folder.
"""

import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from florence2.data.columns import (
    OTHER_COLUMNS,
    TASK_COLUMNS,
    ColumnMapping,
    DatasetRow,
    samples_from_rows,
)
from florence2.data.folders.dataset_features import name_classes
from florence2.data.folders.foreign_jsonl import FOREIGN_COLUMNS, translate_rows, unread_columns
from florence2.data.folders.table_rows import table_rows
from florence2.data.image import ImageError, ImageSource
from florence2.data.sample import Sample, Skipped
from florence2.data.stores.remote_image import RemoteImage
from florence2.data.stores.store_path import AnyPath, StorePath, is_address
from florence2.data.streams.outputs.stored_images import StoredImages
from florence2.data.streams.shard_paths import common_folder, relative_names
from florence2.data.tables import Row, find_parquet_images, open_parquet, read_rows
from florence2.errors import DatasetError

_BATCH_ROWS = 64  # rows of a Parquet file that are decoded at a time


@dataclass(frozen=True)
class TableShards:
    """Tables, each one shard."""

    name: str
    paths: tuple[AnyPath, ...]
    columns: ColumnMapping

    @cached_property
    def root(self) -> str:
        """Return the folder that ids are relative to: of the tables, or of the images where those lie elsewhere."""
        folder = common_folder(self.paths)
        if isinstance(folder, Path) and (images := _image_folder(self.paths[0], self.columns)):
            return str(folder if _is_below(images, folder) else images)
        return str(folder)

    @cached_property
    def _names(self) -> list[str]:
        return relative_names(self.paths)

    @property
    def num_shards(self) -> int:
        """Return the number of tables."""
        return len(self.paths)

    def shard_name(self, index: int) -> str:
        """Return the path of a table within the folder that all are in."""
        return self._names[index]

    def reader(self, index: int) -> Callable[[], Iterator[DatasetRow]]:
        """Return a function that reads the rows of a table."""
        name = self.shard_name(index)
        return partial(_read_table, self.paths[index], name if self.num_shards > 1 else "", self.columns, self.root)

    def read(self, index: int) -> Iterator[Sample | Skipped]:
        """Read the samples of a table lazily."""
        return samples_from_rows(self.reader(index)(), self.columns, "")


def _read_table(path: AnyPath, name: str, columns: ColumnMapping, root: str) -> Iterator[DatasetRow]:
    if not path.is_file():
        raise DatasetError(f"{path} does not exist", "check the path, and put a pattern in quotes")
    column = find_parquet_images(path, columns.image) if path.suffix.lower() == ".parquet" else None
    if column is not None:
        yield from translate_rows(_read_parquet_images(path, name or "train", column, columns), columns)
    elif isinstance(path, StorePath):
        folder = posixpath.dirname(name)
        for row in remote_rows(path, columns):
            image = row.image
            if folder and not is_address(image.id):
                image = Sample(f"{folder}/{image.id}", image.image, "")
            yield row._replace(image=image)
    else:
        yield from (_below_root(row, Path(root)) for row in table_rows(path, columns, None))


def _below_root(row: DatasetRow, root: Path) -> DatasetRow:
    """Name the image of a local row by its path below the folder of all images."""
    path = row.image.image
    if not isinstance(path, Path) or not row.image.id:
        return row
    if not _is_below(path, root):
        hint = "predict the tables of other folders of images by another command"
        return DatasetRow.unreadable(row.where, DatasetError(f"{row.where}: {path} is not below {root}", hint))
    return row._replace(image=replace(row.image, id=Path(os.path.relpath(path, root)).as_posix()))


def _image_folder(path: AnyPath, columns: ColumnMapping) -> Path | None:
    """Return the folder that the first image of a local table is named in."""
    with suppress(DatasetError):
        for row in table_rows(Path(str(path)), columns, None):
            if isinstance(row.image.image, Path) and row.image.id:
                return row.image.image.parents[len(Path(row.image.id).parts) - 1]
    return None


def _is_below(path: Path, folder: Path) -> bool:
    return not os.path.relpath(path, folder).startswith("..")


def _read_parquet_images(path: AnyPath, name: str, column: str, columns: ColumnMapping) -> Iterator[DatasetRow]:
    """Read a Parquet file whose `column` contains encoded images."""
    with open_parquet(path) as table:
        schema = table.schema_arrow
        names = (*columns.text_columns, *TASK_COLUMNS, *OTHER_COLUMNS, *FOREIGN_COLUMNS)
        unread = unread_columns(columns)(tuple(schema.names)) - {column}
        present = [each for each in dict.fromkeys(names) if each in schema.names and each != column]
        batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=[column, *present])
        rows = (row for batch in batches for row in batch.to_pylist())
        features = import_module("datasets").Features.from_arrow_schema(schema)
        for number, row in enumerate(name_classes(rows, features)):
            row_id = f"{name}/{number}"
            image = Sample(row_id, stored_image(row.pop(column), row_id), "")
            yield DatasetRow(f"{path} row {number}", row, image, unread_columns=unread)


@dataclass(frozen=True)
class AbsentImage:
    """The image of a row without one, or with several; a call raises an ImageError that names the row."""

    name: str
    number: int = 0

    def __call__(self) -> ImageSource:
        """Raise the error."""
        if self.number:
            raise ImageError(f"{self.name} has {self.number} images", "write one image in each row")
        raise ImageError(f"{self.name} has no image", "write the image into its row")


def stored_image(stored: Any, name: str) -> ImageSource | Callable[[], ImageSource]:
    """Return the image of a column of the row `name`: bytes, a path, an address, or `datasets`' {bytes, path}."""
    if isinstance(stored, list):
        if len(stored) > 1:
            return AbsentImage(name, len(stored))
        stored = stored[0] if stored else None
    if isinstance(stored, bytes | bytearray):
        return bytes(stored)
    if isinstance(stored, dict) and stored.get("bytes"):
        return bytes(stored["bytes"])
    path = stored.get("path") if isinstance(stored, dict) else stored
    if not path:
        return AbsentImage(name)
    return RemoteImage.or_path(str(path))


def remote_rows(path: StorePath, columns: ColumnMapping) -> Iterator[DatasetRow]:
    """Read a table in a store; its images are in its folder or in each row's `image_dir`, in tars, or at addresses."""
    stored = StoredImages(path.parent)

    def rows() -> Iterator[DatasetRow]:
        for where, row in read_rows(path):
            yield DatasetRow(where, row, _remote_sample(path, columns.image_name(row, where), row, where, stored))

    return translate_rows(rows(), columns)


def _remote_sample(path: StorePath, name: str, row: Row, where: str, stored: StoredImages) -> Sample:
    if is_address(name):
        return Sample(name, RemoteImage.of_row(name, where, path.address.partition("://")[0]), "")
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain.startswith(("/", "..")):
        hint = "write the name relative to the table's folder"
        raise DatasetError(f"{where}: `{name}` is outside {row.get('image_dir') or path.parent}", hint)
    if image := stored.find(row, plain):
        return Sample(plain, image, "")
    return Sample(plain, Path(str(row.get("image_dir") or ".")) / plain, "")
