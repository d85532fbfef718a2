"""CVAT for images 1.1: one XML file with an `<image>` element for each image.

Boxes, rotated boxes, polygons, ellipses and run-length masks are objects. Points, polylines, cuboids, skeletons, tags
and the attributes of objects are not read; each image names them in `ignored_shapes`. Source: CVAT's documentation of
the format "CVAT for images 1.1".
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import HEAD_BYTES, finite_numbers, read_xml, rotated_box
from florence2.errors import DatasetError
from florence2.model.geometry import bounding_box


def is_cvat(path: Path) -> bool:
    """Tell by the beginning of an XML file whether CVAT wrote it."""
    if path.suffix.lower() != ".xml":
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return b"<annotations>" in head and (b"<image " in head or b"<meta>" in head or b"<version>" in head)


def read_cvat(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a CVAT file, each with the words that name it."""
    root = read_xml(path)
    if root.find("track") is not None:
        raise DatasetError(f"{path} is CVAT's format for videos", "export the task as `CVAT for images 1.1`")
    for image in root.iter("image"):
        where = f"{path} image {image.get('id')}"
        yield where, read_image(image.get("name") or "", where, _parse_image, image, where)


def _parse_image(image: ElementTree.Element, where: str) -> AnnotatedImage:
    name = image.get("name")
    if not name:
        raise DatasetError(f"{where} has no `name`", "export it again")
    annotations: list[Annotation] = []
    ignored: list[str] = []
    for shape in image:
        annotation = _annotation(shape, f"{where}, {shape.tag} `{shape.get('label')}`")
        if annotation is not None:
            annotations.append(annotation)
            ignored += ["attribute" for attribute in shape.iter("attribute") if attribute.text]
        else:
            ignored.append(shape.tag)
    size = finite_numbers([image.get("width") or 0, image.get("height") or 0], where)
    known_size = (int(size[0]), int(size[1])) if all(size) else None
    return AnnotatedImage(name, annotations, known_size, ignored_shapes=tuple(ignored))


def _annotation(shape: ElementTree.Element, where: str) -> Annotation | None:
    label = shape.get("label") or ""
    if shape.tag == "box":
        box = finite_numbers([shape.get(side) for side in ("xtl", "ytl", "xbr", "ybr")], where)
        (rotation,) = finite_numbers([shape.get("rotation") or 0], where)
        if not rotation:
            return Annotation(label, box)
        quad = rotated_box(box, rotation, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        return Annotation(label, bounding_box([quad]), (quad,))
    if shape.tag == "polygon":
        pairs = (shape.get("points") or "").replace(";", ",").split(",")
        polygon = finite_numbers(pairs, where)
        return Annotation(label, bounding_box([polygon]), (polygon,))
    if shape.tag == "ellipse":
        x, y, across, down = finite_numbers([shape.get(side) for side in ("cx", "cy", "rx", "ry")], where)
        return Annotation(label, [x - across, y - down, x + across, y + down])
    if shape.tag == "mask":
        left, top, width, height = finite_numbers(
            [shape.get(side) for side in ("left", "top", "width", "height")], where
        )
        return Annotation(label, [left, top, left + width, top + height])
    return None
