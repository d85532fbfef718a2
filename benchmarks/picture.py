"""Draw a result of `throughput`: seconds for each picture, our bar parted by where the time went.

python benchmarks/picture.py benchmarks/results/DATE-throughput-....md docs/images/throughput.png
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDE, HIGH, LEFT, RIGHT, TOP = 900, 44, 210, 90, 60
COLOURS = {
    "read": (148, 103, 189),
    "vision": (38, 103, 178),
    "encode": (44, 160, 120),
    "decode": (214, 93, 14),
    "write": (127, 127, 127),
}
RIVAL, INK = (190, 196, 204), (40, 40, 40)


def main() -> None:
    """Read a result, draw it, save it."""
    source, target = map(Path, sys.argv[1:3])
    found = re.search(r"```json\n(.*?)\n```", source.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise SystemExit(f"{source} holds no block of JSON")
    draw(json.loads(found[1])).save(target)


def draw(report: dict[str, Any]) -> Image.Image:
    """Draw one bar for each contestant, the fastest on top."""
    bars = sorted(report["seconds_per_picture"].items(), key=lambda bar: bar[1])
    image = Image.new("RGB", (WIDE, TOP + HIGH * len(bars) + 50), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    options = report["options"]
    title = f"seconds for each picture: {options['size']}, {options['beams']} beams, {report['device']}"
    pen.text((20, 28), title, fill=INK, anchor="lm", font=ImageFont.load_default(17))
    scale = (WIDE - LEFT - RIGHT) / bars[-1][1]
    for row, (name, seconds) in enumerate(bars):
        y = TOP + HIGH * row
        pen.text((LEFT - 12, y + HIGH / 2), name, fill=INK, anchor="rm", font=font)
        start: float = LEFT
        for part, share in parts(report, name, seconds):
            end = start + share * scale
            pen.rectangle((start, y + 7, end, y + HIGH - 7), fill=COLOURS.get(part, RIVAL))
            start = end
        pen.text((start + 10, y + HIGH / 2), f"{seconds:.2f} s", fill=INK, anchor="lm", font=font)
    x: float = LEFT
    for part, colour in COLOURS.items():
        y = TOP + HIGH * len(bars) + 22
        pen.rectangle((x, y - 7, x + 14, y + 7), fill=colour)
        pen.text((x + 20, y), part, fill=INK, anchor="lm", font=font)
        x += 110
    return image


def parts(report: dict[str, Any], name: str, seconds: float) -> list[tuple[str, float]]:
    """Part our bar by what the engine measured of its last round, in shares of the median; rivals stay whole."""
    if name != "ours":
        return [("", seconds)]
    spent = report["rounds"]["ours"][-1]["stats"]["seconds"]
    return [(part, seconds * spent.get(part, 0) / sum(spent.values())) for part in COLOURS]


if __name__ == "__main__":
    main()
