"""Formats with one annotation file for each image: Pascal VOC's XML and LabelMe's JSON.

VOC corners are read unchanged, counted from 0 as most tools do: boxes of a tool that counts from 1 are one pixel off.
Of LabelMe's shapes, polygons, rectangles, circles and masks are objects (masks and circles as boxes); points and lines
are not. Shapes with the same label and `group_id` are parts of one object.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from florence2.data.folders.listing import Listing, read_text, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, image_beside, split_aliases
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box

NamedImages = Iterator[tuple[str, AnnotatedImage]]  # each with its name for errors


def find_voc(folder: Path, listing: Listing) -> tuple[Path, Path] | None:
    """Return the folders of (XML files, images): VOC's own two, or one for both; None if there are no XML files."""
    if (folder / "Annotations").is_dir():
        images = folder / "JPEGImages"
        return folder / "Annotations", images if images.is_dir() else folder
    xml_names = [name for name in listing.names if name.lower().endswith(".xml")]
    image_by_stem = _image_by_stem(listing) if xml_names else {}
    return (folder, folder) if any(_stem(name) in image_by_stem for name in xml_names) else None


def is_labelme_folder(folder: Path, listing: Listing) -> bool:
    """Return whether a folder contains LabelMe's JSON files, by the first JSON in it."""
    first = next((name for name in listing.names if name.lower().endswith(".json")), None)
    if first is None:
        return False
    try:
        content = json.loads((folder / first).read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _image_by_stem(listing: Listing) -> dict[str, str]:
    return {_stem(name): name for name in listing.images()}


def read_voc(xml_folder: Path, images: Path, split: str | None) -> NamedImages:
    """Read the images of a folder of XML files; a split is a list in `ImageSets/Main/`."""
    names = next(walk(xml_folder, recursive=False)).names
    image_by_stem = _image_by_stem(next(walk(images, recursive=False)))
    stems = _split_stems(xml_folder.parent / "ImageSets" / "Main", split)
    for name in names:
        if name.lower().endswith(".xml") and (stems is None or _stem(name) in stems):
            yield str(xml_folder / name), _parse_voc(xml_folder / name, images, image_by_stem)


def _split_stems(folder: Path, split: str | None) -> set[str] | None:
    if split is None:
        return None
    for name in split_aliases(split):
        if (folder / f"{name}.txt").is_file():
            return {line.split()[0] for line in read_text(folder / f"{name}.txt").splitlines() if line.strip()}
    raise DatasetError(f"{folder} has no list {split}.txt", "pass a split that it has, or none")


def _parse_voc(path: Path, images: Path, image_by_stem: dict[str, str]) -> AnnotatedImage:
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise DatasetError(f"{path} is not XML: {error}") from None
    annotations = [_parse_voc_object(element, path) for element in root.iter("object")]
    name = image_beside(images, root.findtext("filename") or "")
    if not name or not (images / name).is_file():
        name = image_by_stem.get(path.stem) or name or f"{path.stem}.jpg"
    width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    return AnnotatedImage(name, annotations, (width, height) if width and height else None)


def _parse_voc_object(element: ElementTree.Element, path: Path) -> Annotation:
    label = (element.findtext("name") or "").strip()
    try:
        box = [float(element.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        raise DatasetError(f"{path}: object `{label}` has no `bndbox` of four numbers", "fix or remove it") from None
    return Annotation(label, box)


def read_labelme(folder: Path) -> NamedImages:
    """Read the images of a folder that has a JSON beside each."""
    listing = next(walk(folder, recursive=False))
    image_by_stem = _image_by_stem(listing)
    for name in listing.names:
        if name.lower().endswith(".json"):
            yield str(folder / name), _parse_labelme(folder / name, folder, image_by_stem)


def _parse_labelme(path: Path, folder: Path, image_by_stem: dict[str, str]) -> AnnotatedImage:
    try:
        content = json.loads(read_text(path))
        shapes = content["shapes"]
        name = image_beside(folder, str(content["imagePath"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DatasetError(f"{path} is not a JSON of LabelMe", "write `shapes` and `imagePath`") from None
    if not (folder / name).is_file():
        name = image_by_stem.get(path.stem, name)
    width, height = content.get("imageWidth"), content.get("imageHeight")
    parts: dict[Any, list[Annotation]] = {}
    for number, shape in enumerate(shapes):
        if (part := _parse_shape(shape, f"{path} shape {number + 1}")) is not None:
            group = shape.get("group_id")
            parts.setdefault((part.label, number if group is None else f"group {group}"), []).append(part)
    annotations = [_merge_parts(each) for each in parts.values()]
    return AnnotatedImage(name, annotations, (width, height) if width and height else None)


def _merge_parts(parts: list[Annotation]) -> Annotation:
    if len(parts) == 1:
        return parts[0]
    polygons = tuple(polygon for part in parts for polygon in part.polygons)
    return Annotation(parts[0].label, bounding_box([part.box for part in parts]), polygons)


def _parse_shape(shape: Any, where: str) -> Annotation | None:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        label, shape_type = str(shape["label"]), shape.get("shape_type") or "polygon"
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DatasetError(f"{where} has no `label` or no `points`", "fix or remove it") from None
    coords = [side for point in points for side in point]
    if shape_type == "polygon" and len(points) >= 3:
        return Annotation(label, bounding_box([coords]), (coords,))
    if shape_type == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return Annotation(label, [x - radius, y - radius, x + radius, y + radius])
    if shape_type in ("rectangle", "mask") and len(points) >= 2:
        return Annotation(label, bounding_box([coords]))
    return None
