"""A dataset that people correct in place: a JSONL, a CSV, or caption files beside images.

Every change is written at once, through a file that replaces the old one, and can be reverted byte for byte. Lines
that do not change stay as they are. The mark `accepted` is a column of a table, and for caption files a list in the
hidden file `.review.json`; no other command reads it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from florence2.data.columns import METADATA_NAMES, ColumnMapping
from florence2.data.tables import Row
from florence2.errors import DatasetError, UserError
from florence2.files import parse_json, to_json
from florence2.log import count_noun
from florence2.results.editing.editable_row import EditableRow, RowChange, text_column
from florence2.results.editing.editable_rows import (
    CaptionRows,
    TableRows,
    captions_beside,
    describe,
    find_table,
    unlisted_images,
)
from florence2.results.editing.edited_files import EditedFiles, FileChangedError, FileEdit
from florence2.results.editing.edited_tables import EditedTable, open_table
from florence2.results.editing.row_changes import change_row, check_text

REVIEW_FILE = ".review.json"


@dataclass(frozen=True)
class _AppliedChange:
    name: str
    rows: tuple[int, ...]
    inverse: FileEdit


class EditableDataset:
    """The rows of a dataset and their changes; one thread at a time may change them."""

    def __init__(
        self, path: str | Path, *, task: str = "caption", recursive: bool = False, caption_extension: str = ".txt"
    ) -> None:
        """Read a folder, a JSONL or a CSV. Raises DatasetError where there is nothing to edit."""
        self.path = Path(path).expanduser()
        self.table = find_table(self.path)
        self.name = describe(self.path, self.table)
        self._columns = ColumnMapping(task)
        self._table = open_table(self.table) if self.table else None
        self._files = self._table.files if self._table else EditedFiles()
        self._review_file = self.path / REVIEW_FILE
        self._accepted: set[str] = set() if self.table else self._read_accepted()
        self._table_rows = TableRows(self._table, task) if self._table else None
        self._caption_rows: CaptionRows | None = None
        if self._table_rows is None:
            self._caption_rows = CaptionRows(
                self._files, self.path, task, caption_extension, self._accepted.__contains__, recursive=recursive
            )
        found: Iterable[EditableRow] = self._table_rows or self._caption_rows or ()
        self.rows: list[EditableRow] = [replace(row, index=index) for index, row in enumerate(found)]
        if not self.rows:
            raise DatasetError(f"{self.name} contains no rows", "run `florence2 predict` first")
        self._history: list[_AppliedChange] = []
        is_folder = self.table is not None and self.path.is_dir()
        self.unlisted = unlisted_images(self.path, self.rows, recursive=recursive) if is_folder else []

    @property
    def note(self) -> str:
        """Return what of a folder is not shown: images that its table does not name, and other tables; else ""."""
        if self.table is None or not self.path.is_dir():
            return ""
        notes = [
            f"{name} of the folder is not shown; pass it by its path"
            for name in METADATA_NAMES
            if name != self.table.name and (self.path / name).is_file()
        ]
        if self.unlisted:
            number, first = count_noun(len(self.unlisted), "image"), self.unlisted[0]
            notes.append(f"{number} of the folder not in {self.table.name}, and not shown; the first is {first}")
        return "; ".join(notes)

    @property
    def undo_name(self) -> str:
        """Return the name of the change that `undo` reverts, or ""."""
        return self._history[-1].name if self._history else ""

    def change(self, changes: Sequence[RowChange], name: str) -> list[EditableRow]:
        """Write changes of several rows, all or none of them, and return the rows as they are now.

        Raises FileChangedError where a row or its file was changed in between.
        """
        edit = self._edit(changes)
        rows = tuple(change.row for change in changes)
        inverse = self._files.commit(edit)
        self._history.append(_AppliedChange(name, rows, inverse))
        return self._read_again(rows)

    def undo(self) -> tuple[str, list[EditableRow]]:
        """Revert the last change; return its name, and its rows as they are now."""
        if not self._history:
            raise UserError("there is no change to undo")
        last = self._history[-1]
        self._files.commit(last.inverse)
        self._history.pop()
        return last.name, self._read_again(last.rows)

    def _edit(self, changes: Sequence[RowChange]) -> FileEdit:
        rows: dict[int, Row] = {}
        files: dict[Path, bytes | None] = {}
        accepted = set(self._accepted)
        for change in changes:
            current = self._current(change)
            try:
                if self._table is not None:
                    self._change_row(self._table, current, change, rows, files)
                else:
                    self._change_caption(current, change, files, accepted)
            except UserError as error:
                raise UserError(f"{current.file_name}: {error.what}", error.hint) from None
        if accepted != self._accepted:
            files[self._review_file] = (to_json({"accepted": sorted(accepted)}, indent=1) + "\n").encode()
        return FileEdit(self._table.edit(rows) if self._table and rows else {}, files)

    def _current(self, change: RowChange) -> EditableRow:
        if not 0 <= change.row < len(self.rows):
            raise UserError(f"there is no row {change.row}", "reload the page")
        current = self.rows[change.row]
        if current.version != change.version:
            raise FileChangedError(f"{current.file_name} was changed in another window", "reload the page")
        if current.locked:
            raise UserError(f"{current.file_name} cannot be edited: {current.locked}")
        return current

    def _change_row(
        self,
        table: EditedTable,
        current: EditableRow,
        change: RowChange,
        rows: dict[int, Row],
        files: dict[Path, bytes | None],
    ) -> None:
        assert current.line is not None
        row = table.row(current.line)
        changed = change_row(row, current, change, text_column(row, self._columns))
        if changed == row:
            return
        rows[current.line] = changed
        if change.text is not None and change.text != current.text:
            files.update(dict.fromkeys(captions_beside(current, self._files), f"{change.text.strip()}\n".encode()))

    def _change_caption(
        self, current: EditableRow, change: RowChange, files: dict[Path, bytes | None], accepted: set[str]
    ) -> None:
        assert current.caption_file is not None
        if change.objects is not None:
            raise UserError("a caption file cannot hold objects", "edit a JSONL")
        if change.text is not None and change.text != current.text:
            files[current.caption_file] = f"{check_text(current, change.text)}\n".encode()
        if change.is_accepted is not None:
            (accepted.add if change.is_accepted else accepted.discard)(current.file_name)

    def _read_again(self, indexes: Iterable[int]) -> list[EditableRow]:
        if self._caption_rows is not None:
            self._accepted.clear()
            self._accepted.update(self._read_accepted())
        rows = []
        for index in dict.fromkeys(indexes):
            old = self.rows[index]
            if self._table_rows is not None and old.line is not None:
                row = self._table_rows.read(index, old.line)
            else:
                assert self._caption_rows is not None
                row = self._caption_rows.read(old)
            self.rows[index] = replace(row, version=old.version + 1)
            rows.append(self.rows[index])
        return rows

    def _read_accepted(self) -> set[str]:
        content = self._files.file(self._review_file)
        try:
            return set(map(str, parse_json(content)["accepted"])) if content else set()
        except (ValueError, KeyError, TypeError):
            raise DatasetError(f"{self._review_file} is not a list of accepted images", "remove the file") from None
