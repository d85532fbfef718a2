"""Draw and tabulate the memory of the long proof on a cluster.

    python -m pytest tests/recipes/cluster -k survived --long --memory_record memory.jsonl
    python -m benchmarks.cluster_memory memory.jsonl docs/images/cluster_memory.png

Memory of a process is what it shares with no other one. Prints a table of median, largest and last values.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 420, 70, 20, 60, 60
COLOURS = {
    "driver": (38, 103, 178),
    "largest engine": (214, 93, 14),
    "other workers of Ray": (44, 160, 120),
    "object stores": (148, 103, 189),
}
INK, GRID = (40, 40, 40), (225, 228, 232)
MIB = 2**20


def main() -> None:
    """Read a record, draw it, and print the table."""
    source, target = map(Path, sys.argv[1:3])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    start = rows[0]["time"]
    events = [(row["time"] - start, row["event"]) for row in rows if "event" in row]
    series = read_series([row for row in rows if "event" not in row], start)
    draw(series, events).save(target)
    print("\n".join(table(series)))
    spilled = [row["store_spilled"] for row in rows if "store_spilled" in row]
    size = max(row.get("store_size", 0) for row in rows)
    minutes = (rows[-1]["time"] - start) / 60
    print(f"\nobject stores of {size / MIB:.0f} MiB, {max(spilled) / MIB:.0f} MiB on disks; {minutes:.0f} minutes")


Series = dict[str, list[tuple[float, float]]]


def read_series(rows: list[dict[str, Any]], start: float) -> Series:
    """Return the points of each line: seconds and MiB."""
    series: Series = {name: [] for name in COLOURS}
    for row in rows:
        values = {
            "driver": max(row["driver"], default=None),
            "largest engine": max(row["engines"], default=None),
            "other workers of Ray": sum(row["workers"]) if row["workers"] else None,
            "object stores": row.get("store_used"),
        }
        for name, value in values.items():
            if value is not None:
                series[name].append((row["time"] - start, value / MIB))
    return series


def table(series: Series) -> list[str]:
    """Return median, largest and last value of each line as Markdown."""
    lines = ["| MiB | median | largest | median of the last tenth |", "|---|---|---|---|"]
    for name, points in series.items():
        values = [value for _, value in points]
        late = values[-max(1, len(values) // 10) :]
        numbers = (statistics.median(values), max(values), statistics.median(late))
        lines.append(f"| {name} | " + " | ".join(f"{number:.0f}" for number in numbers) + " |")
    return lines


def draw(series: Series, events: list[tuple[float, str]]) -> Image.Image:
    """Draw one line for each kind of process, and the events above."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    end = max(time for points in series.values() for time, _ in points)
    top = max(value for points in series.values() for _, value in points) * 1.1

    def position(time: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * time / end
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    for step in range(0, int(top) + 1, 200):
        y = position(0, step)[1]
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        pen.text((LEFT - 8, y), f"{step} MiB" if step else "0", fill=INK, anchor="rm", font=font)
    for number, (time, event) in enumerate(events):
        x = position(time, 0)[0]
        pen.line((x, TOP, x, HEIGHT - BOTTOM), fill=(170, 170, 170))
        pen.text((min(x + 3, WIDTH - 90), 14 + 15 * (number % 3)), event, fill=INK, anchor="lm", font=font)
    for number, (name, points) in enumerate(series.items()):
        previous: tuple[float, float] | None = None
        for time, value in points:
            if previous is not None and time - previous[0] < 30:
                pen.line((*position(*previous), *position(time, value)), fill=COLOURS[name], width=2)
            previous = time, value
        x = LEFT + 220 * number
        pen.rectangle((x, HEIGHT - 28, x + 14, HEIGHT - 14), fill=COLOURS[name])
        pen.text((x + 20, HEIGHT - 21), name, fill=INK, anchor="lm", font=font)
    for minute in range(0, int(end / 60) + 1, 10):
        pen.text((position(minute * 60, 0)[0], HEIGHT - BOTTOM + 10), f"{minute} min", fill=INK, anchor="mm", font=font)
    return image


if __name__ == "__main__":
    main()
