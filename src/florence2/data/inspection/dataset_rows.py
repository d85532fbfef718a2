"""Any dataset as rows, each with its picture, in pixels where its source has pixels.

Where training wants samples or a reason to stop, whoever looks at a dataset wants every row, the wrong ones first of
all. So rows are given as they stand, and nothing is refused that can be named later.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from florence2.data import hub
from florence2.data.columns import METADATA_NAMES, ColumnMapping, ImageLocator, LocatedImage, confine_to
from florence2.data.folder import Listing, Sidecars, captioned_images, display_path, walk
from florence2.data.formats.annotations import DatasetRow
from florence2.data.formats.detect import find_source
from florence2.data.formats.foreign_jsonl import translate_rows
from florence2.data.resolve import resolve_dataset
from florence2.data.sample import Sample
from florence2.data.tables import NamedRow, Row, is_table_name, read_rows


def dataset_rows(
    spec: str, columns: ColumnMapping, *, split: str | None = None, images: str | None = None, recursive: bool = False
) -> Iterator[DatasetRow]:
    """Give the rows of a dataset, named as for training; `pictures` is the folder of the pictures of a list."""
    path = Path(spec).expanduser()
    is_saved = path.is_dir() and hub.is_saved_dataset(path)
    if not is_saved and (source := find_source(spec, split, images)):
        yield from source.rows(columns)
    elif path.is_dir() and not is_saved and split is None:
        yield from _folder(path, columns, recursive)
    elif path.is_file() and is_table_name(path.name) and not _holds_images(path):
        root = Path(images).expanduser() if images else path.parent
        yield from _located(read_rows(path), columns, _lead(root))
    else:
        yield from _samples(spec, columns, split, images)


def _holds_images(path: Path) -> bool:
    return path.suffix.lower() == ".parquet" and hub.parquet_has_images(path)


def _lead(root: Path) -> ImageLocator:
    """Look where a row's `image_dir` leads, as predictions write it, else in the folder."""
    inside = confine_to(root, "name the folder of the pictures with --dataset_dir")

    def locate(row: Row, image: str, where: str) -> LocatedImage:
        lead = row.get("image_dir")
        if isinstance(lead, str) and lead:
            led = Path(os.path.normpath(root.resolve() / lead))
            located = confine_to(led, "fix its `image_dir`")(image, where) if led.is_dir() else None
            if located and located.exists:
                return located
        return inside(image, where)

    return locate


def _located(rows: Iterator[NamedRow], columns: ColumnMapping, locate: ImageLocator) -> Iterator[DatasetRow]:
    for where, row in translate_rows(rows, columns, locate):
        if row.get("error") in (None, ""):
            located = locate(row, columns.image_of(row, where), where)
            yield DatasetRow(where, row, Sample(located.id, located.path, ""), located.exists)


def _folder(folder: Path, columns: ColumnMapping, recursive: bool) -> Iterator[DatasetRow]:
    """Give the rows of the tables in a folder, then the sidecars of the pictures that no table names."""
    listings = list(walk(folder, recursive))
    known: set[str] = set()
    for listing in listings:
        for name in (name for name in METADATA_NAMES if name in listing.names):
            for entry in _located(read_rows(listing.path / name), columns, _inside(folder, listing)):
                known.add(entry.image.id)
                yield entry
    samples, without = captioned_images(listings, task=columns.task, sidecars=Sidecars(), known=known)
    if not samples and not known:
        resolve_dataset(folder, task=columns.task, recursive=recursive, missing="skip")  # says what is wrong
    yield from map(_entry, samples)
    for skipped in without:
        yield DatasetRow(skipped.where, {"file_name": skipped.id}, Sample(skipped.id, folder / skipped.id, ""))


def _inside(folder: Path, listing: Listing) -> ImageLocator:
    inside = confine_to(folder, f"a table names pictures in {display_path(folder)}")
    return lambda _, image, where: inside(os.path.join(listing.subpath, image), where)  # noqa: PTH118


def _samples(spec: str, columns: ColumnMapping, split: str | None, images: str | None) -> Iterator[DatasetRow]:
    """Give what only training's own reader knows: datasets of the hub, and names that lead nowhere."""
    found = resolve_dataset(
        spec,
        task=columns.task,
        dataset_dir=images,
        split=split,
        missing="skip",
        image_column=columns.image,
        text_column=columns.text,
    )
    yield from map(_entry, found.samples)
    for skipped in found.skipped:
        yield DatasetRow(skipped.where, {"file_name": skipped.id}, Sample(skipped.id, Path(skipped.where), ""))


def _entry(sample: Sample) -> DatasetRow:
    row: Row = {"file_name": sample.id, "task": sample.task, "text": sample.target or ""}
    where = str(sample.image) if isinstance(sample.image, Path) else sample.id
    return DatasetRow(where, {**row, "input": sample.input} if sample.input else row, sample)
