"""Rows of table files: JSONL, CSV, parquet, and JSON as kohya's trainers write it.

Each row comes with its name for errors. The meaning of the columns is defined in `columns.py`.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from florence2.data.folders.listing import read_text
from florence2.data.stores.store_path import AnyPath
from florence2.errors import DatasetError, UserError
from florence2.files import parse_json

Row = dict[str, Any]
NamedRow = tuple[str, Row]  # "list.jsonl line 3", {...}
_MAX_LINE_BYTES = 64 << 20
_IMAGE_NAMES = "image images img jpg jpeg png webp picture photo pixel_values".split()
_KOHYA_HINT = 'map each image to {"caption": "..."}; rename a file with one object in each line to .jsonl'
ReadRow = tuple[str, Row | DatasetError]  # a row, or why it cannot be read


def is_table_name(name: str) -> bool:
    """Return whether a file name has the extension of a table that can be read."""
    return Path(name).suffix.lower() in _READERS


def read_rows(path: AnyPath) -> Iterator[NamedRow]:
    """Read the rows of a table; empty lines are skipped, and a row that cannot be read raises a DatasetError."""
    for where, row in read_rows_or_errors(path):
        if isinstance(row, DatasetError):
            raise row
        yield where, row


def read_rows_or_errors(path: AnyPath) -> Iterator[ReadRow]:
    """Read the rows of a table; a row that cannot be read is an error in place of its columns."""
    try:
        yield from _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_jsonl(path: AnyPath) -> Iterator[ReadRow]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            where = f"{path} line {number}"
            try:
                if len(line) > _MAX_LINE_BYTES:
                    raise DatasetError(f"{where} has more than {_MAX_LINE_BYTES >> 20} MiB", "write one row in a line")
                text = _decode_utf8(line, where)
                if not text.strip():
                    continue
                row: Row | DatasetError = _parse_object(text, where)
            except DatasetError as error:
                row = error
            yield where, row


def _lines(file: Any) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long only its start, so that it takes no memory."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        yield line
        is_cut = len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n")
        while is_cut:
            rest = file.readline(1 << 20)
            is_cut = bool(rest) and not rest.endswith(b"\n")


def _decode_utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{where} is not UTF-8 text", "save the file as UTF-8") from None


def _parse_object(text: str, where: str) -> Row:
    row = load_json(text, where, "write one JSON object in each line")
    if not isinstance(row, dict):
        raise DatasetError(
            f"{where} is not a JSON object", 'write for example {"file_name": "a.jpg", "text": "a boat"}'
        )
    return row


def load_json(text: str, where: str, hint: str) -> Any:
    """Parse JSON; a syntax error is a DatasetError that names its place."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DatasetError(f"{where} is not JSON: {error.msg} ({line}column {error.colno})", hint) from None


def _read_json(path: AnyPath) -> Iterator[ReadRow]:
    """Read a list of rows, or kohya's object that maps images to rows."""
    content = load_json(read_text(path), str(path), "write a list of rows, or one JSON object in each line of a .jsonl")
    if isinstance(content, dict) and content and not any(isinstance(row, dict) for row in content.values()):
        names = ", ".join(f"`{key}`" for key in list(content)[:4])
        raise DatasetError(f"{path} has {names}, and maps no image to a row", _KOHYA_HINT)
    if isinstance(content, dict):
        for key, row in content.items():
            where = f"{path}, `{key}`"
            try:
                yield where, {"file_name": key, **_kohya_row(row, where)}
            except DatasetError as error:
                yield where, error
    else:
        for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
            where = f"{path} item {number}"
            yield where, row if isinstance(row, dict) else DatasetError(f"{where} is not a JSON object")


def _kohya_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DatasetError(f"{where} is not a JSON object", _KOHYA_HINT)
    parts = (row.get("caption"), row.get("tags"))
    return {"text": ",".join(part for part in parts if part and isinstance(part, str)), **row}


