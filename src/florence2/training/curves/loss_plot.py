"""Plot of a training run: losses, evaluation metrics, learning rate and gradient norm over the steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, LOSS_HEIGHT, HEIGHT = 960, 420, 250  # pixels; panels without a loss are below it, two in a row
MARGINS = (80, 36, 30, 60)  # left, top, right, bottom of a panel in pixels
FOREGROUND, GRID, BACKGROUND = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = {"loss": (38, 103, 178), "eval_loss": (214, 93, 14)}
METRIC_COLOUR, TRAINING_COLOUR = (44, 137, 84), (120, 86, 160)
TRAINING_VALUES = ("learning_rate", "grad_norm")
TIMES = ("runtime", "samples_per_second", "steps_per_second")
TICKS = 5

Point = tuple[float, float]
Lines = dict[str, list[Point]]


def draw_plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Plot the losses of logged rows, and below them each metric, the learning rate and the gradient norm.

    Return None if there are fewer than two points of loss.
    """
    losses = {name: points for name in COLOURS if (points := points_of(rows, name))}
    if sum(map(len, losses.values())) < 2:
        return None
    below = {name: points for name in (*metric_names(rows), *TRAINING_VALUES) if (points := points_of(rows, name))}
    image = Image.new("RGB", (WIDTH, LOSS_HEIGHT + HEIGHT * ((len(below) + 1) // 2)), BACKGROUND)
    pen = ImageDraw.Draw(image)
    steps = [step for line in (*losses.values(), *below.values()) for step, _ in line]
    span = min(steps), max(max(steps), min(steps) + 1)
    _panel(pen, (0, 0, WIDTH, LOSS_HEIGHT), losses, span)
    for at, (name, points) in enumerate(below.items()):
        left, top = at % 2 * WIDTH // 2, LOSS_HEIGHT + at // 2 * HEIGHT
        _panel(pen, (left, top, left + WIDTH // 2, top + HEIGHT), {name: points}, span)
    return image


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of evaluation metrics in the order of their first rows."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("eval_"))
    return [name for name in names if name not in COLOURS and not name.endswith(TIMES)]


def points_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """Return the steps and finite values of a logged name."""
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if "step" in row and isinstance(row.get(name), (int, float)) and math.isfinite(row[name])
    ]


def _panel(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Lines, span: Point) -> None:
    """Draw lines into a box of the image, given as left, top, right, bottom in pixels."""
    axes = _Axes(box, [value for line in lines.values() for _, value in line], span)
    axes.draw_ticks(pen)
    for name, line in lines.items():
        colour = colour_of(name)
        pixels = [axes.to_pixels(point) for point in line]
        pen.line(pixels, fill=colour, width=2, joint="curve")
        for x, y in pixels if len(pixels) <= 40 else []:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    axes.draw_legend(pen, list(lines))


def colour_of(name: str) -> tuple[int, int, int]:
    """Return the colour of the line of a logged name, as red, green and blue."""
    return COLOURS.get(name, TRAINING_COLOUR if name in TRAINING_VALUES else METRIC_COLOUR)


class _Axes:
    """Axes of a panel: the range of steps and values, and their pixels."""

    def __init__(self, box: tuple[int, int, int, int], values: Sequence[float], span: Point) -> None:
        left, top, right, bottom = MARGINS
        self.box = (box[0] + left, box[1] + top, box[2] - right, box[3] - bottom)
        self.left, self.right = span
        spread = (max(values) - min(values)) or 1.0
        self.low, self.high = min(values) - 0.05 * spread, max(values) + 0.05 * spread

    def to_pixels(self, point: Point) -> Point:
        left, top, right, bottom = self.box
        across = (point[0] - self.left) / (self.right - self.left)
        up = (point[1] - self.low) / (self.high - self.low)
        return left + across * (right - left), bottom - up * (bottom - top)

    def draw_ticks(self, pen: ImageDraw.ImageDraw) -> None:
        font = ImageFont.load_default(15)
        left, _, right, bottom = self.box
        for tick in range(TICKS + 1):
            value = self.low + (self.high - self.low) * tick / TICKS
            step = self.left + (self.right - self.left) * tick / TICKS
            x, y = self.to_pixels((step, value))
            pen.line((left, y, right, y), fill=GRID)
            pen.text((left - 8, y), f"{value:.3g}", fill=FOREGROUND, anchor="rm", font=font)
            pen.text((x, bottom + 10), f"{step:.0f}", fill=FOREGROUND, anchor="mt", font=font)
        pen.text(((left + right) / 2, bottom + MARGINS[3] - 12), "step", fill=FOREGROUND, anchor="mb", font=font)

    def draw_legend(self, pen: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
        """Write the names of the lines above them, from left to right."""
        font = ImageFont.load_default(15)
        x, y = self.box[0], self.box[1] - 18
        for name in names:
            words = name.replace("_", " ")
            pen.line((x, y, x + 28, y), fill=colour_of(name), width=3)
            pen.text((x + 36, y), words, fill=FOREGROUND, anchor="lm", font=font)
            x += 60 + int(font.getlength(words))
