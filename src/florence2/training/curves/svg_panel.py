"""A chart as SVG: lines over steps, with a smoothed line beside a noisy one, and the values at its points."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from florence2.training.curves.loss_plot import Point, colour_of

MAX_POINTS = 240  # of a line; more are averaged
MIN_POINTS_TO_SMOOTH = 30
MAX_SMOOTHING = 0.9  # weight of the values before
LEFT, TOP, RIGHT, BOTTOM = 58, 8, 8, 24  # margins
TICKS = 4


def svg_panel(lines: Mapping[str, Sequence[Point]], *, height: int, width: int = 960) -> str:
    """Return a figure with a chart of the lines, which have at least one point, and their names."""
    reduced = {name: average(points, MAX_POINTS) for name, points in lines.items()}
    steps = [step for points in reduced.values() for step, _ in points]
    values = [value for points in reduced.values() for _, value in points]
    low, high = min(values), max(values)
    ticks = tick_values(low, high if high > low else low + (abs(low) or 1.0) * 1e-3)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def to_pixels(point: Point) -> Point:
        across = (point[0] - first) / (last - first)
        up = (point[1] - low) / ((high - low) or 1.0)
        return LEFT + across * (width - LEFT - RIGHT), height - BOTTOM - up * (height - TOP - BOTTOM)

    marks = []
    for value in ticks:
        y = to_pixels((first, value))[1]
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for number in range(TICKS + 1):
        step = first + (last - first) * number / TICKS
        x = to_pixels((step, low))[0]
        marks.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{step:,.0f}</text>')
    for name, points in reduced.items():
        marks += _line(name, [to_pixels(point) for point in points], points)
    names = "".join(f'<span style="color:{_css(name)}">{escape(name.replace("_", " "))}</span>' for name in lines)
    label = escape(", ".join(lines).replace("_", " "))
    chart = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
    return f"<figure><figcaption>{names}</figcaption>{chart}</figure>"


def _line(name: str, pixels: Sequence[Point], points: Sequence[Point]) -> list[str]:
    """Draw a line, faint with a smoothed one above it where it has many points, and points that name their values."""
    is_noisy = len(pixels) >= MIN_POINTS_TO_SMOOTH and name == "loss"
    marks = [_polyline(pixels, _css(name), opacity=0.35 if is_noisy else 1.0)]
    if is_noisy:
        marks.append(_polyline(smooth(pixels), _css(name), opacity=1.0))
    radius = 2.5 if len(pixels) <= MIN_POINTS_TO_SMOOTH else 4
    fill = _css(name) if len(pixels) <= MIN_POINTS_TO_SMOOTH else "transparent"
    for (x, y), (step, value) in zip(pixels, points, strict=True):
        title = f"step {step:,.0f}: {value:.5g}"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"><title>{title}</title></circle>')
    return marks


def _polyline(pixels: Sequence[Point], colour: str, *, opacity: float) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" opacity="{opacity}"/>'


def _css(name: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(name))


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return the exponential moving average of the values, without a bias to the first one."""
    smoothed, total, weight = [], 0.0, 0.0
    before = min(MAX_SMOOTHING, max(0.5, 1 - 20 / max(len(points), 1)))
    for x, value in points:
        total, weight = before * total + (1 - before) * value, before * weight + (1 - before)
        smoothed.append((x, total / weight))
    return smoothed


def average(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most so many points, each the mean of neighbours; the last one is kept as it is."""
    if len(points) <= most:
        return list(points)
    size = math.ceil((len(points) - 1) / (most - 1))
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(sum(step for step, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]
    return [*means, points[-1]]


def tick_values(low: float, high: float) -> list[float]:
    """Return about five round values that cover a range: 1, 2 or 5 times a power of ten apart."""
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * (TICKS + 1) >= high - low)
    start = math.floor(low / step)
    return [round(number * step, 12) for number in range(start, math.ceil(high / step - 1e-9) + 1)]