def csv_reader(lines: Iterable[str]) -> "csv.DictReader[str]":
    """Read rows by the names in the first line; fields are separated by commas, else by semicolons, tabs or bars."""
    first, rest = next(iterator := iter(lines), ""), iterator
    reader = csv.DictReader(chain([first], rest), delimiter=csv_delimiter(first))
    if reader.fieldnames is not None:
        reader.fieldnames = [name.strip() for name in reader.fieldnames]
    return reader


def csv_delimiter(header: str) -> str:
    """Return what separates the fields of a CSV file, by its first line."""
    return "," if "," in header else next((mark for mark in ";\t|" if mark in header), ",")


def _read_csv(path: AnyPath) -> Iterator[ReadRow]:
    number = 1
    with path.open(encoding="utf-8-sig", newline="") as lines:
        try:
            reader = csv_reader(lines)
            for row in reader:
                number = reader.line_num
                where = f"{path} line {number}"
                is_wide = None in row
                error = DatasetError(f"{where} has more fields than the first line", "put text with commas in quotes")
                yield where, error if is_wide else dict(row)
        except csv.Error as csv_error:
            raise DatasetError(f"{path} is not CSV after line {number}: {csv_error}") from None
        except UnicodeDecodeError:
            raise DatasetError(f"{path} is not UTF-8 text", "save the file as UTF-8") from None


def _read_parquet(path: AnyPath) -> Iterator[ReadRow]:
    with open_parquet(path) as table:
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                if isinstance(answer := row.get("answer"), dict):  # a struct has all kinds of coordinates
                    row["answer"] = {key: value for key, value in answer.items() if value is not None}
                yield f"{path} row {number}", row


@contextmanager
def open_parquet(path: AnyPath) -> Iterator[Any]:
    """Open a parquet file as `pyarrow.parquet.ParquetFile`; a damaged one raises a DatasetError."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            yield table
    except (arrow.ArrowException, ValueError, SystemError) as error:  # python's own where a value cannot be converted
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DatasetError(f"{path} is not a parquet file that can be read: {reason}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from None


def find_parquet_images(path: AnyPath, image_column: str | None = None) -> str | None:
    """Return the column of a parquet file that contains encoded images; None where its rows only name images.

    Images are binary, or `bytes` of a struct as `datasets` writes them, or one of these in a list.
    """
    types = import_module("pyarrow").types
    try:
        with open_parquet(path) as table:
            schema = table.schema_arrow
    except DatasetError:  # a damaged file raises again, when its rows are read
        return None

    def contains_images(kind: Any) -> bool:
        is_binary = types.is_binary(kind) or types.is_large_binary(kind)
        return bool(is_binary or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0))

    is_list = {field.name: types.is_list(field.type) or types.is_large_list(field.type) for field in schema}
    single = prefer_images(field.name for field in schema if contains_images(field.type))
    listed = [field.name for field in schema if is_list[field.name] and contains_images(field.type.value_type)]
    candidates = single + prefer_images(listed)
    if image_column is None:
        return next(iter(candidates), None)
    return image_column if image_column in candidates else None


def prefer_images(columns: Iterable[str]) -> list[str]:
    """Sort columns that contain images: those with the name of an image before masks, embeddings and others."""
    return sorted(columns, key=lambda name: name.lower() not in _IMAGE_NAMES)


@contextmanager
def dataset_errors(name: str) -> Iterator[None]:
    """Raise a DatasetError for any error of another library: arrow, json and datasets each have errors of their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DatasetError(f"{name} is not a dataset that can be read: {one_line(error)}", "save it again") from None


def one_line(error: Exception) -> str:
    """Return the message of an error of another library in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def check_arrow_files(folder: Path) -> None:
    """Raise an error for a damaged Arrow file below a folder: its numbers are used as addresses when rows are read."""
    arrow = import_module("pyarrow")
    for path in sorted(folder.rglob("*.arrow")):
        with arrow.memory_map(str(path)) as file, arrow.ipc.open_stream(file) as batches:
            for batch in batches:
                batch.validate(full=True)


_READERS: dict[str, Callable[[AnyPath], Iterator[ReadRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
