"""The emoji that the demo's scenes consist of: one sprite sheet with names, colors and outlines.

The images are Google's Noto emoji; their license is in the same folder.
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
    """One emoji, cropped to its visible pixels; `outline` is normalized to its width and height."""

    name: str
    colour: str
    box: tuple[int, int, int, int]  # pixels of the sheet
    outline: tuple[Corner, ...]

    @property
    def aspect(self) -> float:
        """Return width over height."""
        left, top, right, bottom = self.box
        return (right - left) / (bottom - top)

    def render(self, width: int, height: int) -> Image.Image:
        """Return the image at this size, RGBA."""
        return crop_sheet(self.box).resize((width, height), Image.Resampling.BICUBIC)


@lru_cache(maxsize=1)
def open_sheet() -> Image.Image:
    """Open the sheet, RGBA."""
    with Image.open(FOLDER / "sheet.png") as image:
        return image.convert("RGBA")


@lru_cache(maxsize=256)
def crop_sheet(box: tuple[int, int, int, int]) -> Image.Image:
    """Crop one emoji out of the sheet."""
    return open_sheet().crop(box)


@lru_cache(maxsize=1)
def all_emoji() -> tuple[Emoji, ...]:
    """Read names, colors, boxes and outlines, in the order of the sheet."""
    rows = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))
    return tuple(
        Emoji(row["name"], row["colour"], tuple(row["box"]), tuple((x, y) for x, y in row["outline"])) for row in rows
    )
