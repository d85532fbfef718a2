"""Checked values of annotation files: JSON and XML documents, CSV rows, finite numbers, and rotated boxes."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from florence2.data.folders.listing import read_text
from florence2.data.tables import csv_reader, load_json
from florence2.errors import DatasetError
from florence2.files import parse_json

HEAD_BYTES = 65_536  # enough of a file to recognize its format


def read_json(path: Path) -> Any:
    """Read a JSON file; a syntax error is a DatasetError that names the file."""
    return load_json(read_text(path), str(path), "export it again")


def read_xml(path: Path) -> ElementTree.Element:
    """Read an XML file in the encoding that it declares, by default UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    declared = re.match(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([\w.:-]+)["']""", content.removeprefix(b"\xef\xbb\xbf"))
    encoding = declared[1].decode() if declared else "utf-8"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif encoding.lower() in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    elif encoding.lower() in ("gb2312", "gbk"):
        encoding = "gb18030"  # programs that declare these write the characters of their superset, too
    try:
        text = content.decode(encoding)
        if "<!ENTITY" in text:  # expat would expand those that it declares itself
            raise DatasetError(f"{path} declares entities, which are not expanded", "export it again")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, LookupError):
        what = f"{path} is not text in the encoding `{encoding.removesuffix('-sig')}`"
        raise DatasetError(what, "save it as UTF-8, and declare `encoding`") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{path} is not XML: {error}", "export it again") from None


def peek_json(path: Path) -> Any:
    """Read a JSON file to recognize its format; None where it is not JSON or cannot be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return None


def read_csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV file, each with the words that name it in an error."""
    try:
        reader = csv_reader(StringIO(read_text(path), newline=""))
        for row in reader:
            yield f"{path} line {reader.line_num}", {key: value or "" for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise DatasetError(f"{path} is not CSV: {error}", "export it again") from None


def csv_columns(path: Path) -> list[str]:
    """Read the column names of a CSV file; an empty list where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv_reader(lines).fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def finite_numbers(values: Iterable[Any], where: str) -> list[float]:
    """Convert values to finite floats; a DatasetError names `where` for text, NaN and infinity."""
    values = list(values)
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != len(values) or not all(map(math.isfinite, numbers)):
        raise DatasetError(f"{where} has coordinates that are not numbers: {values}"[:300], "correct or remove it")
    return numbers


def rotated_box(box: Sequence[float], degrees: float, pivot: tuple[float, float]) -> list[float]:
    """Rotate a box [x1, y1, x2, y2] clockwise around a pivot; return its four corners as x, y pairs in pixels."""
    x1, y1, x2, y2 = box
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    corners: list[float] = []
    for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
        across, down = x - pivot[0], y - pivot[1]
        corners += [pivot[0] + across * cosine - down * sine, pivot[1] + across * sine + down * cosine]
    return corners
