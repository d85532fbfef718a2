"""ICDAR: a file `gt_NAME.txt` for each image, with lines `x1,y1,...,x4,y4,text` or `x1,y1,x2,y2,text`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from florence2.data.folders.listing import Listing, read_lines
from florence2.data.formats.annotations import AnnotatedImage, read_image
from florence2.data.formats.annotators.values import finite_numbers
from florence2.data.formats.text_detection.text_lines import TextLine, image_with_text
from florence2.errors import DatasetError

_LONGEST_LINE = 131_072
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
    """Read eight or four coordinates and a text, separated by commas or by spaces; the text is kept as it is."""
    if len(line) > _LONGEST_LINE:
        what = f"{where} is not a row of text: field larger than {_LONGEST_LINE:,} characters"
        raise DatasetError(what, "correct or remove it")
    mark = "," if "," in line.split('"')[0] else None
    for count in (8, 4):
        fields = line.strip().split(mark, count)
        text = fields[count] if len(fields) > count else ""
        has_all = len(fields) > count or (len(fields) == count and count == 8)  # lines of eight may have no text
        if has_all and _are_numbers(fields[:count]):
            return finite_numbers(fields[:count], where), _unquoted(text.strip())
    raise DatasetError(f"{where} has no four or eight coordinates and a text", "write `x1,y1,x2,y2,x3,y3,x4,y4,text`")


def _unquoted(text: str) -> str:
    is_quoted = len(text) >= 2 and text[0] == text[-1] == '"'
    return text[1:-1].replace('""', '"') if is_quoted else text


def _are_numbers(fields: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", field) for field in fields)
