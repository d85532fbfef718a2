"""PaddleOCR: one text file with an image name, a tab and a JSON list of `transcription` and `points` in each line."""

from collections.abc import Iterator
from pathlib import Path

from florence2.data.folders.listing import read_lines
from florence2.data.formats.annotations import AnnotatedImage, read_image
from florence2.data.formats.annotators.values import finite_numbers
from florence2.data.formats.text_detection.text_lines import image_with_text
from florence2.errors import DatasetError
from florence2.files import parse_json

LABEL_NAMES = ("label", "gt", "train", "val", "test")  # parts of names: `Label.txt`, `rec_gt_train.txt`, `val.txt`


def is_paddleocr(path: Path) -> bool:
    """Tell by its first line whether a text file is a label file of PaddleOCR."""
    if path.suffix.lower() != ".txt":
        return False
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return False
    return "\t[" in first and '"transcription"' in first and '"points"' in first


def read_paddleocr(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a label file of PaddleOCR, each with the words that name it."""
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path} line {number}"
        if line.strip():
            yield where, read_image(line.partition("\t")[0], where, _parse_line, line, where)


def _parse_line(line: str, where: str) -> AnnotatedImage:
    name, _, boxes = line.partition("\t")
    try:
        objects = parse_json(boxes)
    except ValueError:
        raise DatasetError(f"{where} is not an image name, a tab and a JSON list", "export it again") from None
    rows = [
        (finite_numbers([side for point in each["points"] for side in point], where), str(each["transcription"]))
        for each in objects
    ]
    return image_with_text(name, rows)
