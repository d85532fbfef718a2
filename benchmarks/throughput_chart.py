"""Draw a result of `throughput`: a bar of seconds per image for each contestant, split by parts where they are known.

python -m benchmarks.throughput_chart benchmarks/results/DATE-throughput-....md docs/images/throughput.png
"""

import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.throughput_table import parts_of, read_report

WIDTH, BAR_HEIGHT, LEFT, RIGHT, TOP = 900, 44, 210, 90, 60
COLOURS = {
    "read": (148, 103, 189),
    "vision": (38, 103, 178),
    "encode": (44, 160, 120),
    "decode": (214, 93, 14),
    "write": (127, 127, 127),
}
RIVAL, INK = (190, 196, 204), (40, 40, 40)


def main() -> None:
    """Read a result, draw it, and save the image."""
    source, target = map(Path, sys.argv[1:3])
    draw(read_report(source)).save(target)


def draw(report: dict[str, Any]) -> Image.Image:
    """Draw one bar for each contestant, the fastest at the top."""
    bars = sorted(report["seconds_per_image"].items(), key=lambda bar: bar[1])
    image = Image.new("RGB", (WIDTH, TOP + BAR_HEIGHT * len(bars) + 50), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    options = report["options"]
    title = f"seconds per image: {options['size']}, {options['num_beams']} beams, {report['device']}"
    pen.text((20, 28), title, fill=INK, anchor="lm", font=ImageFont.load_default(17))
    scale = (WIDTH - LEFT - RIGHT) / bars[-1][1]
    for row, (name, seconds) in enumerate(bars):
        y = TOP + BAR_HEIGHT * row
        pen.text((LEFT - 12, y + BAR_HEIGHT / 2), name, fill=INK, anchor="rm", font=font)
        start: float = LEFT
        for part, part_seconds in split_by_part(report, name, seconds):
            end = start + part_seconds * scale
            pen.rectangle((start, y + 7, end, y + BAR_HEIGHT - 7), fill=COLOURS.get(part, RIVAL))
            start = end
        pen.text((start + 10, y + BAR_HEIGHT / 2), f"{seconds:.2f} s", fill=INK, anchor="lm", font=font)
    x: float = LEFT
    for part, colour in COLOURS.items():
        y = TOP + BAR_HEIGHT * len(bars) + 22
        pen.rectangle((x, y - 7, x + 14, y + 7), fill=colour)
        pen.text((x + 20, y), part, fill=INK, anchor="lm", font=font)
        x += 110
    return image


def split_by_part(report: dict[str, Any], name: str, seconds: float) -> list[tuple[str, float]]:
    """Split a median by the measurements of the last round; without any it has one part."""
    spent = parts_of(report["rounds"][name][-1])
    known = {part: spent[part] for part in COLOURS if part in spent}
    return [(part, seconds * value / sum(known.values())) for part, value in known.items()] or [("", seconds)]


if __name__ == "__main__":
    main()
