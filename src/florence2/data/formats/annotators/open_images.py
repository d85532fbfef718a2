"""Open Images: a CSV of boxes (`ImageID, LabelName, XMin, XMax, YMin, YMax` as fractions of the image's sides).

Class names come from `class-descriptions*.csv` beside the list, where there is one. `IsGroupOf` boxes cover several
objects and are not read; each image names them in `ignored_shapes`.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from florence2.data.folders.listing import read_lines, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, read_image
from florence2.data.formats.annotators.values import csv_columns, finite_numbers, read_csv
from florence2.data.image import ImageError, image_size

_COLUMNS = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}


def is_open_images(path: Path) -> bool:
    """Tell by its header whether a CSV file is a list of boxes of Open Images."""
    return path.suffix.lower() == ".csv" and set(csv_columns(path)) >= _COLUMNS


def read_open_images(path: Path, images: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a list, whose files are in a folder or below it; an absent one has a name in `.jpg`."""
    names = _class_names(path)
    rows: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for where, row in read_csv(path):
        rows[row["ImageID"]].append((where, row))
    listings = walk(images, recursive=True)
    files = {name.rpartition(".")[0]: listing.id(name) for listing in listings for name in listing.images()}
    for stem in sorted(rows):
        file_name = files.get(stem, f"{stem}.jpg")
        where = f"{path} image {stem}"
        yield where, read_image(file_name, where, _image, file_name, images / file_name, rows[stem], names)


def _image(name: str, file: Path, rows: list[tuple[str, dict[str, str]]], names: dict[str, str]) -> AnnotatedImage:
    try:
        width, height = image_size(file)
    except ImageError:
        width, height = 1, 1  # the image is refused when it is opened
    boxes = []
    for where, row in rows:
        sides = finite_numbers([row[side] for side in ("XMin", "YMin", "XMax", "YMax")], where)
        if row.get("IsGroupOf") != "1":
            box = [side * (height if at % 2 else width) for at, side in enumerate(sides)]
            boxes.append(Annotation(names.get(row["LabelName"], row["LabelName"]), box))
    groups = ("group box",) * (len(rows) - len(boxes))
    return AnnotatedImage(name, boxes, (width, height), ignored_shapes=groups)


def _class_names(path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in sorted(path.parent.glob("*class-descriptions*.csv")):
        for line in read_lines(file):
            code, comma, name = line.partition(",")
            if comma and code.startswith("/"):
                names[code] = name.strip().strip('"')
    return names
