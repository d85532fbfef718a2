"""Formats with one annotation file for each image: Pascal VOC's XML and LabelMe's JSON.

VOC corners are read unchanged, counted from 0 as most tools do: boxes of a tool that counts from 1 are one pixel off.
Of LabelMe's shapes, polygons, rectangles, rotated rectangles, circles and masks are objects (masks and circles as
boxes); points and lines are not, and `ignored_shapes` names them. Shapes with the same label and `group_id` are parts
of one object. A file is about the image with its stem, else about the image that it names.
"""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from florence2.data.folders.listing import Listing, is_file, read_lines, read_text, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, image_beside, read_image, split_aliases
from florence2.data.formats.annotators.values import finite_numbers, read_xml
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.model.geometry import bounding_box

_POLYGON_TYPES = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")  # the last three are quads
NamedImages = Iterator[tuple[str, AnnotatedImage]]  # each with its name for errors


def find_voc(folder: Path, listing: Listing, dataset_dir: Path | None = None) -> tuple[Path, Path] | None:
    """Return the folders of (XML files, images): VOC's own two, or one for both; None if there are no XML files.

    `dataset_dir` is the folder of the images, where they are elsewhere.
    """
    if (folder / "Annotations").is_dir():
        images = folder / "JPEGImages"
        return folder / "Annotations", dataset_dir or (images if images.is_dir() else folder)
    xml_names = [name for name in listing.names if name.lower().endswith(".xml")]
    if not xml_names:
        return None
    images = dataset_dir or folder
    image_by_stem = _image_by_stem(next(walk(images, recursive=False)))
    return (folder, images) if any(_stem(name) in image_by_stem for name in xml_names) else None


def is_labelme_folder(folder: Path, listing: Listing) -> bool:
    """Return whether a folder contains LabelMe's JSON files, by the first JSON in it."""
    first = next((name for name in listing.names if name.lower().endswith(".json")), None)
    if first is None:
        return False
    try:
        content = parse_json((folder / first).read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return False
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", name.rpartition(".")[0])


def _image_by_stem(listing: Listing) -> dict[str, str]:
    return {_stem(name): name for name in listing.images()}


def _name_of(path: Path, image_by_stem: dict[str, str]) -> str:
    return image_by_stem.get(_stem(path.name), "")


def read_voc(xml_folder: Path, images: Path, split: str | None) -> NamedImages:
    """Read the images of a folder of XML files; a split is a list in `ImageSets/Main/`."""
    names = next(walk(xml_folder, recursive=False)).names
    image_by_stem = _image_by_stem(next(walk(images, recursive=False)))
    stems = _split_stems(xml_folder.parent / "ImageSets" / "Main", split)
    files = [xml_folder / name for name in names if name.lower().endswith(".xml")]
    annotated = (
        (str(path), read_image(_name_of(path, image_by_stem), str(path), _parse_voc, path, images, image_by_stem))
        for path in files
        if stems is None or _stem(path.name) in stems
    )
    return annotated if stems is not None else _count_unannotated(annotated, images)


def _count_unannotated(annotated_images: NamedImages, folder: Path) -> NamedImages:
    """Add, to what the last image ignores, the images of a folder that no annotation file is about."""
    unannotated = set(next(walk(folder, recursive=False)).images())
    last: tuple[str, AnnotatedImage] | None = None
    for where, annotated in annotated_images:
        if last is not None:
            yield last
        last = where, annotated
        unannotated.discard(annotated.file_name)
    if last is not None:
        ignored = [*last[1].ignored_shapes, *["image without an annotation file"] * len(unannotated)]
        yield last[0], replace(last[1], ignored_shapes=ignored)


def _split_stems(folder: Path, split: str | None) -> set[str] | None:
    if split is None:
        return None
    for name in split_aliases(split):
        if (folder / f"{name}.txt").is_file():
            return {line.split()[0] for line in read_lines(folder / f"{name}.txt") if line.strip()}
    raise DatasetError(f"{folder} has no list {split}.txt", "pass a split that it has, or none")


def _parse_voc(path: Path, images: Path, image_by_stem: dict[str, str]) -> AnnotatedImage:
    root = read_xml(path)
    annotations = [_parse_voc_object(element, path) for element in root.iter("object")]
    name, ignored = _image_of(path, (root.findtext("filename") or "").strip(), images, image_by_stem)
    ignored += ["part" for _ in root.iter("part")]
    sides = [root.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    width, height = (int(side) for side in finite_numbers(sides, str(path)))
    return AnnotatedImage(name, annotations, (width, height) if width and height else None, ignored_shapes=ignored)


def _image_of(path: Path, named: str, images: Path, image_by_stem: dict[str, str]) -> tuple[str, list[str]]:
    """Return the image of an annotation file, and a name for the report where the file names another one."""
    name = image_beside(images, named) if named else ""
    is_named = bool(name) and is_file(images / name)
    same_stem = image_by_stem.get(_stem(path.name))
    if same_stem is None or (is_named and _stem(Path(name).name) == _stem(path.name)):
        return name or f"{path.stem}.jpg", []
    return same_stem, ["name of another image"] if is_named else []


def _parse_voc_object(element: ElementTree.Element, path: Path) -> Annotation:
    label = (element.findtext("name") or "").strip()
    try:
        box = [float(element.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        raise DatasetError(f"{path}: object `{label}` has no `bndbox` of four numbers", "fix or remove it") from None
    return Annotation(label, box)


def read_labelme(folder: Path, images: Path) -> NamedImages:
    """Read the images of a folder of JSON files."""
    listing = next(walk(folder, recursive=False))
    image_by_stem = _image_by_stem(next(walk(images, recursive=False)))
    files = [folder / name for name in listing.names if name.lower().endswith(".json")]
    annotated = (
        (str(path), read_image(_name_of(path, image_by_stem), str(path), _parse_labelme, path, images, image_by_stem))
        for path in files
    )
    return _count_unannotated(annotated, images)


def _parse_labelme(path: Path, images: Path, image_by_stem: dict[str, str]) -> AnnotatedImage:
    try:
        content = parse_json(read_text(path))
        shapes = content["shapes"]
        named = str(content["imagePath"])
    except (ValueError, KeyError, TypeError):
        raise DatasetError(f"{path} is not a JSON of LabelMe", "write `shapes` and `imagePath`") from None
    name, ignored = _image_of(path, named, images, image_by_stem)
    width, height = content.get("imageWidth"), content.get("imageHeight")
    parts: dict[Any, list[Annotation]] = {}
    for number, shape in enumerate(shapes):
        if (part := _parse_shape(shape, f"{path} shape {number + 1}")) is not None:
            group = shape.get("group_id")
            parts.setdefault((part.label, number if group is None else f"group {group}"), []).append(part)
        else:
            ignored.append(str(shape.get("shape_type") or "polygon"))
    annotations = [_merge_parts(each) for each in parts.values()]
    return AnnotatedImage(name, annotations, (width, height) if width and height else None, ignored_shapes=ignored)


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
    if shape_type in _POLYGON_TYPES and len(points) >= 3:
        return Annotation(label, bounding_box([coords]), (coords,))
    if shape_type == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return Annotation(label, [x - radius, y - radius, x + radius, y + radius])
    if shape_type in ("rectangle", "mask") and len(points) >= 2:
        return Annotation(label, bounding_box([coords]))
    return None
