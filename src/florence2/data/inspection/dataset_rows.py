"""Rows of any dataset with their images, for inspection and conversion.

Training needs samples or an error; an inspection needs every row, the faulty ones too. So rows are returned as they
are, and errors that an issue can name are not raised.
"""

from collections.abc import Iterator
from pathlib import Path

from florence2.data import hub
from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.listing import Listing, walk
from florence2.data.folders.sidecars import Sidecars, captioned_images
from florence2.data.folders.table_rows import metadata_rows, table_rows
from florence2.data.formats.detect import find_source
from florence2.data.resolve import DatasetOptions, may_be_on_hub, resolve_dataset, split_folder
from florence2.data.sample import Sample, Skipped, SkipReason
from florence2.data.tables import Row, find_parquet_images, is_table_name
from florence2.errors import DatasetError


def dataset_rows(
    spec: str,
    columns: ColumnMapping,
    *,
    split: str | None = None,
    dataset_dir: str | None = None,
    recursive: bool = False,
    offline: bool = False,
) -> Iterator[DatasetRow]:
    """Read the rows of a dataset, found as training finds it; `dataset_dir` is the folder of the images.

    With `offline` a hub dataset is read from the cache alone.
    """
    path = Path(spec).expanduser()
    is_saved = path.is_dir() and hub.is_dataset_folder(path)
    if is_saved:
        yield from _without_failed(hub.dataset_rows(spec, columns, split))
    elif source := find_source(spec, split, dataset_dir):
        yield from _without_failed(source.rows(columns))
    elif path.is_dir() and split is None:
        yield from _folder_rows(split_folder(path, None, recursive), columns, recursive)
    elif path.is_file() and is_table_name(path.name):
        read = hub.dataset_rows(spec, columns, None) if _has_images(path) else table_rows(path, columns, dataset_dir)
        yield from _without_failed(read)
    elif not path.exists() and may_be_on_hub(spec):
        yield from _without_failed(hub.dataset_rows(spec, columns, split, offline=offline))
    else:
        yield from _sample_rows(spec, columns, split, dataset_dir)


def _has_images(path: Path) -> bool:
    return path.suffix.lower() == ".parquet" and find_parquet_images(path) is not None


def _without_failed(rows: Iterator[DatasetRow]) -> Iterator[DatasetRow]:
    """Drop failed predictions."""
    return (row for row in rows if row.row.get("error") in (None, ""))


def _folder_rows(folder: Path, columns: ColumnMapping, recursive: bool) -> Iterator[DatasetRow]:
    """Read the metadata tables of a folder, then the sidecars of the images that no table names."""
    listings = list(walk(folder, recursive))
    rows = _rows_of_listings(folder, listings, columns, recursive)
    if (first := next(rows, None)) is not None:
        yield first._replace(ignored_files=[file for listing in listings for file in listing.ignored_files()])
        yield from rows


def _rows_of_listings(
    folder: Path, listings: list[Listing], columns: ColumnMapping, recursive: bool
) -> Iterator[DatasetRow]:
    known: set[str] = set()
    for row in _without_failed(metadata_rows(folder, listings, columns)):
        known.add(row.image.id)
        yield row
    samples, uncaptioned = captioned_images(listings, task=columns.task, sidecars=Sidecars(), known=known)
    if not samples and not known:  # training's reader raises the error for it
        resolve_dataset(folder, DatasetOptions(columns.task, recursive=recursive, on_missing="skip"))
    yield from map(_row_from_sample, samples)
    for skipped in uncaptioned:
        yield _row_from_skipped(skipped, folder / skipped.id)


def _sample_rows(spec: str, columns: ColumnMapping, split: str | None, dataset_dir: str | None) -> Iterator[DatasetRow]:
    """Read rows as training does: folders of a split, and names that lead to an error."""
    options = DatasetOptions(
        columns.task,
        dataset_dir=dataset_dir,
        split=split,
        on_missing="skip",
        image_column=columns.image,
        text_column=columns.text,
    )
    dataset = resolve_dataset(spec, options)
    unread = frozenset(dataset.unread_columns)
    for sample in dataset.samples:
        yield _row_from_sample(sample, columns.text_columns[0])._replace(unread_columns=unread)
    for skipped in dataset.skipped:
        if skipped.reason is SkipReason.MALFORMED:
            yield DatasetRow.unreadable(skipped.id, DatasetError(skipped.where, skipped.hint))
            continue
        is_located = skipped.reason is SkipReason.UNREADABLE_CAPTION and dataset.root is not None
        yield _row_from_skipped(skipped, Path(dataset.root or "", skipped.id) if is_located else Path(skipped.where))


def _row_from_sample(sample: Sample, text_column: str = "text") -> DatasetRow:
    row: Row = {"file_name": sample.id, "task": sample.task, text_column: sample.target or ""}
    where = str(sample.image) if isinstance(sample.image, Path) else sample.id
    return DatasetRow(where, {**row, "input": sample.input} if sample.input else row, sample)


def _row_from_skipped(skipped: Skipped, path: Path) -> DatasetRow:
    image = Sample(skipped.id, path, "")
    error = DatasetError(skipped.where, skipped.hint) if skipped.reason is SkipReason.UNREADABLE_CAPTION else None
    return DatasetRow(str(path) if error else skipped.where, {"file_name": skipped.id}, image, error=error)
