"""Predictions as Parquet: the rows of the journal with typed columns."""

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from florence2.data.stores.store_path import AnyPath
from florence2.data.tables import open_parquet
from florence2.errors import DatasetError
from florence2.files import atomic_write
from florence2.model.answer import GeometryKind

_ROW_GROUP = 10_000


def schema() -> Any:
    """Return the columns: those of a line of `captions.jsonl`, with `answer` as a struct."""
    arrow = import_module("pyarrow")
    text, number = arrow.string(), arrow.float64()
    boxes = arrow.list_(arrow.list_(number))
    fields = {
        GeometryKind.BBOXES.value: boxes,
        GeometryKind.QUAD_BOXES.value: boxes,
        GeometryKind.POLYGONS.value: arrow.list_(boxes),
    }
    prefixes = ("", f"{GeometryKind.BBOXES.value}_", f"{GeometryKind.POLYGONS.value}_")
    fields |= {f"{prefix}labels": arrow.list_(text) for prefix in prefixes}
    fields |= {f"{prefix}scores": arrow.list_(number) for prefix in prefixes}
    answer = arrow.struct(list(fields.items()))
    output = [("text", text), ("answer", answer), ("num_tokens", arrow.int32()), ("score", number)]
    output.append(("removed_objects", arrow.int32()))
    columns = [("file_name", text), *output, ("task", text), ("input", text), ("error", text)]
    alternatives = arrow.list_(arrow.struct(output))
    return arrow.schema([*columns, ("alternatives", alternatives), ("image_dir", text), ("run_id", text)])


def write_parquet(rows: Iterable[dict[str, Any]], target: Path) -> None:
    """Write rows to a file that appears when it is complete."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    columns, pending = schema(), iter(rows)
    with (
        atomic_write(target, "wb", sync=True) as file,
        parquet.ParquetWriter(file, columns, compression="zstd") as writer,
    ):
        while group := list(islice(pending, _ROW_GROUP)):
            writer.write_table(arrow.Table.from_pylist([_encodable(row) for row in group], schema=columns))


def read_parquet(path: AnyPath) -> Iterator[dict[str, Any]]:
    """Read rows back; keys without a value are left out."""
    with open_parquet(path) as table:
        for batch in table.iter_batches(batch_size=1024):
            yield from map(_without_nulls, batch.to_pylist())


def check_predictions(path: AnyPath) -> None:
    """Raise a DatasetError for a Parquet file whose rows are no predictions."""
    with open_parquet(path) as table:
        if not {"file_name", "run_id"} <= set(table.schema_arrow.names):
            raise DatasetError(f"{path} is not a file of predictions", "pass another `--output_path`")


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """Replace the file name by its JSON escapes where it is not UTF-8."""
    try:
        row["file_name"].encode()
    except UnicodeEncodeError:
        return {**row, "file_name": json.dumps(row["file_name"])[1:-1]}
    return row


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in row.items() if value is not None or key == "score"}
    if "answer" in values:
        values["answer"] = {key: value for key, value in values["answer"].items() if value is not None}
    if "alternatives" in values:
        values["alternatives"] = [_without_nulls(each) for each in values["alternatives"]]
    return values
