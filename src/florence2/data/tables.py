"""Rows of a table, whatever file holds it: JSONL, CSV, parquet, or JSON as kohya's trainers write it.

A row comes with the words that name it in an error. Knows nothing of what the columns mean.
"""

import csv
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from florence2.data.folder import read_text
from florence2.errors import UserError

Row = dict[str, Any]
NamedRow = tuple[str, Row]  # "list.jsonl line 3", {...}


def is_table_name(name: str) -> bool:
    """Tell whether a file name ends like a table that can be read."""
    return Path(name).suffix.lower() in _READERS


def read_rows(path: Path) -> Iterator[NamedRow]:
    """Read the rows of a table; empty lines are left out."""
    try:
        yield from _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> Iterator[NamedRow]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            named = f"{path} line {number}"
            text = _decoded(line, named)
            if text.strip():
                yield named, _as_object(text, named)


def _decoded(line: bytes, named: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{named} is not UTF-8 text", "save the file as UTF-8") from None


def _as_object(text: str, named: str) -> Row:
    row = _parsed(text, named)
    if not isinstance(row, dict):
        raise UserError(f"{named} is not a JSON object", 'write for example {"file_name": "a.jpg", "text": "a boat"}')
    return row


def _parsed(text: str, named: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        said = getattr(error, "msg", "nested too deeply")
        raise UserError(f"{named} is not JSON: {said}", "write one JSON object in each line") from None


def _read_json(path: Path) -> Iterator[NamedRow]:
    """Read a list of rows, or kohya's object that maps pictures to rows."""
    whole = _parsed(read_text(path), str(path))
    if isinstance(whole, dict):
        named = {f"{path}, `{key}`": (key, row) for key, row in whole.items()}
        for name, (key, row) in named.items():
            yield name, {"file_name": key, **_kohya(row, name)}
    else:
        for number, row in enumerate(whole if isinstance(whole, list) else [whole], start=1):
            if not isinstance(row, dict):
                raise UserError(f"{path} item {number} is not a JSON object")
            yield f"{path} item {number}", row


def _kohya(row: Any, named: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(
            f"{named} is not a JSON object",
            'a .json file maps pictures to {"caption": "..."}; call a file with one object in each line .jsonl',
        )
    return {"text": row.get("caption") or row.get("tags"), **row}


def _read_csv(path: Path) -> Iterator[NamedRow]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                named = f"{path} line {reader.line_num}"
                if None in row:
                    raise UserError(f"{named} has more fields than the first line", "put text with commas in quotes")
                yield named, dict(row)
        except csv.Error as error:
            raise UserError(f"{path} is not CSV behind line {reader.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text", "save the file as UTF-8") from None


def _read_parquet(path: Path) -> Iterator[NamedRow]:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (arrow.ArrowException, arrow.ArrowInvalid) as error:
        raise UserError(f"{path} is not a parquet file that can be read: {str(error).splitlines()[0]}") from None


_READERS: dict[str, Callable[[Path], Iterator[NamedRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
