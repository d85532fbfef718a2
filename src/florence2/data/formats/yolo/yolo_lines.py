"""Lines of YOLO label files, read as annotations and written.

A line is a class and either a box (center x, center y, width, height) or a polygon (x y x y ...), as fractions of the
image's sides. With `kpt_shape` in `data.yaml`, keypoints follow the box and are not read. A line in `labelTxt/` is a
quad in pixels, a name and a difficulty.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from florence2.data.folders.listing import is_file, read_lines
from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.yolo.yolo_layout import CONFIG_NAMES, YoloDataset, label_path
from florence2.data.image import ImageError, Size, image_size
from florence2.errors import DatasetError
from florence2.model.geometry import AnswerItem, bounding_box


def read_yolo(yolo: YoloDataset) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a split, each with the path of its labels."""
    unlisted = yolo.unlisted
    for image, labels in yolo.labels.items():
        name = image.relative_to(yolo.root).as_posix() if image.is_relative_to(yolo.root) else str(image)
        annotated = read_image(name, str(labels), _parse_labels, name, image, labels, yolo)
        yield str(labels), replace(annotated, unlisted_annotations=unlisted) if unlisted else annotated
        unlisted = ()


def _parse_labels(name: str, image: Path, labels: Path, yolo: YoloDataset) -> AnnotatedImage:
    try:
        size = image_size(image)
    except ImageError:
        size = (1, 1)  # the value is never used: a later check rejects the image
    lines = read_lines(labels) if is_file(labels) else []
    ignored: list[str] = []
    annotations = [
        _parse_line(line.split(), size, yolo, f"{labels} line {number}", ignored)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith(("imagesource:", "gsd:"))  # the head of a file in DOTA's format
    ]
    return AnnotatedImage(name, annotations, ignored_shapes=ignored)


def _parse_line(fields: list[str], size: Size, yolo: YoloDataset, where: str, ignored: list[str]) -> Annotation:
    if len(fields) >= 10 and not _is_number(fields[8]):
        return _parse_quad(fields, where)
    try:
        number, *fractions = map(float, fields)
    except ValueError:
        raise DatasetError(f"{where} is not a row of numbers", "write a class and four numbers, or a polygon") from None
    label = yolo.names.get(int(number)) if number.is_integer() else None
    if label is None:
        raise DatasetError(f"{where} has the class {fields[0]}, which is not in `names`", "add it to the names")
    if yolo.num_keypoint_values and len(fractions) == 4 + yolo.num_keypoint_values:
        ignored.append("keypoints")
        fractions = fractions[:4]
    if not yolo.num_keypoint_values and _has_visibilities(fractions):
        raise DatasetError(f"{where} has keypoints", "write `kpt_shape` into data.yaml, as in `kpt_shape: [17, 3]`")
    if len(fractions) in (4, 5):  # a fifth number is a predicted score
        x, y, width, height = (fraction * size[i % 2] for i, fraction in enumerate(fractions[:4]))
        return Annotation(label, [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    if len(fractions) < 6 or len(fractions) % 2 or yolo.num_keypoint_values:
        raise DatasetError(
            f"{where} has {len(fractions)} numbers after its class",
            "write 4 numbers for a box, or an even number for a polygon; keypoints need `kpt_shape` in data.yaml",
        )
    polygon = [fraction * size[i % 2] for i, fraction in enumerate(fractions)]
    return Annotation(label, bounding_box([polygon]), (polygon,))


def _has_visibilities(fractions: list[float]) -> bool:
    """Return whether numbers are a box and keypoints with their visibility 0, 1 or 2, which no polygon has."""
    visibilities = fractions[6::3]
    return len(fractions) % 3 == 1 and 2 in visibilities and all(value in (0, 1, 2) for value in visibilities)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _parse_quad(fields: list[str], where: str) -> Annotation:
    """Read a line of `labelTxt/`: four corners in pixels, a name, and a difficulty."""
    try:
        quad = [float(side) for side in fields[:8]]
    except ValueError:
        raise DatasetError(f"{where} is not eight numbers, a name and a difficulty", "correct or remove it") from None
    return Annotation(" ".join(fields[8:-1]), bounding_box([quad]), (quad,))


def write_yolo(folder: Path, images: Iterable[AnnotatedImage]) -> Counter[str]:
    """Write `data.yaml` and `labels/`; return the numbers of polygons and objects that were dropped.

    The file names of the images, whose sizes must be set, start with `images/`. Lines are polygons where every object
    has one, else boxes; of an object with several polygons, the line has the largest. Coordinates are clipped to the
    image, and objects outside it are dropped.
    """
    images = list(images)
    annotations = [annotation for image in images for annotation in image.annotations]
    as_polygons = bool(annotations) and all(annotation.polygons for annotation in annotations)
    names = sorted({annotation.label for annotation in annotations})
    numbers = {name: number for number, name in enumerate(names)}
    num_outside = 0
    for image in images:
        path = label_path(folder / image.file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = image.size or (1, 1)
        lines = [_format_line(numbers[each.label], each, size, as_polygons) for each in image.annotations]
        num_outside += lines.count("")
        path.write_text("".join(f"{line}\n" for line in lines if line), encoding="utf-8")
    config: dict[str, Any] = {"path": ".", "train": "images", "val": "images", "nc": len(names), "names": names}
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (folder / CONFIG_NAMES[0]).write_text(text, encoding="utf-8")
    num_polygons = sum(len(annotation.polygons) - 1 for annotation in annotations) if as_polygons else 0
    return Counter(
        {"polygons beyond the one that a YOLO line stores": num_polygons, "objects outside the image": num_outside}
    )


def _format_line(number: int, annotation: Annotation, size: Size, as_polygon: bool) -> str:
    """Write a line, "" for an object outside the image."""
    outline = annotation.box
    if as_polygon:
        outline = max(annotation.polygons, key=lambda polygon: AnswerItem.box(bounding_box([polygon])).area)
    coords = [min(max(value, 0), size[i % 2]) for i, value in enumerate(outline)]
    x1, y1, x2, y2 = bounding_box([coords])
    left, top, right, bottom = bounding_box([outline])
    if (x1 >= x2 and left < right) or (y1 >= y2 and top < bottom):
        return ""
    if not as_polygon:
        coords = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    return " ".join([str(number), *(f"{value / size[i % 2]:.8g}" for i, value in enumerate(coords))])
