"""COCO annotation files: one JSON with `images`, `annotations` and `categories`, for boxes, polygons and captions.

A box is [x, y, width, height] in pixels, a segmentation a list of polygons or a run-length mask. A crowd
(`iscrowd: 1`) is many objects in one polygon and is skipped. The label is the category's `name`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from florence2.data.folders.listing import read_text
from florence2.data.formats.annotations import AnnotatedImage, Annotation, Box, image_beside
from florence2.data.formats.mask_polygons import mask_to_polygons
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box, polygon_area

ANNOTATIONS_NAME = "_annotations.coco.json"
_FIRST_KEY = re.compile(r'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:\s*[\[{"]')
_HEAD = 4096  # characters in which the first key must be


def is_coco(path: Path) -> bool:
    """Return whether a JSON file is a COCO annotation file, by its first key."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as text:
            return _FIRST_KEY.match(text.read(_HEAD)) is not None
    except OSError:
        return False


def read_coco(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a COCO file in its order, each with its name for errors."""
    content = _parse_coco(path)
    labels = {row.get("id"): str(row.get("name")) for row in content.get("categories", [])}
    rows_by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in content.get("annotations", []):
        rows_by_image[row.get("image_id")].append(row)
    has_captions = any("caption" in row for row in content.get("annotations", []))
    for image in content["images"]:
        where = f"{path} image {image.get('id')}"
        if not isinstance(image.get("file_name"), str):
            raise DatasetError(f"{where} has no `file_name`")
        rows = rows_by_image[image.get("id")]
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        captions = [str(row["caption"]).strip() for row in rows if row.get("caption")] if has_captions else None
        objects = [] if has_captions else [row for row in rows if not row.get("iscrowd")]
        annotations = [_parse_annotation(row, labels, where) for row in objects]
        yield where, AnnotatedImage(image["file_name"], annotations, size, captions)


def _parse_coco(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    keys = ("images", "annotations", "categories")
    lists = [content.get(key, []) if isinstance(content, dict) else None for key in keys]
    if not lists[0] or not all(isinstance(rows, list) and all(isinstance(r, dict) for r in rows) for rows in lists):
        raise DatasetError(
            f"{path} is not a COCO annotation file", "write `images`, `annotations` and `categories`, each a list"
        )
    return dict(content)


def _parse_annotation(row: dict[str, Any], labels: dict[Any, str], image: str) -> Annotation:
    where = f"{image}, annotation {row.get('id')}"
    if row.get("category_id") not in labels:
        raise DatasetError(f"{where} has the category {row.get('category_id')}, which is not in `categories`")
    polygons = _parse_polygons(row.get("segmentation"), where)
    return Annotation(labels[row["category_id"]], _parse_bbox(row.get("bbox"), polygons, where), polygons)


def _parse_bbox(bbox: Any, polygons: tuple[list[float], ...], where: str) -> Box:
    if isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(side, int | float) for side in bbox):
        x, y, width, height = map(float, bbox)
        return [x, y, x + width, y + height]
    if not polygons:
        raise DatasetError(f"{where} has neither a `bbox` of four numbers nor polygons", "fix or remove it")
    return bounding_box(polygons)


def _parse_polygons(segmentation: Any, where: str) -> tuple[list[float], ...]:
    if isinstance(segmentation, dict):
        return mask_to_polygons(segmentation, where)
    polygons = segmentation if isinstance(segmentation, list) else []
    if not all(isinstance(each, list) and all(isinstance(side, int | float) for side in each) for each in polygons):
        raise DatasetError(
            f"{where} has a `segmentation` that is not a list of polygons", "write [[x, y, x, y, ...], ...]"
        )
    return tuple([float(side) for side in polygon] for polygon in polygons if polygon)


def coco_image_folder(path: Path, first: str) -> Path:
    """Return the folder that file names are relative to: the COCO file's own, or one of COCO's standard layout.

    `first` is one of the file names; it must exist in the folder.
    """
    split = path.stem.rpartition("_")[2]  # instances_train2017 -> train2017
    parent, root = path.parent, path.parent.parent
    candidates = [parent, parent / "images", root / split, root / "images" / split, root / "images", parent / split]
    return next((folder for folder in candidates if (folder / image_beside(folder, first)).is_file()), parent)


def write_coco(path: Path, images: Iterable[AnnotatedImage]) -> None:
    """Write annotated images, whose sizes must be set, as a COCO file; category ids count from 1 in order of name."""
    images = list(images)
    labels = sorted({annotation.label for image in images for annotation in image.annotations})
    ids = {label: number for number, label in enumerate(labels, start=1)}
    image_rows: list[dict[str, Any]] = []
    annotation_rows: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        width, height = image.size or (0, 0)
        image_rows.append({"id": number, "file_name": image.file_name, "width": width, "height": height})
        for annotation in image.annotations:
            row = {"id": len(annotation_rows) + 1, "image_id": number, "category_id": ids[annotation.label]}
            annotation_rows.append(row | _geometry_fields(annotation))
    categories = [{"id": number, "name": label, "supercategory": ""} for label, number in ids.items()]
    content = {"images": image_rows, "annotations": annotation_rows, "categories": categories}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _geometry_fields(annotation: Annotation) -> dict[str, Any]:
    x1, y1, x2, y2 = annotation.box
    area = sum(map(polygon_area, annotation.polygons)) if annotation.polygons else (x2 - x1) * (y2 - y1)
    polygons = [list(polygon) for polygon in annotation.polygons]
    row = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "segmentation": polygons, "iscrowd": 0}
    return row if annotation.score is None else {**row, "score": annotation.score}
