"""Label Studio: exports as JSON (tasks with `annotations`) and as JSON-MIN (flat rows).

Rectangles, rotated rectangles, polygons and ellipses are objects; coordinates are percentages of the image. The results
of one region (its shape, labels and text) are one object; a region with several labels is several objects. Where no
task has a region, the texts are captions. Keypoints, brush masks, choices, texts about a whole image, and the
annotations of a task after the first are not read; each image names them in `ignored_shapes`. Tasks without an
annotation are left out and named there, too. Source: Label Studio's documentation of its JSON format.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from florence2.data.columns import TEXT_COLUMNS
from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import csv_columns, finite_numbers, read_json, rotated_box
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box

_LABEL_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_UNREAD_KEYS = (
    "brushlabels",
    "keypointlabels",
    "bitmasklabels",
    "vectorlabels",
    "choices",
    "taxonomy",
    "number",
    "rating",
)


def is_label_studio(document: Any) -> bool:
    """Tell whether a JSON document is an export of Label Studio."""
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, dict):
        return False
    if isinstance(first.get("data"), dict) and ("annotations" in first or "completions" in first):
        return True
    return "annotation_id" in first and "id" in first and _image_key(first) is not None


def is_label_studio_csv(path: Path) -> bool:
    """Tell by its header whether a CSV file is an export of Label Studio."""
    return path.suffix.lower() == ".csv" and set(csv_columns(path)) >= {"annotation_id", "lead_time", "annotator"}


def refuse_csv(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Raise the DatasetError for a CSV export, which has the size of no image and cuts regions in columns."""
    raise DatasetError(
        f"{path} is the CSV of Label Studio, which is not read", "export as JSON, JSON-MIN, COCO or YOLO"
    )


