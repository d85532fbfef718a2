"""Formats with one file of boxes for each picture: Pascal VOC's XML and LabelMe's JSON.

VOC's corners are taken as they stand, counted from 0 as most tools write them: where a tool counts from 1, boxes are
one pixel off. Of LabelMe's shapes, polygons, rectangles, circles and masks are objects (a mask and a circle as its
box); points and lines are none. Shapes of one label and one `group_id` are parts of one object.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from florence2.data.folder import Listing, read_text, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, bounding_box, image_beside, split_aliases
from florence2.errors import UserError

Read = Iterator[tuple[str, AnnotatedImage]]


def find_voc(folder: Path, listing: Listing) -> tuple[Path, Path] | None:
    """Give the folders of (XML files, pictures), if there are any: VOC's own two, or one for both."""
    if (folder / "Annotations").is_dir():
        images = folder / "JPEGImages"
        return folder / "Annotations", images if images.is_dir() else folder
    lists = [name for name in listing.names if name.lower().endswith(".xml")]
    stems = _by_stem(listing) if lists else {}
    return (folder, folder) if any(_stem(name) in stems for name in lists) else None


def find_labelme(folder: Path, listing: Listing) -> bool:
    """Tell whether a folder holds LabelMe's JSON files, by the first JSON in it."""
    first = next((name for name in listing.names if name.lower().endswith(".json")), None)
    if first is None:
        return False
    try:
        told = json.loads((folder / first).read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(told, dict) and "shapes" in told and "imagePath" in told


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _by_stem(listing: Listing) -> dict[str, str]:
    """Map the stems of a folder's pictures to their names."""
    return {_stem(name): name for name in listing.images()}


def read_voc(lists: Path, images: Path, split: str | None) -> Read:
    """Read the pictures of a folder of XML files; a split is a list under `ImageSets/Main/`."""
    names = next(walk(lists, recursive=False)).names
    there = _by_stem(next(walk(images, recursive=False)))
    wanted = _listed(lists.parent / "ImageSets" / "Main", split)
    for name in names:
        if name.lower().endswith(".xml") and (wanted is None or _stem(name) in wanted):
            yield str(lists / name), _voc(lists / name, images, there)


def _listed(folder: Path, split: str | None) -> set[str] | None:
    if split is None:
        return None
    for name in split_aliases(split):
        if (folder / f"{name}.txt").is_file():
            return {line.split()[0] for line in read_text(folder / f"{name}.txt").splitlines() if line.strip()}
    raise UserError(f"{folder} has no list {split}.txt", "name a split that it has, or none")


def _voc(path: Path, images: Path, there: dict[str, str]) -> AnnotatedImage:
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not XML: {error}") from None
    things = [_voc_thing(row, path) for row in root.iter("object")]
    named = image_beside(images, root.findtext("filename") or "")
    if not named or not (images / named).is_file():
        named = there.get(path.stem) or named or f"{path.stem}.jpg"
    width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    return AnnotatedImage(named, things, (width, height) if width and height else None)


def _voc_thing(row: ElementTree.Element, path: Path) -> Annotation:
    label = (row.findtext("name") or "").strip()
    try:
        sides = [float(row.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        raise UserError(f"{path}: object `{label}` has no `bndbox` of four numbers", "mend or drop it") from None
    return Annotation(label, sides)


def read_labelme(folder: Path) -> Read:
    """Read the pictures of a folder with a JSON beside each."""
    listing = next(walk(folder, recursive=False))
    there = _by_stem(listing)
    for name in listing.names:
        if name.lower().endswith(".json"):
            yield str(folder / name), _labelme(folder / name, folder, there)


def _labelme(path: Path, folder: Path, there: dict[str, str]) -> AnnotatedImage:
    try:
        told = json.loads(read_text(path))
        shapes = told["shapes"]
        named = image_beside(folder, str(told["imagePath"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is not a JSON that LabelMe wrote", "it needs `shapes` and `imagePath`") from None
    if not (folder / named).is_file():
        named = there.get(path.stem, named)
    width, height = told.get("imageWidth"), told.get("imageHeight")
    parts: dict[Any, list[Annotation]] = {}
    for number, shape in enumerate(shapes):
        if (part := _shape(shape, f"{path} shape {number + 1}")) is not None:
            group = shape.get("group_id")
            parts.setdefault((part.label, number if group is None else f"group {group}"), []).append(part)
    return AnnotatedImage(
        named, [_joined(each) for each in parts.values()], (width, height) if width and height else None
    )


def _joined(parts: list[Annotation]) -> Annotation:
    if len(parts) == 1:
        return parts[0]
    polygons = tuple(polygon for part in parts for polygon in part.polygons)
    return Annotation(parts[0].label, bounding_box([part.box for part in parts]), polygons)


def _shape(shape: Any, where: str) -> Annotation | None:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        label, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{where} has no `label` or no `points`", "mend or drop it") from None
    flat = [side for point in points for side in point]
    if kind == "polygon" and len(points) >= 3:
        return Annotation(label, bounding_box([flat]), (flat,))
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return Annotation(label, [x - radius, y - radius, x + radius, y + radius])
    if kind in ("rectangle", "mask") and len(points) >= 2:
        return Annotation(label, bounding_box([flat]))
    return None
