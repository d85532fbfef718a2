"""Tars as a source of samples, whose records `tar_records.py` reads. Compressed tars are rejected."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.foreign_jsonl import translate_rows
from florence2.data.image import ImageError, ImageSource
from florence2.data.sample import Sample
from florence2.data.stores.store_path import AnyPath
from florence2.data.streams.shard_paths import expand_pattern, has_pattern, relative_names
from florence2.data.streams.tars.tar_records import read_tar
from florence2.errors import DatasetError


@dataclass(frozen=True)
class TarSource:
    """A list of tars."""

    name: str
    paths: tuple[AnyPath, ...]
    root: None = None

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Read the rows of all tars with their images; a row without a task has `columns.task`."""
        has_several = len(self.paths) > 1
        for path, name in zip(self.paths, relative_names(self.paths), strict=True):
            yield from tar_rows(path, columns, f"{name}/" if has_several else "")


def tar_rows(path: AnyPath, columns: ColumnMapping, prefix: str) -> Iterator[DatasetRow]:
    """Read the rows of a tar with their images, whose ids begin with `prefix`.

    Where only images are read, rows that cannot be read are the error of their image.
    """

    def rows() -> Iterator[DatasetRow]:
        for record in read_tar(path, has_targets=columns.with_targets):
            error, image = record.error, Sample(prefix + record.name, record.image, "")
            if error is not None and not columns.with_targets:
                image, error = Sample(image.id, UnreadableRow(error.what, error.hint), ""), None
            ignored = record.ignored
            for row in record.rows or [{}]:
                named_row = {**row, "file_name": image.id}
                where = f"{path}: {record.name}"
                yield DatasetRow(where, named_row, image, ignored_shapes=ignored, error=error)
                ignored = ()

    return translate_rows(rows(), columns)


@dataclass(frozen=True)
class UnreadableRow:
    """The image of a record whose row cannot be read, and with it its task; a call raises an ImageError."""

    what: str
    hint: str

    def __call__(self) -> ImageSource:
        """Raise the error."""
        raise ImageError(self.what, self.hint)


def find_shards(spec: str) -> TarSource | None:
    """Find tars: one file, a pattern like `data-{000..009}.tar` or `data-*.tar`, or a folder of tars."""
    path = Path(spec).expanduser()
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        return TarSource(spec, tuple(tars)) if tars else None
    reject_compressed(spec)
    if not spec.endswith(".tar"):
        return None
    paths = expand_pattern(spec)
    absent = [each for each in paths if isinstance(each, Path) and not each.is_file()]
    if absent or not paths:
        hint = "check the pattern, and put it in quotes" if has_pattern(spec) else "check the path"
        raise DatasetError(f"{absent[0] if absent else spec} does not exist", hint)
    return TarSource(spec, tuple(paths))


def reject_compressed(name: str) -> None:
    """Raise a DatasetError for the name of a compressed tar."""
    if re.search(r"\.(tar\.\w+|tgz)$", name):
        raise DatasetError(f"{name} is compressed, so its images cannot be read one by one", "decompress it to a .tar")