def read_label_studio(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of an export, each with the words that name it."""
    tasks = read_json(path)
    is_annotated = [not isinstance(task, dict) or "data" not in task or _may_be_annotated(task) for task in tasks]
    has_regions = any(_is_region(shape) for task in tasks if isinstance(task, dict) for shape in _results(task))
    num_unread = is_annotated.count(False)
    if tasks and not any(is_annotated):
        raise DatasetError(
            f"none of the {num_unread:,} tasks of {path} has an annotation",
            "label and submit them, or accept the predictions, then export again",
        )
    unread = ["task without an annotation"] * num_unread
    for number, task in enumerate(tasks, start=1):
        if is_annotated[number - 1]:
            where = f"{path} task {task.get('id', number) if isinstance(task, dict) else number}"
            image = read_image("", where, _parse_task, task, has_regions, where)
            yield where, replace(image, ignored_shapes=(*image.ignored_shapes, *unread))
            unread = []


def _parse_task(task: Any, has_regions: bool, where: str) -> AnnotatedImage:
    if not isinstance(task, dict):
        raise DatasetError(f"{where} is not a JSON object", "export it again")
    values = task.get("data", task)
    key = _image_key(values)
    if key is None:
        raise DatasetError(f"{where} names no image", "export tasks that label images")
    if not all(
        isinstance(each, list) for each in (_entries(task), *(e.get("result", []) for e in _valid_entries(task)))
    ):
        raise DatasetError(f"{where} has `annotations` or a `result` that is not a list", "export it again")
    results = _results(task)
    ignored = _unread_of_task(task)
    names = _file_names(values[key])
    if not has_regions and (texts := _texts(task, results)):
        return AnnotatedImage(names[0], [], None, texts, tuple(ignored), other_names=names[1:])
    annotations, size = _objects(results, ignored, where)
    return AnnotatedImage(names[0], annotations, size, ignored_shapes=tuple(ignored), other_names=names[1:])


def _entries(task: Mapping[str, Any]) -> Any:
    return task.get("annotations") or task.get("completions") or []


def _may_be_annotated(task: Mapping[str, Any]) -> bool:
    """Return whether a task has an annotation that was not cancelled, or none that can be read, which is an error."""
    return not isinstance(_entries(task), list) or bool(_valid_entries(task))


def _valid_entries(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = _entries(task)
    entries = entries if isinstance(entries, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and not entry.get("was_cancelled")]


def _results(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of the first annotation of a task, or those in the columns of a row of JSON-MIN."""
    if "data" in task:
        results = next((entry.get("result") for entry in _valid_entries(task)), None)
        return [shape for shape in results if isinstance(shape, dict)] if isinstance(results, list) else []
    values = [shape for value in task.values() if isinstance(value, list) for shape in value if isinstance(shape, dict)]
    sizes = {"original_width", "original_height"}
    return [{"value": shape, **{name: shape[name] for name in sizes & shape.keys()}} for shape in values]


def _is_region(result: Mapping[str, Any]) -> bool:
    value = result.get("value")
    return isinstance(value, dict) and ("points" in value or {"x", "y"} <= value.keys() or "format" in value)


def _unread_of_task(task: Mapping[str, Any]) -> list[str]:
    entries, num_valid = _entries(task), len(_valid_entries(task))
    return ["further annotation of a task"] * (num_valid - 1) + ["cancelled annotation"] * (len(entries) - num_valid)


def _texts(task: Mapping[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """Return the texts about a whole image: of a text area, or of the columns of JSON-MIN that captions have."""
    if "data" not in task:
        values = [task[name] for name in TEXT_COLUMNS if name in task]
    else:
        values = [shape["value"].get("text") for shape in results if shape.get("type") == "textarea"]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _image_key(values: Mapping[str, Any]) -> str | None:
    named = [key for key in ("image", "img", "ocr", "photo") if isinstance(values.get(key), str)]
    paths = [key for key, value in values.items() if isinstance(value, str) and "/" in value]
    return next(iter([*named, *paths]), None)


def _file_names(address: str) -> list[str]:
    """Name the image of an address: `/data/upload/1/ab12cd34-a.jpg`, `/data/local-files/?d=a.jpg`, or a URL.

    The file of an upload has its first name where it was downloaded, and its second where it was copied.
    """
    if address.startswith("data:"):
        raise DatasetError("a task has its image as base64", "export the image as a file, and its name")
    parts = urlparse(address)
    local = parse_qs(parts.query).get("d")
    if local:
        return [unquote(local[0])]
    path = unquote(parts.path)
    name = path.rpartition("/")[2]
    if "/upload/" in path:
        prefix, dash, rest = name.partition("-")
        is_hash = dash and prefix and all(letter in "0123456789abcdef" for letter in prefix)  # uploads always have one
        return [rest, name] if is_hash else [name]
    return [name] if parts.scheme else [path.lstrip("/")]


def _objects(
    results: list[dict[str, Any]], ignored: list[str], where: str
) -> tuple[list[Annotation], tuple[int, int] | None]:
    """Read the objects of an image, and its size; the kinds of what is not read are added to `ignored`."""
    regions: dict[Any, dict[str, Any]] = {}
    for number, result in enumerate(results):
        value, kind = result.get("value") or {}, result.get("type")
        if kind == "relation":
            continue
        if unread := next((key for key in _UNREAD_KEYS if key == kind or key in value), None):
            ignored.append(unread)
            continue
        region = regions.setdefault(result.get("id") or number, {"value": {}, "number": number + 1})
        region |= {key: each for key, each in result.items() if key != "value"}
        region["value"] |= value
    targets = {region.get("to_name") for region in regions.values() if _is_region(region)}
    if len(targets) > 1:
        raise DatasetError(f"{where} has labels of several images", "export tasks of one image each")
    annotations: list[Annotation] = []
    size: tuple[int, int] | None = None
    for region in regions.values():
        if "original_width" in region and "original_height" in region:
            size = int(region["original_width"]), int(region["original_height"])
        found = _annotations(region, size, f"{where}, result {region['number']}")
        annotations += found
        ignored += [] if found else [str(region.get("type") or "shape")]
    return annotations, size


def _annotations(region: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> list[Annotation]:
    """Return an object for each label of a region; its text, where it has one, is the label."""
    value = region["value"]
    if region.get("image_rotation"):
        raise DatasetError(
            f"{where} is on an image that was rotated by {region['image_rotation']} degrees in Label Studio",
            "rotate the file itself, and label it again",
        )
    labels = next((value[key] for key in _LABEL_KEYS if value.get(key)), None)
    text = value.get("text")
    words = " ".join(map(str, text)) if isinstance(text, list) else str(text or "")
    names = [words] if words else list(map(str, labels)) if isinstance(labels, list) else [str(labels or "")]
    is_shape = "points" in value or {"x", "y"} <= value.keys()
    if not is_shape or (not words and labels is None) or not ({"width", "radiusX", "points"} & value.keys()):
        return []
    box, polygons = _geometry(value, size, where)
    return [Annotation(name, box, polygons) for name in names]


def _geometry(
    value: Mapping[str, Any], size: tuple[int, int] | None, where: str
) -> tuple[list[float], tuple[list[float], ...]]:
    """Return the box of a region in pixels, and its polygon where it is not an upright box."""
    if size is None:
        raise DatasetError(
            f"{where} has no `original_width` and `original_height`",
            "export it from Label Studio again, as JSON, COCO or YOLO",
        )
    across, down = size[0] / 100, size[1] / 100
    if "points" in value:
        pairs = [side for point in value["points"] for side in point]
        polygon = [side * (down if at % 2 else across) for at, side in enumerate(finite_numbers(pairs, where))]
        return bounding_box([polygon]), (polygon,)
    if "radiusX" in value:
        x, y, wide, high = finite_numbers([value[key] for key in ("x", "y", "radiusX", "radiusY")], where)
        return [(x - wide) * across, (y - high) * down, (x + wide) * across, (y + high) * down], ()
    x, y, width, height = finite_numbers([value.get(key) for key in ("x", "y", "width", "height")], where)
    box = [x * across, y * down, (x + width) * across, (y + height) * down]
    (rotation,) = finite_numbers([value.get("rotation") or 0], where)
    if not rotation:
        return box, ()
    quad = rotated_box(box, rotation, (box[0], box[1]))
    return bounding_box([quad]), (quad,)
