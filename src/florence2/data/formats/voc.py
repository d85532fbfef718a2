"""Formats with one annotation file for each image: Pascal VOC's XML and LabelMe's JSON.

VOC corners are read unchanged, counted from 0 as most tools do: boxes of a tool that counts from 1 are one pixel off.
Of LabelMe's shapes, polygons, rectangles, rotated rectangles, circles and masks are objects (masks and circles as
boxes); points and lines are not, and `ignored_shapes` names them. Shapes with the same label and `group_id` are parts
of one object. A file is about the image with its stem, else about the image that it names.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from florence2.data.folders.listing import Listing, display_path, is_file, read_lines, read_text, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, image_beside, read_image, split_aliases
from florence2.data.formats.annotators.values import HEAD_BYTES, finite_numbers, read_xml
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.model.geometry import bounding_box

_POLYGON_TYPES = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")  # the last three are quads
_XML_FOLDERS = ("Annotations", "annotations", "xmls", "xml", "labels")  # the first is VOC's own
_JSON_FOLDERS = ("annotations", "labels", "json", "jsons")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")
NamedImages = Iterator[tuple[str, AnnotatedImage]]  # each with its name for errors


def find_voc(folder: Path, listing: Listing, dataset_dir: Path | None = None) -> tuple[Path, Path] | None:
    """Return the folders of (XML files, images): VOC's own two, or one for both; None if there are no XML files.

    `dataset_dir` is the folder of the images, where they are elsewhere.
    """
    for name in _XML_FOLDERS:
        if (folder / name).is_dir() and (name == _XML_FOLDERS[0] or _is_voc(_first_file(folder / name, ".xml"))):
            return folder / name, dataset_dir or _image_folder(folder)
    xml_names = [name for name in listing.names if name.lower().endswith(".xml")]
    if not xml_names:
        return None
    images = dataset_dir or folder
    image_by_stem = _image_by_stem(_image_names(images))
    return (folder, images) if any(_stem(name) in image_by_stem for name in xml_names) else None


def find_labelme(folder: Path, listing: Listing, dataset_dir: Path | None = None) -> tuple[Path, Path] | None:
    """Return the folders of (LabelMe's JSON files, images), which may be one; None if there are none."""
    names = [name for name in listing.names if name.lower().endswith(".json")]
    stems = {_stem(name) for name in listing.images()} if names else set()
    first = next((name for name in names if _stem(name) in stems), next(iter(names), None))
    if first is not None and is_labelme(folder / first):
        return folder, dataset_dir or folder
    for name in _JSON_FOLDERS:
        if (folder / name).is_dir() and is_labelme(_first_file(folder / name, ".json")):
            return folder / name, dataset_dir or _image_folder(folder)
    return None


def is_labelme(path: Path | None) -> bool:
    """Return whether a file is LabelMe's JSON of one image."""
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig")) if path is not None else None
    except (ValueError, OSError):
        return False
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def reject_one_image(path: Path) -> None:
    """Raise a DatasetError for the annotation file of one image of a folder: VOC's XML, LabelMe's JSON."""
    extension = path.suffix.lower()
    if (extension == ".xml" and _is_voc(path)) or (extension == ".json" and is_labelme(path)):
        raise DatasetError(f"{path} has the annotations of one image", f"pass its folder, {display_path(path.parent)}")


def _is_voc(path: Path | None) -> bool:
    try:
        return path is not None and re.search(rb"<annotation[\s>]", path.read_bytes()[:HEAD_BYTES]) is not None
    except OSError:
        return False


def _first_file(folder: Path, extension: str) -> Path | None:
    names = next(walk(folder, recursive=False)).names
    return next((folder / name for name in names if name.lower().endswith(extension)), None)


def _image_folder(folder: Path) -> Path:
    return next((folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()), folder)


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", name.rpartition(".")[0])


def _image_names(images: Path, is_recursive: bool = False) -> list[str]:
    listings = walk(images, recursive=is_recursive)
    return [listing.id(name) for listing in listings for name in listing.images()]


def _image_by_stem(names: Iterable[str]) -> dict[str, str]:
    return {_stem(name): name for name in names}


def _annotation_files(folder: Path, extension: str, is_recursive: bool) -> list[str]:
    """Return the paths of annotation files within a folder."""
    listings = walk(folder, recursive=is_recursive)
    return [each.id(name) for each in listings for name in each.names if name.lower().endswith(extension)]


def read_voc(xml_folder: Path, images: Path, split: str | None) -> NamedImages:
    """Read the images of a folder of XML files; a split is a list in `ImageSets/Main/`."""
    is_recursive = xml_folder != images
    image_names = _image_names(images, is_recursive)
    image_by_stem = _image_by_stem(image_names)
    stems = _split_stems(xml_folder.parent / "ImageSets" / "Main", split)
    names = _annotation_files(xml_folder, ".xml", is_recursive)
    chosen = [name for name in names if stems is None or _stem(name.rpartition("/")[2]) in stems]
    annotated = _read_files(_parse_voc, xml_folder, chosen, images, image_by_stem)
    return annotated if stems is not None else _count_unannotated(annotated, image_names)


def _read_files(
    read: Callable[..., AnnotatedImage],
    folder: Path,
    names: Iterable[str],
    images: Path,
    image_by_stem: dict[str, str],
) -> NamedImages:
    for name in names:
        path, same_stem = folder / name, image_by_stem.get(_stem(name), "")
        yield str(path), read_image(same_stem, str(path), read, path, images, same_stem)


def _count_unannotated(annotated_images: NamedImages, names: Iterable[str]) -> NamedImages:
    """Add, to what the last image ignores, the images of a folder that no annotation file is about."""
    unannotated = set(names)
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


def _parse_voc(path: Path, images: Path, same_stem: str) -> AnnotatedImage:
    root = read_xml(path)
    annotations = [_parse_voc_object(element, path) for element in root.iter("object")]
    name, ignored = _image_of(path, (root.findtext("filename") or "").strip(), images, same_stem)
    ignored += ["part" for _ in root.iter("part")]
    sides = [root.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    width, height = (int(side) for side in finite_numbers(sides, str(path)))
    return AnnotatedImage(name, annotations, (width, height) if width and height else None, ignored_shapes=ignored)


def _image_of(path: Path, named: str, images: Path, same_stem: str) -> tuple[str, list[str]]:
    """Return the image of an annotation file, and a name for the report where the file names another one."""
    name = image_beside(images, named) if named else ""
    is_named = bool(name) and is_file(images / name)
    last = name.rpartition("/")[2]
    if not same_stem:  # `../images/a.jpg` is `a.jpg` in the folder of the images
        return last if last and is_file(images / last) else name or f"{path.stem}.jpg", []
    if is_named and _stem(Path(name).name) == _stem(path.name):
        return same_stem if Path(name).name == Path(same_stem).name else name, []
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
    is_recursive = folder != images
    image_names = _image_names(images, is_recursive)
    image_by_stem = _image_by_stem(image_names)
    names = _annotation_files(folder, ".json", is_recursive)
    named = (name for name in names if _stem(name) in image_by_stem or is_labelme(folder / name))  # no list of classes
    annotated = _read_files(_parse_labelme, folder, named, images, image_by_stem)
    return _count_unannotated(annotated, image_names)


def _parse_labelme(path: Path, images: Path, same_stem: str) -> AnnotatedImage:
    try:
        content = parse_json(read_text(path))
        shapes = content["shapes"]
        named = str(content["imagePath"])
    except (ValueError, KeyError, TypeError):
        raise DatasetError(f"{path} is not a JSON of LabelMe", "write `shapes` and `imagePath`") from None
    name, ignored = _image_of(path, named, images, same_stem)
    width, height = content.get("imageWidth"), content.get("imageHeight")
    parts: dict[Any, list[Annotation]] = {}
    for number, shape in enumerate(shapes):
        if (part := _parse_shape(shape, f"{path} shape {number + 1}")) is not None:
            ignored += ["description"] * bool(shape.get("description"))
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
