"""FUNSD: a JSON for each scanned form, with `form` entries of a box and a text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2.data.formats.annotations import AnnotatedImage
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
        rows = [(finite_numbers(each["box"], str(path)), str(each["text"])) for each in read_json(path)["form"]]
        yield str(path), image_with_text(by_stem.get(path.stem, f"{path.stem}.png"), rows)
