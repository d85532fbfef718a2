"""FUNSD: a JSON for each scanned form, with `form` entries of a box and a text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2.data.formats.annotations import AnnotatedImage, read_image
from florence2.data.formats.annotators.values import finite_numbers, read_json
from florence2.data.formats.text_detection.text_lines import image_with_text


def is_funsd(document: Any) -> bool:
    """Tell whether a JSON document is one page of FUNSD."""
    form = document.get("form") if isinstance(document, dict) else None
    return isinstance(form, list) and all(isinstance(each, dict) and "box" in each and "text" in each for each in form)


def read_funsd(folder: Path, images: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the pages of a folder with a JSON for each; `images` is the folder of the images."""
    by_stem = {path.stem: path.name for path in sorted(images.iterdir()) if path.is_file()}
    for path in sorted(folder.glob("*.json")):
        name = by_stem.get(path.stem, f"{path.stem}.png")
        yield str(path), read_image(name, str(path), _parse_page, name, path)


def _parse_page(name: str, path: Path) -> AnnotatedImage:
    rows = [(finite_numbers(each["box"], str(path)), str(each["text"])) for each in read_json(path)["form"]]
    return image_with_text(name, rows)
