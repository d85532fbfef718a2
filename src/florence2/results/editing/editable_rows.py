"""Reading of the rows of a folder or of a table for editing: which file holds which row."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from florence2.data.columns import METADATA_NAMES, ColumnMapping
from florence2.data.folders.image_locator import DATASET_DIR_HINT, ImageLocator, locate_beside, locate_inside
from florence2.data.folders.image_names import is_image_name
from florence2.data.folders.listing import display_path, no_images_error, walk
from florence2.data.folders.sidecars import Sidecars
from florence2.data.formats.detect import find_source
from florence2.data.tables import Row
from florence2.errors import DatasetError, UserError
from florence2.model.tasks import InputType, OutputType, find_task
from florence2.results.editing.editable_row import ACCEPTED, EditableRow, is_marked, lock_reason, row_objects
from florence2.results.editing.edited_files import EditedFiles
from florence2.results.editing.edited_tables import CSV_SUFFIX, JSONL_SUFFIXES, EditedTable

TABLE_NAMES = ("metadata.jsonl", "metadata.csv", "annotations.jsonl", "captions.jsonl")
_CONVERT_HINT = "run `florence2 data convert {} NEW_FOLDER`, and review the new folder"
IsAccepted = Callable[[str], bool]


def find_table(path: Path) -> Path | None:
    """Return the JSONL or CSV that a path names or a folder contains; None for a folder with caption files alone.

    Raises DatasetError for a table that is not edited in place.
    """
    if path.is_dir():
        names = [name for name in (*TABLE_NAMES, *METADATA_NAMES) if (path / name).is_file()]
        if not names and (source := find_source(str(path))):
            raise DatasetError(f"{source.name} is a dataset in another format", _CONVERT_HINT.format(path))
        return find_table(path / names[0]) if names else None
    if not path.is_file():
        raise DatasetError(f"{path} does not exist", "pass a folder of images, or a `captions.jsonl`")
    if is_image_name(path.name):
        raise DatasetError(f"{path} is one image, not a dataset", f"pass its folder, {display_path(path.parent)}")
    hint = _CONVERT_HINT.format(path)
    if path.suffix.lower() == ".parquet":
        raise DatasetError(f"{path} is a Parquet file, whose rows cannot be changed one by one", hint)
    if path.suffix.lower() not in (*JSONL_SUFFIXES, CSV_SUFFIX):
        raise DatasetError(f"{path} is neither a JSONL nor a CSV", hint)
    return path


class TableRows:
    """Makes a row of each line of a table."""

    def __init__(self, table: EditedTable, task: str) -> None:
        self._table = table
        self._columns = ColumnMapping(task)
        folder, hint = table.path.parent, DATASET_DIR_HINT
        in_folder = table.path.name in METADATA_NAMES  # tables of a folder, whose images are inside of it
        self._locate: ImageLocator = locate_inside(folder, hint) if in_folder else locate_beside(folder, hint)

    def __iter__(self) -> Iterator[EditableRow]:
        """Yield the rows of all lines that are not empty, with the index of each line as its own."""
        for line in self._table:
            yield self.read(line, line)

    def read(self, index: int, line: int) -> EditableRow:
        """Read the row of one line; a line that cannot be edited is locked."""
        where = self._table.where(line)
        task = find_task(self._columns.task)
        try:
            return self._row(self._table.row(line), index, line, where)
        except UserError as error:
            return EditableRow(index, where, None, task, locked=error.what, line=line)

    def _row(self, row: Row, index: int, line: int, where: str) -> EditableRow:
        name = self._columns.image_name(row, where)
        located = self._locate(row, name, where)
        image = located.path if located.exists else None
        task, task_input = self._columns.task_and_input(row, where)
        error, locked = str(row.get("error") or ""), lock_reason(row, self._columns)
        texts = [] if locked else self._columns.texts(row, where)
        text = texts[0] if texts else ""
        current = EditableRow(
            index,
            located.id,
            image,
            task,
            task_input if isinstance(task_input, str) else ", ".join(map(str, task_input)),
            text,
            () if task.output_type is not OutputType.TEXT else None,
            _score(row.get("score")),
            error or ("" if image else f"{name} does not exist"),
            is_marked(row.get(ACCEPTED)),
            locked,
            line=line,
        )
        try:
            return replace(current, objects=row_objects(row, text, task, image))
        except UserError as problem:
            return replace(current, locked=problem.what)


def _score(value: object) -> float | None:
    """Return a score, which a CSV has as text."""
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except ValueError:
        return None


class CaptionRows:
    """Makes a row of each image in a folder that has or may have a caption file."""

    def __init__(
        self, files: EditedFiles, folder: Path, task: str, extension: str, is_accepted: IsAccepted, *, recursive: bool
    ) -> None:
        self._files, self._folder, self._recursive = files, folder, recursive
        self._task = find_task(task)
        if self._task.input_type is not InputType.NOTHING:
            raise DatasetError(
                f"the task `{self._task.name}` needs {self._task.input_type} for each image", "edit a JSONL"
            )
        self._sidecars = Sidecars.from_extension(extension)
        self._is_accepted = is_accepted

    def __iter__(self) -> Iterator[EditableRow]:
        """Yield a row for each image, in the order of their names."""
        index = 0
        listings = list(walk(self._folder, self._recursive))
        if not any(listing.images() for listing in listings):
            raise no_images_error(self._folder, self._recursive)
        for listing in listings:
            captions = self._sidecars.name_by_image(listing)
            for name in listing.images():
                stem = name.rpartition(".")[0]
                default = stem + self._sidecars.suffix + self._sidecars.extensions[0]
                caption = listing.path / captions.get(name, default)
                row = EditableRow(index, listing.id(name), listing.path / name, self._task, caption_file=caption)
                yield self.read(row)
                index += 1

    def read(self, row: EditableRow) -> EditableRow:
        """Read the caption of a row again; one that cannot be edited is locked."""
        assert row.caption_file is not None
        accepted = self._is_accepted(row.file_name)
        try:
            self._files.file(row.caption_file)
            text = self._sidecars.read(row.caption_file) if row.caption_file.is_file() else ""
            objects = row_objects({}, text, row.task, row.image)
        except UserError as error:
            return replace(row, locked=error.what)
        return replace(row, text=text, objects=objects, is_accepted=accepted)


def captions_beside(row: EditableRow, files: EditedFiles) -> list[Path]:
    """Return the caption files beside an image of a table that have the text of its row, as `--sidecar` writes them."""
    if row.image is None or row.objects is not None or not row.text:
        return []
    names = [row.image.with_suffix(extension) for extension in (".txt", ".caption")]
    words = " ".join(row.text.split())
    contents = [(name, files.file(name)) for name in names if not is_image_name(name.name) and name.is_file()]
    return [name for name, content in contents if content and _words(content) == words]


def _words(content: bytes) -> str:
    return " ".join(content.decode("utf-8-sig", errors="replace").split())


def unlisted_images(folder: Path, rows: Sequence[EditableRow], *, recursive: bool) -> list[str]:
    """Return the images of a folder that no row of its table names."""
    listed = {os.path.realpath(row.image) for row in rows if row.image}
    paths = ((listing, name) for listing in walk(folder, recursive) for name in listing.images())
    return [listing.id(name) for listing, name in paths if os.path.realpath(listing.path / name) not in listed]


def describe(path: Path, table: Path | None) -> str:
    """Return the name of a dataset on the page."""
    return str(table) if table else display_path(path)
