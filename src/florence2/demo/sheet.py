"""The emoji pictures the demo's scenes are composed of: one packed sheet, its names and outlines.

The pictures are Google's Noto emoji (their licence lies beside them). This file knows nothing of scenes.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "emoji"

Corner = tuple[float, float]


@dataclass(frozen=True)
class Emoji:
    """One emoji: its picture is cropped to what shows; `outline` is in shares of its width and height."""

    name: str
    colour: str
    box: tuple[int, int, int, int]  # in the sheet, pixels
    outline: tuple[Corner, ...]

    @property
    def aspect(self) -> float:
        """Width over height."""
        left, top, right, bottom = self.box
        return (right - left) / (bottom - top)

    def drawn(self, width: int, height: int) -> Image.Image:
        """Return the picture at this size, with its transparency."""
        return cut(self.box).resize((width, height), Image.Resampling.BICUBIC)


@lru_cache(maxsize=1)
def sheet() -> Image.Image:
    """Open the sheet once."""
    with Image.open(FOLDER / "sheet.png") as image:
        return image.convert("RGBA")


@lru_cache(maxsize=256)
def cut(box: tuple[int, int, int, int]) -> Image.Image:
    """Cut one emoji out of the sheet."""
    return sheet().crop(box)


@lru_cache(maxsize=1)
def all_emoji() -> tuple[Emoji, ...]:
    """Read names, colours, places in the sheet and outlines, in the order of the sheet."""
    rows = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))
    return tuple(
        Emoji(row["name"], row["colour"], tuple(row["box"]), tuple((x, y) for x, y in row["outline"])) for row in rows
    )
