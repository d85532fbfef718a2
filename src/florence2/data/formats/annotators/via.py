"""VIA (VGG Image Annotator) 2: its JSON and CSV exports; projects of VIA 3 are refused.

Rectangles, polygons, circles and ellipses are objects. Points and polylines are not read; each image names them in
`ignored_shapes`. The label is the first of the attributes `label`, `class`, `name`, `type`, `category`, else the only
attribute there is.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import csv_columns, finite_numbers, read_csv, read_json
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.model.geometry import bounding_box

_LABELS = ("label", "class", "name", "type", "category", "object")
_CSV_COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}


def is_via_csv(path: Path) -> bool:
    """Tell by its header whether a CSV file is an export of VIA."""
    return path.suffix.lower() == ".csv" and {name.lstrip("#") for name in csv_columns(path)} >= _CSV_COLUMNS


def is_via(document: Any) -> bool:
    """Tell whether a JSON document is a project or an export of VIA."""
    first = next(iter(_images(document).values()), None) if isinstance(document, dict) else None
    return isinstance(first, dict) and "filename" in first and "regions" in first


def is_via3(document: Any) -> bool:
    """Tell whether a JSON document is a project of VIA 3."""
    return isinstance(document, dict) and {"file", "metadata", "view", "attribute"} <= document.keys()


def refuse_via3(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Raise the DatasetError for a project of VIA 3, whose regions are in other keys."""
    raise DatasetError(f"{path} is a project of VIA 3, which is not read", "export it as COCO")


def read_via(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a JSON export, each with the words that name it."""
    for key, entry in _images(read_json(path)).items():
        where = f"{path}, `{key}`"
        yield where, read_image("", where, _parse_entry, entry, where)


def _parse_entry(entry: dict[str, Any], where: str) -> AnnotatedImage:
    regions = entry.get("regions") or []
    shapes = list(regions.values()) if isinstance(regions, dict) else regions
    rows = [(shape.get("shape_attributes") or {}, shape.get("region_attributes") or {}) for shape in shapes]
    return _image(str(entry["filename"]), rows, where)


def read_via_csv(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a CSV export, in the order of their first row."""
    rows: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    first_lines: dict[str, str] = {}
    for where, row in read_csv(path):
        name = row.get("filename") or row.get("#filename") or ""
        first_lines.setdefault(name, where)
        try:
            shape, attributes = (
                parse_json(row.get(key) or "{}") for key in sorted(_CSV_COLUMNS - {"filename"}, reverse=True)
            )
        except ValueError:
            raise DatasetError(f"{where} has attributes that are not JSON", "export it again") from None
        if shape:
            rows[name].append((shape, attributes))
    for name, where in first_lines.items():
        yield where, read_image(name, where, _image, name, rows[name], where)


def _images(document: dict[str, Any]) -> dict[str, Any]:
    inner = document.get("_via_img_metadata", document)
    return inner if isinstance(inner, dict) else {}


def _image(name: str, rows: list[tuple[dict[str, Any], dict[str, Any]]], where: str) -> AnnotatedImage:
    annotations: list[Annotation] = []
    ignored: list[str] = []
    for number, (shape, attributes) in enumerate(rows, start=1):
        annotation = _annotation(shape, _label(attributes), f"{where}, region {number}")
        if annotation is not None:
            annotations.append(annotation)
        else:
            ignored.append(str(shape.get("name") or "shape"))
    return AnnotatedImage(name, annotations, ignored_shapes=tuple(ignored))


def _label(attributes: Mapping[str, Any]) -> str:
    value = next((attributes[key] for key in _LABELS if key in attributes), None)
    if value is None and len(attributes) == 1:
        value = next(iter(attributes.values()))
    if isinstance(value, dict):  # a checkbox: {"cat": true}
        value = ", ".join(key for key, is_set in value.items() if is_set)
    return "" if value is None else str(value)


def _annotation(shape: Mapping[str, Any], label: str, where: str) -> Annotation | None:
    name = shape.get("name")
    if name == "rect":
        x, y, width, height = finite_numbers([shape.get(key) for key in ("x", "y", "width", "height")], where)
        return Annotation(label, [x, y, x + width, y + height])
    if name == "polygon":
        xs, ys = shape.get("all_points_x") or [], shape.get("all_points_y") or []
        polygon = finite_numbers([side for point in zip(xs, ys, strict=False) for side in point], where)
        return Annotation(label, bounding_box([polygon]), (polygon,))
    if name in ("circle", "ellipse"):
        radius = shape.get("r")
        sides = [shape.get("cx"), shape.get("cy"), shape.get("rx", radius), shape.get("ry", radius)]
        x, y, across, down = finite_numbers(sides, where)
        return Annotation(label, [x - across, y - down, x + across, y + down])
    return None
