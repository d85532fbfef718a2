"""Small images, sidecars and tables on disk, for the tests of `data/`."""

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def image(path: Path, size: tuple[int, int] = (20, 10)) -> Path:
    """Write an image and create its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 40)).save(path)
    return path


def captioned(path: Path, caption: str, extension: str = ".txt") -> Path:
    """Write an image and its sidecar."""
    image(path).with_suffix(extension).write_text(caption, encoding="utf-8")
    return path


def jsonl(path: Path, rows: Iterable[object]) -> Path:
    """Write rows, one JSON object in each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
