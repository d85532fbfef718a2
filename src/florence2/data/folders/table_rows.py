"""Rows of table files with their images: of one table, or of the metadata tables in a folder."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from florence2.data.columns import IMAGE_COLUMNS, METADATA_NAMES, ColumnMapping, DatasetRow
from florence2.data.folders.conversations import find_message_images
from florence2.data.folders.foreign_jsonl import translate_rows
from florence2.data.folders.image_locator import (
    DATASET_DIR_HINT,
    ImageLocator,
    LocatedImage,
    locate_beside,
    locate_inside,
)
from florence2.data.folders.image_names import IMAGE_EXTENSIONS, is_image_name
from florence2.data.folders.listing import Listing, display_path
from florence2.data.sample import Sample
from florence2.data.stores.remote_image import RemoteImage
from florence2.data.stores.store_path import is_address
from florence2.data.tables import ReadRow, Row, is_table_name, read_rows_or_errors
from florence2.errors import DatasetError

_LONGEST_NAME = 4096  # characters of a path, which base64 exceeds


def table_rows(path: Path, columns: ColumnMapping, dataset_dir: str | Path | None) -> Iterator[DatasetRow]:
    """Read a table; its images are in `dataset_dir`, else in each row's `image_dir`, else beside the table."""
    if dataset_dir is None:
        hint = DATASET_DIR_HINT if columns.with_targets else "move the table into a folder above its images"
        yield from _located_rows(path, columns, locate_beside(path.parent, hint))
        return
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder", "pass the folder of the images as --dataset_dir")
    yield from _located_rows(path, columns, locate_inside(folder))


def metadata_rows(folder: Path, listings: Iterable[Listing], columns: ColumnMapping) -> Iterator[DatasetRow]:
    """Read the metadata tables of a folder and its listed subfolders."""
    hint = f"put the image into {display_path(folder)}, or remove the row"
    for listing in listings:
        for name in METADATA_NAMES:
            if name in listing.names:
                yield from _located_rows(listing.path / name, columns, locate_inside(folder, hint, listing.subpath))


def _located_rows(path: Path, columns: ColumnMapping, locate: ImageLocator) -> Iterator[DatasetRow]:
    return translate_rows(locate_rows(read_rows_or_errors(path), columns, locate), columns)


def locate_rows(rows: Iterable[ReadRow], columns: ColumnMapping, locate: ImageLocator) -> Iterator[DatasetRow]:
    """Locate the image of each row of a table; a row without one has its error."""
    for where, row in rows:
        try:
            if isinstance(row, DatasetError):
                raise row
            if columns.image is None and not any(row.get(each) for each in (*IMAGE_COLUMNS, "images")):
                row = {**row, "images": names} if (names := find_message_images(row)) else row
            name = columns.image_name(row, where)
            if name.startswith("data:") or len(name) > _LONGEST_NAME:
                what = f"{where} has the image itself, `{name[:30]}…`, where a file name belongs"
                raise DatasetError(what, "write the image to a file, and its name into the row")
            if is_address(name):  # the image in a store, and its own id
                yield DatasetRow(where, row, Sample(name, RemoteImage.of_row(name, where), ""))
                continue
            located = _locate_image(name, where, row, locate)
        except DatasetError as error:
            yield DatasetRow.unreadable(where, error)
        else:
            yield DatasetRow(where, row, Sample(located.id, located.path, ""), located.exists)


def _locate_image(name: str, where: str, row: Row, locate: ImageLocator) -> LocatedImage:
    located = locate(row, name, where)
    if located.exists or is_image_name(name):
        return located
    # kohya's metadata has file names without their extension
    candidates = (locate(row, name + extension, where) for extension in sorted(IMAGE_EXTENSIONS))
    return next((candidate for candidate in candidates if candidate.exists), located)


def unread_table_hint(listing: Listing) -> str:
    """Return a hint about a table in the folder whose name is not one of the metadata names."""
    stems = {name.rpartition(".")[0] for name in listing.images()}
    for name in (name for name in listing.names if name.rpartition(".")[0] not in stems):
        path = listing.path / name
        if name.lower().startswith("metadata.j") and name not in METADATA_NAMES and name != "metadata.json":
            return f"rename {path} to metadata.jsonl"
        if name.lower().startswith("panoptic") and name.lower().endswith(".json"):
            return f"{path} has panoptic segmentations, which are not read: pass a COCO file of instances"
        if is_table_name(name) and name not in METADATA_NAMES:
            return f"pass {path} itself as the dataset"
    return ""
