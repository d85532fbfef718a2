"""Tables that people correct in place, JSONL and CSV: their rows, and the lines that a change of rows writes.

A line is one row with its end, byte for byte; a row of a CSV may have line breaks in its fields.
"""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from florence2.data.columns import TEXT_COLUMNS, is_missing
from florence2.data.tables import Row, csv_delimiter
from florence2.errors import DatasetError, UserError
from florence2.files import parse_json, to_json
from florence2.results.editing.edited_files import EditedFiles, split_lines

JSONL_SUFFIXES = (".jsonl", ".ndjson")
CSV_SUFFIX = ".csv"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EditedTable(ABC):
    """A table and its file."""

    first_row = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = EditedFiles(path, self.split)

    def __iter__(self) -> Iterator[int]:
        """Yield the index of each line that has a row."""
        for line in range(self.first_row, self.files.num_lines):
            if self.files.line(line).strip():
                yield line

    @abstractmethod
    def split(self, content: bytes) -> list[bytes]:
        """Split the content of the file into lines."""

    @abstractmethod
    def row(self, line: int) -> Row:
        """Read the row of a line. Raises DatasetError where it has none."""

    @abstractmethod
    def edit(self, rows: Mapping[int, Row]) -> dict[int, bytes]:
        """Return the lines that change, by their index, where these rows are new."""

    def where(self, line: int) -> str:
        """Return the name of a row in errors."""
        return f"{self.path.name} line {line + 1}"


def open_table(path: Path) -> EditedTable:
    """Open a table by its extension."""
    return CsvTable(path) if path.suffix.lower() == CSV_SUFFIX else JsonlTable(path)


class JsonlTable(EditedTable):
    """A table with one JSON object in each line."""

    def split(self, content: bytes) -> list[bytes]:
        """Split at line breaks."""
        return split_lines(content)

    def row(self, line: int) -> Row:
        """Read the object of a line."""
        try:
            row = parse_json(self.files.line(line).decode("utf-8-sig"))
        except ValueError:
            raise DatasetError(f"{self.where(line)} is not JSON in UTF-8", "correct the line in an editor") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{self.where(line)} is not a JSON object", "correct the line in an editor")
        return row

    def edit(self, rows: Mapping[int, Row]) -> dict[int, bytes]:
        """Write each object into its own line."""
        return {line: self._line(self.files.line(line), row) for line, row in rows.items()}

    def _line(self, line: bytes, row: Row) -> bytes:
        mark = _BYTE_ORDER_MARK if line.startswith(_BYTE_ORDER_MARK) else b""
        return mark + to_json(row).encode() + _end_of(line)


class CsvTable(EditedTable):
    """A table whose first line names its columns; a new column is added to every line."""

    first_row = 1

    def split(self, content: bytes) -> list[bytes]:
        """Split where a row ends, as the reader of datasets does."""
        mark = _BYTE_ORDER_MARK if content.startswith(_BYTE_ORDER_MARK) else b""
        try:
            lines = list(io.StringIO(content.decode("utf-8-sig"), newline=""))
        except UnicodeDecodeError:
            raise DatasetError(f"{self.path} is not UTF-8 text", "save the file as UTF-8") from None
        if lines and csv_delimiter(lines[0]) != ",":
            raise DatasetError(
                f"{self.path} has no commas between its fields",
                "`florence2 data convert` it, and review the new dataset",
            )
        reader, start, records = csv.reader(lines), 0, list[bytes]()
        try:
            for _ in reader:
                records.append("".join(lines[start : reader.line_num]).encode())
                start = reader.line_num
        except csv.Error as error:
            raise DatasetError(f"{self.path} is not CSV after line {reader.line_num}: {error}") from None
        if records:
            records[0] = mark + records[0]
        return records

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return _header(self.files.line(0)) if self.files.num_lines else ()

    def where(self, line: int) -> str:
        """Return the name of a row, whose fields may have line breaks."""
        return f"{self.path.name} row {line}"

    def row(self, line: int) -> Row:
        """Read the fields of a line, which are text; an empty one is None."""
        columns, fields = self.columns, _fields(self.files.line(line))
        if len(fields) > len(columns):
            raise DatasetError(
                f"{self.where(line)} has more fields than the first line", "put text with commas in quotes"
            )
        return dict.fromkeys(columns) | {name: field or None for name, field in zip(columns, fields, strict=False)}

    def edit(self, rows: Mapping[int, Row]) -> dict[int, bytes]:
        """Write the fields of each row into its own line, and the names of new columns into the first one."""
        fields = {line: self._writable(line, row) for line, row in rows.items()}
        new = [
            name for name in dict.fromkeys(name for row in fields.values() for name in row) if name not in self.columns
        ]
        lines = self._with_columns(new) if new else {}
        for line, row in fields.items():
            lines[line] = _record([_field(row.get(name)) for name in (*self.columns, *new)], self.files.line(line))
        return lines

    def _writable(self, line: int, row: Row) -> Row:
        """Return a row as a CSV can hold it: an answer with positions is a text, which stands beside it."""
        if row.get("answer") == "":
            raise UserError(
                "an empty text cannot be written to a CSV", "run `florence2 data convert` first, and review its result"
            )
        if not isinstance(row.get("answer"), dict):
            return row
        text = next(row[name] for name in TEXT_COLUMNS if not is_missing(row.get(name)))
        has_answer = not is_missing(self.row(line).get("answer"))
        return {name: value for name, value in row.items() if name != "answer"} | (
            {"answer": text} if has_answer else {}
        )

    def _with_columns(self, new: list[str]) -> dict[int, bytes]:
        """Add empty fields to every line, so that all have the same number, and the names to the first one."""
        columns = self.columns
        lines = {0: _record([*columns, *new], self.files.line(0))}
        for index in self:
            line = self.files.line(index)
            missing = len(columns) - len(_fields(line))
            if missing >= 0:
                end = _end_of(line)
                lines[index] = line.removesuffix(end) + b"," * (missing + len(new)) + end
        return lines


def _field(value: Any) -> str:
    if value is True:
        return "true"
    return "" if is_missing(value) or value is False else str(value)


def _record(fields: list[str], line: bytes) -> bytes:
    """Write fields in place of a line: with its end, its byte order mark, and quotes around all where it has them."""
    mark = _BYTE_ORDER_MARK if line.startswith(_BYTE_ORDER_MARK) else b""
    end, bare = _end_of(line), line.removeprefix(mark)
    is_quoted = _written(_fields(line), csv.QUOTE_ALL) == bare.removesuffix(end)
    return mark + _written(fields, csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL) + end


def _written(fields: list[str], quoting: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator="\r\n").writerow(fields)
    return text.getvalue().removesuffix("\r\n").encode()


def _fields(line: bytes) -> list[str]:
    return next(csv.reader(io.StringIO(line.decode("utf-8-sig"), newline="")), [])


@lru_cache(maxsize=8)
def _header(line: bytes) -> tuple[str, ...]:
    return tuple(name.strip() for name in _fields(line))


def _end_of(line: bytes) -> bytes:
    return line[len(line.rstrip(b"\r\n")) :]
