"""CreateML: one JSON list with `image` and `annotations`; a box is given by its centre and size in pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import finite_numbers, read_json
from florence2.errors import DatasetError


def is_createml(document: Any) -> bool:
    """Tell whether a JSON document is a CreateML list."""
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, dict) or not isinstance(first.get("annotations"), list):
        return False
    boxes = [row for each in document if isinstance(each, dict) for row in _annotations(each)]
    has_boxes = all(isinstance(row, dict) and "coordinates" in row for row in boxes)
    return has_boxes and any(isinstance(first.get(key), str) for key in ("image", "imagefilename", "filename"))


def read_createml(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a CreateML list, each with the words that name it."""
    for number, item in enumerate(read_json(path), start=1):
        where = f"{path} item {number}"
        yield where, read_image("", where, _parse_item, item, where)


def _parse_item(item: Any, where: str) -> AnnotatedImage:
    name = next((item[key] for key in ("image", "imagefilename", "filename") if item.get(key)), None)
    if not isinstance(name, str):
        raise DatasetError(f"{where} names no `image`", "export it again")
    return AnnotatedImage(name, [_annotation(row, where) for row in _annotations(item)])


def _annotations(item: dict[str, Any]) -> list[Any]:
    annotations = item.get("annotations")
    return annotations if isinstance(annotations, list) else []


def _annotation(row: dict[str, Any], where: str) -> Annotation:
    sides = row.get("coordinates") or {}
    x, y, width, height = finite_numbers([sides.get(key) for key in ("x", "y", "width", "height")], where)
    return Annotation(str(row.get("label", "")), [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
