"""COCO annotation files: one JSON with `images`, `annotations` and `categories`, for boxes, polygons and captions.

A box is [x, y, width, height] in pixels, a segmentation a list of polygons or a run-length mask. A crowd
(`iscrowd: 1`) is many objects in one polygon: no target, only `florence2 evaluate` reads it. Keypoints are skipped.
`ignored_shapes` names both.
The label is the category's `name`. Ids are equal where their text is equal, `1` and `"1"`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from florence2.data.folders.listing import read_text
from florence2.data.formats.annotations import AnnotatedImage, Annotation, Box, read_image
from florence2.data.formats.mask_polygons import mask_to_polygons
from florence2.data.tables import load_json
from florence2.errors import DatasetError
from florence2.files import parse_json, to_json
from florence2.model.geometry import bounding_box, is_finite_number, polygon_area

ANNOTATIONS_NAME = "_annotations.coco.json"
_FIRST_KEY = re.compile(r'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:\s*[\[{"]')
_ANY_KEY = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[|"info"\s*:\s*null')
_DATUMARO = re.compile(r'"categories"\s*:\s*\{')  # which begins with `info`, too
_HEAD = 65_536  # characters in which a key of COCO must be


def is_coco(path: Path) -> bool:
    """Return whether a JSON file is a COCO annotation file, by its first key, else by all its keys."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as text:
            head = text.read(_HEAD)
        if _FIRST_KEY.match(head) and not _DATUMARO.search(head):
            return True
        content = parse_json(path.read_text(encoding="utf-8-sig")) if _ANY_KEY.search(head) else None
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return False
    return isinstance(content.get("annotations"), list) or isinstance(content.get("categories"), list)


