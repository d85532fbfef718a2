"""The training curve: `metrics.jsonl`, one line for each report, and a picture of it, with no tracker needed.

Knows numbers and Pillow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

METRICS = "metrics.jsonl"
CURVE = "training_curve.png"

SIZE = (960, 540)
MARGINS = (80, 30, 30, 60)  # left, top, right, bottom, in pixels
INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = {"loss": (38, 103, 178), "eval_loss": (214, 93, 14)}
TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """The file of reports, in the order of the steps."""

    path: Path

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one report."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rows(self) -> list[dict[str, Any]]:
        """Read all reports; a line that was cut short is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def cut(self, step: int) -> None:
        """Forget what came after a step, because training goes on from there."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        aside = self.path.with_name(f".{self.path.name}.unfinished")
        aside.write_text("".join(map(_line, kept)), encoding="utf-8")
        aside.replace(self.path)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), ensure_ascii=False) + "\n"


def draw(rows: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Draw loss and eval loss over steps; None where there are fewer than two points."""
    lines = {name: _points(rows, name) for name in COLOURS}
    every = [point for line in lines.values() for point in line]
    if len(every) < 2:
        return None
    frame = _Frame(every)
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    frame.axes(pen)
    for name, line in lines.items():
        places = [frame.place(point) for point in line]
        pen.line(places, fill=COLOURS[name], width=2, joint="curve")
        for x, y in places if len(places) <= 40 else []:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[name])
    _legend(pen, [name for name, line in lines.items() if line])
    return image


def save(folder: Path) -> None:
    """Draw what `metrics.jsonl` in a folder says, beside it."""
    image = draw(Metrics(folder / METRICS).rows())
    if image is not None:
        image.save(folder / CURVE)


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if "step" in row and isinstance(row.get(name), (int, float)) and math.isfinite(row[name])
    ]


class _Frame:
    """The window of numbers that is drawn, and where each lands on the picture."""

    def __init__(self, points: Sequence[Point]) -> None:
        steps, values = zip(*points, strict=True)
        self.left, self.right = min(steps), max(max(steps), min(steps) + 1)
        spread = (max(values) - min(values)) or 1.0
        self.low, self.high = min(values) - 0.05 * spread, max(values) + 0.05 * spread

    def place(self, point: Point) -> Point:
        left, top, right, bottom = MARGINS
        across = (point[0] - self.left) / (self.right - self.left)
        up = (point[1] - self.low) / (self.high - self.low)
        return left + across * (SIZE[0] - left - right), SIZE[1] - bottom - up * (SIZE[1] - top - bottom)

    def axes(self, pen: ImageDraw.ImageDraw) -> None:
        font = ImageFont.load_default(15)
        for tick in range(TICKS + 1):
            value = self.low + (self.high - self.low) * tick / TICKS
            step = self.left + (self.right - self.left) * tick / TICKS
            x, y = self.place((step, value))
            pen.line((MARGINS[0], y, SIZE[0] - MARGINS[2], y), fill=GRID)
            pen.text((MARGINS[0] - 8, y), f"{value:.3g}", fill=INK, anchor="rm", font=font)
            pen.text((x, SIZE[1] - MARGINS[3] + 10), f"{step:.0f}", fill=INK, anchor="mt", font=font)
        pen.text((SIZE[0] / 2, SIZE[1] - 12), "step", fill=INK, anchor="mb", font=font)


def _legend(pen: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
    font = ImageFont.load_default(15)
    for row, name in enumerate(names):
        y = MARGINS[1] + 14 + 22 * row
        x = SIZE[0] - MARGINS[2] - 130
        pen.line((x, y, x + 28, y), fill=COLOURS[name], width=3)
        pen.text((x + 36, y), name.replace("_", " "), fill=INK, anchor="lm", font=font)
