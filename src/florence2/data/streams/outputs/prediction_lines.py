"""Reading of the lines that `florence2 predict` wrote, complete or not, possibly edited by hand."""

from collections.abc import Iterator

from florence2.data.stores.store_path import AnyPath
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.files import parse_json

_FIRST_KEY = b'{"file_name": "'  # with which each line starts


def read_prediction_lines(path: AnyPath) -> Iterator[Row]:
    """Yield the complete lines that are not blank; refuse a file that has other lines than predictions."""
    has_rows = False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (_is_torn(line) and (has_rows or _starts_like_prediction(line))):
                continue
            try:
                row = parse_json(line)
                row["file_name"]
            except (ValueError, KeyError, TypeError) as error:
                hint = "pass another `--output_path`" + (", or remove the line" if has_rows else "")
                raise DatasetError(f"{path} line {number} is not a prediction", hint) from error
            if "run" in row and "run_id" not in row:
                raise DatasetError(
                    f"{path} line {number} has the keys of an older version (`folder`, `run`)",
                    "pass another `--output_path`, or rename them to `image_dir` and `run_id`",
                )
            has_rows = True
            yield row


def count_torn_lines(path: AnyPath) -> tuple[int, bool]:
    """Count the incomplete lines of a file, and return whether its last line has an end."""
    number, line = 0, b"\n"
    with path.open("rb") as file:
        for line in file:
            number += _is_torn(line)
    return number, line.endswith(b"\n")


def _is_torn(line: bytes) -> bool:
    """Return whether a kill cut a line, or a power cut left zeros in place of bytes that were not on the disk yet."""
    if line.endswith(b"\n"):
        return b"\0" in line
    try:
        return not isinstance(parse_json(line), dict)
    except ValueError:
        return True


def _starts_like_prediction(line: bytes) -> bool:
    """Return whether an incomplete line is what is left of a prediction; that of any other file is not removed."""
    if line.startswith(b"\0"):
        rest = line.strip(b"\0\n")
        return not rest or rest.endswith(b"}")
    return _FIRST_KEY.startswith(line.split(b"\0")[0][: len(_FIRST_KEY)])
