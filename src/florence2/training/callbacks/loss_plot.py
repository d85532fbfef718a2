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

from florence2.files import atomic_write

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "training_curve.png"

WIDTH, LOSS_HEIGHT, HEIGHT = 960, 420, 250  # pixels; what is not a loss stands below, two panels to a row
MARGINS = (80, 36, 30, 60)  # left, top, right, bottom of a panel, in pixels
INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = {"loss": (38, 103, 178), "eval_loss": (214, 93, 14)}
SCORE, COURSE = (44, 137, 84), (120, 86, 160)
COURSES = ("learning_rate", "grad_norm")
UNDRAWN = ("runtime", "samples_per_second", "steps_per_second")
TICKS = 5

Point = tuple[float, float]
Lines = dict[str, list[Point]]


@dataclass(frozen=True)
class MetricsFile:
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
        with atomic_write(self.path) as file:
            file.writelines(map(_line, kept))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), ensure_ascii=False) + "\n"


def draw_plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Draw the losses over the steps, and below them each score, the learning rate and the gradient norm.

    None where there are fewer than two points of loss.
    """
    losses = {name: points for name in COLOURS if (points := _points(rows, name))}
    if sum(map(len, losses.values())) < 2:
        return None
    below = {name: points for name in (*_scores(rows), *COURSES) if (points := _points(rows, name))}
    image = Image.new("RGB", (WIDTH, LOSS_HEIGHT + HEIGHT * ((len(below) + 1) // 2)), PAPER)
    pen = ImageDraw.Draw(image)
    steps = [step for line in (*losses.values(), *below.values()) for step, _ in line]
    span = min(steps), max(max(steps), min(steps) + 1)
    _panel(pen, (0, 0, WIDTH, LOSS_HEIGHT), losses, span)
    for at, (name, points) in enumerate(below.items()):
        left, top = at % 2 * WIDTH // 2, LOSS_HEIGHT + at // 2 * HEIGHT
        _panel(pen, (left, top, left + WIDTH // 2, top + HEIGHT), {name: points}, span)
    return image


def save_plot(folder: Path) -> None:
    """Draw what `metrics.jsonl` in a folder says, beside it."""
    image = draw_plot(MetricsFile(folder / METRICS_FILE).rows())
    if image is not None:
        image.save(folder / PLOT_FILE)


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the scores in the order in which they came."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("eval_"))
    return [name for name in names if name not in COLOURS and not name.endswith(UNDRAWN)]


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if "step" in row and isinstance(row.get(name), (int, float)) and math.isfinite(row[name])
    ]


def _panel(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Lines, span: Point) -> None:
    """Draw lines into one part of the picture, left, top, right, bottom in pixels, from the first step to the last."""
    frame = _Frame(box, [value for line in lines.values() for _, value in line], span)
    frame.axes(pen)
    for name, line in lines.items():
        colour = _colour(name)
        places = [frame.place(point) for point in line]
        pen.line(places, fill=colour, width=2, joint="curve")
        for x, y in places if len(places) <= 40 else []:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    frame.legend(pen, list(lines))


def _colour(name: str) -> tuple[int, int, int]:
    return COLOURS.get(name, COURSE if name in COURSES else SCORE)


class _Frame:
    """The window of numbers that is drawn, and where each lands on the picture."""

    def __init__(self, box: tuple[int, int, int, int], values: Sequence[float], span: Point) -> None:
        left, top, right, bottom = MARGINS
        self.box = (box[0] + left, box[1] + top, box[2] - right, box[3] - bottom)
        self.left, self.right = span
        spread = (max(values) - min(values)) or 1.0
        self.low, self.high = min(values) - 0.05 * spread, max(values) + 0.05 * spread

    def place(self, point: Point) -> Point:
        left, top, right, bottom = self.box
        across = (point[0] - self.left) / (self.right - self.left)
        up = (point[1] - self.low) / (self.high - self.low)
        return left + across * (right - left), bottom - up * (bottom - top)

    def axes(self, pen: ImageDraw.ImageDraw) -> None:
        font = ImageFont.load_default(15)
        left, _, right, bottom = self.box
        for tick in range(TICKS + 1):
            value = self.low + (self.high - self.low) * tick / TICKS
            step = self.left + (self.right - self.left) * tick / TICKS
            x, y = self.place((step, value))
            pen.line((left, y, right, y), fill=GRID)
            pen.text((left - 8, y), f"{value:.3g}", fill=INK, anchor="rm", font=font)
            pen.text((x, bottom + 10), f"{step:.0f}", fill=INK, anchor="mt", font=font)
        pen.text(((left + right) / 2, bottom + MARGINS[3] - 12), "step", fill=INK, anchor="mb", font=font)

    def legend(self, pen: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
        """Name the lines above them, from left to right."""
        font = ImageFont.load_default(15)
        x, y = self.box[0], self.box[1] - 18
        for name in names:
            words = name.replace("_", " ")
            pen.line((x, y, x + 28, y), fill=_colour(name), width=3)
            pen.text((x + 36, y), words, fill=INK, anchor="lm", font=font)
            x += 60 + int(font.getlength(words))
