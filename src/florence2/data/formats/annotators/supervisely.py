"""Supervisely: a folder `ann/` with a JSON beside each image of `img/`, under one or several datasets of a project.

Rectangles and polygons are objects, bitmaps become boxes. Points, lines and graphs are not read; each image names
them in `ignored_shapes`. Source: Supervisely's documentation of its annotation format.
"""

import base64
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import finite_numbers, read_json
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box


def supervisely_folders(folder: Path) -> list[Path]:
    """Give the datasets of a project: the folder itself, or those below it, with `ann/` and `img/`."""
    with os.scandir(folder) as entries:
        below = sorted(folder / entry.name for entry in entries if entry.is_dir())
    return [each for each in (folder, *below) if (each / "ann").is_dir() and (each / "img").is_dir()]


def read_supervisely(folder: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a project, with names relative to its folder."""
    for dataset in supervisely_folders(folder):
        for path in sorted((dataset / "ann").glob("*.json")):
            name = (dataset / "img" / path.stem).relative_to(folder).as_posix()
            yield str(path), read_image(name, str(path), _parse_document, name, path)


def _parse_document(name: str, path: Path) -> AnnotatedImage:
    document = read_json(path)
    annotations: list[Annotation] = []
    ignored: list[str] = []
    for number, each in enumerate(document.get("objects") or [], start=1):
        annotation = _annotation(each, f"{path} object {number}")
        if annotation is not None:
            annotations.append(annotation)
        else:
            ignored.append(str(each.get("geometryType") or "shape"))
    size = document.get("size") or {}
    known_size = (int(size["width"]), int(size["height"])) if size.get("width") and size.get("height") else None
    return AnnotatedImage(name, annotations, known_size, ignored_shapes=tuple(ignored))


def _annotation(each: dict[str, Any], where: str) -> Annotation | None:
    label, kind = str(each.get("classTitle") or ""), each.get("geometryType")
    exterior = (each.get("points") or {}).get("exterior") or []
    if kind in ("rectangle", "polygon"):
        polygon = finite_numbers([side for point in exterior for side in point], where)
        if len(polygon) < 4:
            raise DatasetError(f"{where} has no `points.exterior`", "export it again")
        return Annotation(label, bounding_box([polygon]), (polygon,) if kind == "polygon" else ())
    if kind == "bitmap":
        left, top = finite_numbers((each.get("bitmap") or {}).get("origin") or [], where)
        width, height = _bitmap_size(each["bitmap"].get("data"), where)
        return Annotation(label, [left, top, left + width, top + height])
    return None


def _bitmap_size(data: Any, where: str) -> tuple[int, int]:
    """Read the size of a mask: a PNG, deflated, in base 64."""
    try:
        with Image.open(io.BytesIO(zlib.decompress(base64.b64decode(str(data))))) as mask:
            return mask.size
    except (ValueError, zlib.error, OSError):
        raise DatasetError(f"{where} has a `bitmap` that cannot be read", "export it again") from None
