"""COCO: one JSON with `images`, `annotations` and `categories`, for detection, segmentation and captions.

Read as COCO defines it: a box is [x, y, width, height] in pixels, a segmentation a list of polygons or a run-length
mask. A crowd (`iscrowd: 1`) is many objects under one outline, so it is left out. Categories are named by `name`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from florence2.data.folder import read_text
from florence2.data.formats.annotations import AnnotatedImage, Annotation, Box, bounding_box, image_beside
from florence2.data.formats.mask_polygons import mask_to_polygons
from florence2.errors import UserError

LIST_NAME = "_annotations.coco.json"
_OPENING = re.compile(r'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:\s*[\[{"]')
_HEAD = 4096  # characters that tell a COCO list from other JSON


def is_coco(path: Path) -> bool:
    """Tell by a JSON file's beginning whether it is a COCO list."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as text:
            return _OPENING.match(text.read(_HEAD)) is not None
    except OSError:
        return False


def read_coco(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the pictures of a list, in its order, each with the words that name it."""
    whole = _parsed(path)
    names = {row.get("id"): str(row.get("name")) for row in whole.get("categories", [])}
    told: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in whole.get("annotations", []):
        told[row.get("image_id")].append(row)
    with_captions = any("caption" in row for row in whole.get("annotations", []))
    for image in whole["images"]:
        where = f"{path} image {image.get('id')}"
        if not isinstance(image.get("file_name"), str):
            raise UserError(f"{where} has no `file_name`")
        rows = told[image.get("id")]
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        captions = [str(row["caption"]).strip() for row in rows if row.get("caption")] if with_captions else None
        things = [] if with_captions else [_thing(row, names, where) for row in rows if not row.get("iscrowd")]
        yield where, AnnotatedImage(image["file_name"], things, size, captions)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    lists = [whole.get(key, []) if isinstance(whole, dict) else None for key in ("images", "annotations", "categories")]
    if not lists[0] or not all(isinstance(rows, list) and all(isinstance(r, dict) for r in rows) for rows in lists):
        raise UserError(f"{path} is no COCO list", "it needs `images`, `annotations` and `categories`, each a list")
    return dict(whole)


def _thing(row: dict[str, Any], names: dict[Any, str], where: str) -> Annotation:
    named = f"{where}, annotation {row.get('id')}"
    if row.get("category_id") not in names:
        raise UserError(f"{named} is of category {row.get('category_id')}, which `categories` does not list")
    polygons = _polygons(row.get("segmentation"), named)
    return Annotation(names[row["category_id"]], _box(row.get("bbox"), polygons, named), polygons)


def _box(given: Any, polygons: tuple[list[float], ...], named: str) -> Box:
    if isinstance(given, list) and len(given) == 4 and all(isinstance(side, int | float) for side in given):
        x, y, width, height = map(float, given)
        return [x, y, x + width, y + height]
    if not polygons:
        raise UserError(f"{named} has neither a `bbox` of four numbers nor polygons", "mend or drop it")
    return bounding_box(polygons)


def _polygons(given: Any, named: str) -> tuple[list[float], ...]:
    if isinstance(given, dict):
        return mask_to_polygons(given, named)
    runs = given if isinstance(given, list) else []
    if not all(isinstance(run, list) and all(isinstance(side, int | float) for side in run) for run in runs):
        raise UserError(f"{named} has a `segmentation` that is no list of polygons", "write [[x, y, x, y, ...], ...]")
    return tuple([float(side) for side in run] for run in runs if run)


def images_as_coco(path: Path, first: str) -> Path:
    """Find the folder that a list's file names are relative to; `first` is one of the names.

    It is the list's own, or one of those that COCO's own layout has beside `annotations/`.
    """
    part = path.stem.rpartition("_")[2]  # instances_train2017 -> train2017
    up = path.parent.parent
    places = [path.parent, path.parent / "images", up / part, up / "images" / part, up / "images", path.parent / part]
    return next((place for place in places if (place / image_beside(place, first)).is_file()), path.parent)


def write_coco(path: Path, pictures: Iterable[AnnotatedImage]) -> None:
    """Write pictures, whose sizes are known, as a COCO list; categories are numbered from 1 by name."""
    pictures = list(pictures)
    names = sorted({thing.label for about in pictures for thing in about.annotations})
    ids = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, about in enumerate(pictures, start=1):
        width, height = about.size or (0, 0)
        images.append({"id": number, "file_name": about.file_name, "width": width, "height": height})
        for thing in about.annotations:
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[thing.label]}
            annotations.append(row | _written(thing))
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


def _written(thing: Annotation) -> dict[str, Any]:
    x1, y1, x2, y2 = thing.box
    area = sum(map(_area, thing.polygons)) if thing.polygons else (x2 - x1) * (y2 - y1)
    polygons = [list(polygon) for polygon in thing.polygons]
    row = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "segmentation": polygons, "iscrowd": 0}
    return row if thing.score is None else {**row, "score": thing.score}


def _area(polygon: list[float]) -> float:
    points = list(zip(polygon[0::2], polygon[1::2], strict=False))
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], *points[:1]], strict=True))) / 2