def read_coco(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a COCO file in its order, each with its name for errors."""
    content = _parse_coco(path)
    labels = _category_names(content["categories"], path)
    rows_by_image, unlisted = _rows_by_image(content, path)
    has_captions = any(map(_is_caption, content["annotations"]))
    for image in content["images"]:
        where, name = f"{path} image {image.get('id')}", _image_name(image)
        rows = rows_by_image[_id_text(image.get("id"))]
        annotated = read_image(name, where, _parse_image, image, rows, labels, has_captions, where)
        yield where, replace(annotated, unlisted_annotations=unlisted) if unlisted else annotated
        unlisted = ()


def _image_name(image: dict[str, Any]) -> str:
    """Return the `file_name` of an image, of LVIS the folder and the name in its `coco_url`; "" without either."""
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str):
        return name
    return "/".join(urlparse(url).path.split("/")[-2:]) if isinstance(url, str) else ""


def _parse_image(
    image: dict[str, Any], rows: Sequence[dict[str, Any]], labels: dict[str, str], has_captions: bool, where: str
) -> AnnotatedImage:
    if not (name := _image_name(image)):
        raise DatasetError(f"{where} has no `file_name`", "add it, or a `coco_url`")
    size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
    ignored: list[str] = []
    if has_captions:
        ignored += ["object in a list of captions" for row in rows if not _is_caption(row)]
        captions = [str(row["caption"]).strip() for row in rows if _is_caption(row) and row["caption"]]
        return AnnotatedImage(name, [], size, captions, ignored)
    objects = [row for row in rows if not _is_crowd(row)]
    crowds = [each for row in rows if _is_crowd(row) and (each := _parse_crowd(row, labels, where))]
    ignored += ["crowd"] * (len(rows) - len(objects))
    annotations = [_parse_annotation(row, labels, size, where, ignored) for row in objects]
    return AnnotatedImage(name, annotations, size, None, ignored, crowds=crowds)


def _is_caption(row: dict[str, Any]) -> bool:
    """Return whether an annotation is a caption of the image; one with a box is of an object."""
    return "caption" in row and not row.get("bbox")


def _parse_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    content = load_json(read_text(path), str(path), "export it again")
    keys = ("images", "annotations", "categories")
    lists: dict[str, Any] = {key: content.get(key) or [] if isinstance(content, dict) else None for key in keys}
    is_valid = all(isinstance(rows, list) and all(isinstance(r, dict) for r in rows) for rows in lists.values())
    if not is_valid or not lists["images"]:
        raise DatasetError(
            f"{path} is not a COCO annotation file", "write `images`, `annotations` and `categories`, each a list"
        )
    if not lists["annotations"] and (lists["categories"] or "annotations" not in content):
        raise DatasetError(f"{path} has no annotations", "pass a file that has some, such as `instances_train.json`")
    if any("segments_info" in row for row in lists["annotations"]):
        raise DatasetError(
            f"{path} has panoptic segmentations, which are not read",
            "pass the file of instances, or convert it with panopticapi's `panoptic2detection_coco_format.py`",
        )
    return lists


def _category_names(categories: Sequence[dict[str, Any]], path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for row in categories:
        key, name = _id_text(row.get("id")), row.get("name")
        if name in (None, ""):
            raise DatasetError(f"{path} has the category {row.get('id')} without a `name`", "add its `name`")
        if names.setdefault(key, str(name)) != str(name):
            raise DatasetError(
                f"{path} has two names for the category id {row.get('id')}: `{names[key]}` and `{name}`",
                "give each category an id of its own",
            )
    return names


def _rows_by_image(
    content: dict[str, list[dict[str, Any]]], path: Path
) -> tuple[dict[str, list[dict[str, Any]]], Sequence[str]]:
    """Group the annotations by image; also return the names of those whose image is not listed."""
    files: dict[str, str] = {}
    for image in content["images"]:
        key, name = _id_text(image.get("id")), _image_name(image)
        if files.setdefault(key, name) != name:
            raise DatasetError(
                f"{path} has two images with the id {image.get('id')}: {files[key]} and {name}",
                "give each image an id of its own",
            )
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    unlisted: list[str] = []
    for row in content["annotations"]:
        key = _id_text(row.get("image_id"))
        if key in files:
            grouped[key].append(row)
        else:
            unlisted.append(f"{path} annotation {row.get('id')} of image {row.get('image_id')}")
    if unlisted and not grouped:
        raise DatasetError(
            f"no annotation of {path} is about one of its images, the first: {unlisted[0]}",
            "correct `image_id` of the annotations, or `id` of the images",
        )
    return grouped, unlisted


def _id_text(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    is_integral = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_integral else value).strip()


def _is_crowd(row: dict[str, Any]) -> bool:
    crowd = row.get("iscrowd")
    return bool(crowd) and str(crowd).strip().lower() not in ("0", "0.0", "false")


def _parse_crowd(row: dict[str, Any], labels: dict[str, str], image: str) -> Annotation | None:
    """Read the box of a crowd; None where its category or its box is missing."""
    label = labels.get(_id_text(row.get("category_id")))
    if label is None or not row.get("bbox"):
        return None
    return Annotation(label, _parse_bbox(row["bbox"], (), f"{image}, annotation {row.get('id')}"), is_crowd=True)


def _parse_annotation(
    row: dict[str, Any], labels: dict[str, str], size: tuple[int, int] | None, image: str, ignored: list[str]
) -> Annotation:
    """Read an object and add to `ignored` what is not read of it."""
    where = f"{image}, annotation {row.get('id')}"
    label = labels.get(_id_text(row.get("category_id")))
    if label is None:
        raise DatasetError(f"{where} has the category {row.get('category_id')}, which is not in `categories`")
    ignored += ["caption of an object"] * bool(row.get("caption"))
    if isinstance(row.get("keypoints"), list) and any(row["keypoints"]):
        ignored.append("keypoints")
    polygons = _parse_polygons(row.get("segmentation"), size, where, ignored)
    outlines = tuple(polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0)
    ignored += ["polygon without three corners"] * (len(polygons) - len(outlines))
    box = _parse_bbox(row.get("bbox"), outlines, where)
    return Annotation(label, box, outlines, area=_parse_area(row.get("area"), box))


def _parse_area(area: Any, box: Box) -> float | None:
    """Return the area of an object; None where there is none, and where it is that of the box."""
    box_area = (box[2] - box[0]) * (box[3] - box[1])
    is_own = not isinstance(area, bool) and is_finite_number(area) and not math.isclose(area, box_area, rel_tol=1e-9)
    return float(area) if is_own else None


def _parse_bbox(bbox: Any, polygons: tuple[list[float], ...], where: str) -> Box:
    is_box = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(side, int | float) for side in bbox)
    if is_box and (any(bbox) or not polygons):
        x, y, width, height = map(float, bbox)
        return [x, y, x + width, y + height]
    if not polygons:
        raise DatasetError(f"{where} has neither a `bbox` of four numbers nor polygons", "fix or remove it")
    return bounding_box(polygons)


def _parse_polygons(
    segmentation: Any, size: tuple[int, int] | None, where: str, ignored: list[str]
) -> tuple[list[float], ...]:
    if isinstance(segmentation, dict):
        if size is not None and list(segmentation.get("size") or ()) != [size[1], size[0]]:
            ignored.append("mask of another size than its image")
            return ()
        return mask_to_polygons(segmentation, where)
    polygons = segmentation if isinstance(segmentation, list) else []
    if polygons and all(isinstance(side, int | float) for side in polygons):
        polygons = [polygons]  # one polygon, written without the list around it
    if not all(isinstance(each, list) and all(isinstance(side, int | float) for side in each) for each in polygons):
        raise DatasetError(
            f"{where} has a `segmentation` that is not a list of polygons", "write [[x, y, x, y, ...], ...]"
        )
    return tuple([float(side) for side in polygon] for polygon in polygons if polygon)


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
    path.write_text(to_json(content), encoding="utf-8")


def _geometry_fields(annotation: Annotation) -> dict[str, Any]:
    x1, y1, x2, y2 = annotation.box
    area = sum(map(polygon_area, annotation.polygons)) if annotation.polygons else (x2 - x1) * (y2 - y1)
    area = area if annotation.area is None else annotation.area
    polygons = [list(polygon) for polygon in annotation.polygons]
    row = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "segmentation": polygons, "iscrowd": 0}
    return row if annotation.score is None else {**row, "score": annotation.score}
