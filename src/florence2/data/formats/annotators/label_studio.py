"""Label Studio: exports as JSON (tasks with `annotations`) and as JSON-MIN (flat rows).

Rectangles, rotated rectangles, polygons and ellipses are objects; coordinates are percentages of the image.
Keypoints, brush masks, choices, and the annotations of a task after the first are not read; each image names them in
`ignored_shapes`. Source: Label Studio's documentation of its JSON format.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import finite_numbers, read_json, rotated_box
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box

_LABEL_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_SHAPE_KEYS = ("brushlabels", "keypointlabels", "choices", "taxonomy", "bitmasklabels", "vectorlabels")


def is_label_studio(document: Any) -> bool:
    """Tell whether a JSON document is an export of Label Studio."""
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, dict):
        return False
    if isinstance(first.get("data"), dict) and ("annotations" in first or "completions" in first):
        return True
    return "annotation_id" in first and "id" in first and _image_key(first) is not None


def read_label_studio(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of an export, each with the words that name it."""
    for number, task in enumerate(read_json(path), start=1):
        where = f"{path} task {task.get('id', number) if isinstance(task, dict) else number}"
        yield where, read_image("", where, _parse_task, task, where)


def _parse_task(task: Any, where: str) -> AnnotatedImage:
    if not isinstance(task, dict):
        raise DatasetError(f"{where} is not a JSON object", "export it again")
    return _min_image(task, where) if "data" not in task else _task_image(task, where)


def _image_key(values: Mapping[str, Any]) -> str | None:
    named = [key for key in ("image", "img", "ocr", "photo") if isinstance(values.get(key), str)]
    paths = [key for key, value in values.items() if isinstance(value, str) and "/" in value]
    return next(iter([*named, *paths]), None)


def _file_name(address: str) -> str:
    """Name the image of an address: `/data/upload/1/ab12cd34-a.jpg`, `/data/local-files/?d=a.jpg`, or a URL."""
    parts = urlparse(address)
    local = parse_qs(parts.query).get("d")
    if local:
        return unquote(local[0])
    path = unquote(parts.path)
    if "/upload/" in path:
        stem = path.rpartition("/")[2]
        prefix, dash, rest = stem.partition("-")
        is_hash = dash and prefix and all(letter in "0123456789abcdef" for letter in prefix)  # uploads always have one
        return rest if is_hash else stem
    return path.rpartition("/")[2] if parts.scheme else path.lstrip("/")


def _task_image(task: Mapping[str, Any], where: str) -> AnnotatedImage:
    key = _image_key(task["data"])
    if key is None:
        raise DatasetError(f"{where} names no image in its `data`", "export tasks that label images")
    entries = task.get("annotations") or task.get("completions") or []
    valid = [entry for entry in entries if isinstance(entry, dict) and not entry.get("was_cancelled")]
    shapes = [shape for entry in valid[:1] for shape in entry.get("result", []) if isinstance(shape, dict)]
    texts = {shape.get("id"): shape["value"].get("text") for shape in shapes if shape.get("type") == "textarea"}
    image = _image(task["data"][key], shapes, texts, where)
    unread = ["further annotation of a task"] * (len(valid) - 1)
    unread += ["cancelled annotation"] * (len(entries) - len(valid))
    return replace(image, ignored_shapes=(*image.ignored_shapes, *unread))


def _min_image(row: Mapping[str, Any], where: str) -> AnnotatedImage:
    key = _image_key(row)
    if key is None:
        raise DatasetError(f"{where} names no image", "export tasks that label images")
    values = [shape for value in row.values() if isinstance(value, list) for shape in value if isinstance(shape, dict)]
    sizes = {"original_width", "original_height"}
    shapes = [{"value": shape, **{name: shape[name] for name in sizes & shape.keys()}} for shape in values]
    return _image(row[key], shapes, {}, where)


def _image(address: str, shapes: list[dict[str, Any]], texts: Mapping[Any, Any], where: str) -> AnnotatedImage:
    annotations: list[Annotation] = []
    ignored: list[str] = []
    size: tuple[int, int] | None = None
    for number, shape in enumerate(shapes, start=1):
        value = shape.get("value") or {}
        if shape.get("type") in ("textarea", "relation"):
            continue
        if "original_width" in shape and "original_height" in shape:
            size = int(shape["original_width"]), int(shape["original_height"])
        annotation = _annotation(value, size, texts.get(shape.get("id")), f"{where}, result {number}")
        if annotation is not None:
            annotations.append(annotation)
        else:
            ignored.append(str(shape.get("type") or next((key for key in _SHAPE_KEYS if key in value), "shape")))
    return AnnotatedImage(_file_name(address), annotations, size, ignored_shapes=tuple(ignored))


def _annotation(value: Mapping[str, Any], size: tuple[int, int] | None, text: Any, where: str) -> Annotation | None:
    labels = next((value[key] for key in _LABEL_KEYS if value.get(key)), None)
    words = " ".join(map(str, text)) if isinstance(text, list) else str(text or "")
    label = words or (str(labels[0]) if isinstance(labels, list) else str(labels or ""))
    is_shape = "points" in value or {"x", "y"} <= value.keys()
    if not is_shape or (not label and labels is None) or not ({"width", "radiusX", "points"} & value.keys()):
        return None
    if size is None:
        raise DatasetError(
            f"{where} has no `original_width` and `original_height`",
            "export it from Label Studio again, as JSON, COCO or YOLO",
        )
    across, down = size[0] / 100, size[1] / 100
    if "points" in value:
        pairs = [side for point in value["points"] for side in point]
        polygon = [side * (down if at % 2 else across) for at, side in enumerate(finite_numbers(pairs, where))]
        return Annotation(label, bounding_box([polygon]), (polygon,))
    if "radiusX" in value:
        x, y, wide, high = finite_numbers([value[key] for key in ("x", "y", "radiusX", "radiusY")], where)
        sides = [(x - wide) * across, (y - high) * down, (x + wide) * across, (y + high) * down]
        return Annotation(label, sides)
    x, y, width, height = finite_numbers([value.get(key) for key in ("x", "y", "width", "height")], where)
    box = [x * across, y * down, (x + width) * across, (y + height) * down]
    (rotation,) = finite_numbers([value.get("rotation") or 0], where)
    if not rotation:
        return Annotation(label, box)
    quad = rotated_box(box, rotation, (box[0], box[1]))
    return Annotation(label, bounding_box([quad]), (quad,))
