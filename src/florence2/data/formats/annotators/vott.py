"""VoTT: its CSV export (`image,xmin,ymin,xmax,ymax,label`) and its JSON export (`assets` with `regions`).

Roboflow and the tutorials of TensorFlow write the CSV as `filename,width,height,class,xmin,ymin,xmax,ymax`. A row with
an image alone is an image without objects.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import csv_columns, finite_numbers, read_csv, read_json
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_AND_LABEL = (("image", "label"), ("filename", "class"))


def is_vott_csv(path: Path) -> bool:
    """Tell by its header whether a CSV file is an export of VoTT, or one of Roboflow for TensorFlow."""
    columns = set(csv_columns(path)) if path.suffix.lower() == ".csv" else set()
    return any(columns >= {*_SIDES, *names} for names in _IMAGE_AND_LABEL)


def is_vott(document: Any) -> bool:
    """Tell whether a JSON document is an export of VoTT."""
    assets = document.get("assets") if isinstance(document, dict) else None
    first = next(iter(assets.values()), None) if isinstance(assets, dict) else None
    return isinstance(first, dict) and "asset" in first and "regions" in first


def read_vott_csv(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a CSV export, in the order of their first row."""
    rows: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    is_own = set(_IMAGE_AND_LABEL[0]) <= set(csv_columns(path))
    image, label = _IMAGE_AND_LABEL[0 if is_own else 1]
    for where, row in read_csv(path):
        rows[row[image]].append((where, {**row, "label": row[label]}))
    for name, each in rows.items():
        yield each[0][0], read_image(name, each[0][0], _parse_rows, name, each)


def _parse_rows(name: str, rows: list[tuple[str, dict[str, str]]]) -> AnnotatedImage:
    with_box = [(where, row) for where, row in rows if any(row[name].strip() for name in (*_SIDES, "label"))]
    boxes = [Annotation(row["label"], finite_numbers([row[side] for side in _SIDES], where)) for where, row in with_box]
    size = [rows[0][1].get(side, "") for side in ("width", "height")]
    is_known = all(side.isdecimal() for side in size)
    return AnnotatedImage(name, boxes, (int(size[0]), int(size[1])) if is_known else None)


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
