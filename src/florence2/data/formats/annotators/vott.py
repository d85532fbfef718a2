"""VoTT: its CSV export (`image,xmin,ymin,xmax,ymax,label`) and its JSON export (`assets` with `regions`)."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import csv_columns, finite_numbers, read_csv, read_json
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box

_CSV_COLUMNS = {"image", "xmin", "ymin", "xmax", "ymax", "label"}


def is_vott_csv(path: Path) -> bool:
    """Tell by its header whether a CSV file is an export of VoTT."""
    return path.suffix.lower() == ".csv" and set(csv_columns(path)) >= _CSV_COLUMNS


def is_vott(document: Any) -> bool:
    """Tell whether a JSON document is an export of VoTT."""
    assets = document.get("assets") if isinstance(document, dict) else None
    first = next(iter(assets.values()), None) if isinstance(assets, dict) else None
    return isinstance(first, dict) and "asset" in first and "regions" in first


def read_vott_csv(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a CSV export, in the order of their first row."""
    rows: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for where, row in read_csv(path):
        rows[row["image"]].append((where, row))
    for name, each in rows.items():
        yield each[0][0], read_image(name, each[0][0], _parse_rows, name, each)


def _parse_rows(name: str, rows: list[tuple[str, dict[str, str]]]) -> AnnotatedImage:
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [Annotation(row["label"], finite_numbers([row[side] for side in sides], where)) for where, row in rows]
    return AnnotatedImage(name, boxes)


def read_vott(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a JSON export, each with the words that name it."""
    for key, entry in read_json(path)["assets"].items():
        where = f"{path} asset {key}"
        yield where, read_image("", where, _parse_asset, entry, where)


def _parse_asset(entry: dict[str, Any], where: str) -> AnnotatedImage:
    asset = entry.get("asset") or {}
    if not isinstance(asset.get("name"), str):
        raise DatasetError(f"{where} has no `name`", "export it again")
    size = asset.get("size") or {}
    known_size = (int(size["width"]), int(size["height"])) if size.get("width") and size.get("height") else None
    found = [each for region in entry.get("regions") or [] for each in _annotations(region, where)]
    return AnnotatedImage(asset["name"], found, known_size)


def _annotations(region: dict[str, Any], where: str) -> Iterator[Annotation]:
    named = f"{where}, region {region.get('id')}"
    points = region.get("points") or []
    polygon = finite_numbers([point.get(side) for point in points for side in ("x", "y")], named)
    is_outline = str(region.get("type", "")).upper() in ("POLYGON", "POLYLINE") and len(polygon) >= 6
    box = region.get("boundingBox") or {}
    if not is_outline and box:
        left, top, width, height = finite_numbers([box.get(key) for key in ("left", "top", "width", "height")], named)
        sides = [left, top, left + width, top + height]
    else:
        sides = bounding_box([polygon])
    for tag in region.get("tags") or [""]:  # each tag is an object of its own
        yield Annotation(str(tag), sides, (polygon,) if is_outline else ())
