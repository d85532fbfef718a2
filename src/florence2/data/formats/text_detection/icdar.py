"""ICDAR: a file `gt_NAME.txt` for each image, with lines `x1,y1,...,x4,y4,text` or `x1,y1,x2,y2,text`."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from florence2.data.folders.listing import Listing, read_lines
from florence2.data.formats.annotations import AnnotatedImage, read_image
from florence2.data.formats.annotators.values import finite_numbers
from florence2.data.formats.text_detection.text_lines import TextLine, image_with_text
from florence2.errors import DatasetError

_ICDAR_NAME = re.compile(r"^(?:gt_|res_)(.+)\.txt$", re.IGNORECASE)


def icdar_files(listing: Listing) -> list[str]:
    """Give the `gt_*.txt` files of a folder whose lines begin with coordinates."""
    names = [name for name in listing.names if name.lower().startswith(("gt_", "res_")) and _ICDAR_NAME.match(name)]
    return names if names and _is_icdar(listing.path / names[0]) else []


def _is_icdar(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    first = next((line for line in lines if line.strip()), "")
    return re.match(r"\s*-?\d+(?:\.\d+)?(?:\s*[, ]\s*-?\d+(?:\.\d+)?){3,}", first) is not None


def read_icdar(listing: Listing, images: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the `gt_*.txt` files of a folder; `images` is the folder of the images."""
    by_stem = {path.stem: path.name for path in sorted(images.iterdir()) if path.is_file()}
    for name in icdar_files(listing):
        path = listing.path / name
        stem = _ICDAR_NAME.match(name)[1]  # type: ignore[index]
        image_name = by_stem.get(stem, f"{stem}.jpg")
        yield str(path), read_image(image_name, str(path), _parse_file, image_name, path)


def _parse_file(name: str, path: Path) -> AnnotatedImage:
    lines = [line for line in read_lines(path) if line.strip()]
    return image_with_text(name, [_icdar_line(line, f"{path} line {at}") for at, line in enumerate(lines, start=1)])


def _icdar_line(line: str, where: str) -> TextLine:
    """Read eight or four coordinates and a text, separated by commas or by spaces."""
    comma = "," in line.split('"')[0]
    try:
        fields = next(csv.reader([line], delimiter="," if comma else " ", skipinitialspace=True))
    except csv.Error as error:
        raise DatasetError(f"{where} is not a row of text: {error}", "correct or remove it") from None
    count = 8 if len(fields) >= 9 and _are_numbers(fields[:8]) else 4
    if len(fields) < count or not _are_numbers(fields[:count]):
        raise DatasetError(f"{where} has no four or eight coordinates", "write `x1,y1,x2,y2,x3,y3,x4,y4,text`")
    text = ("," if comma else " ").join(fields[count:])
    return finite_numbers(fields[:count], where), text.strip().strip('"')


def _are_numbers(fields: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", field) for field in fields)
