"""Pack emoji of the font of Debian's `fonts-noto-color-emoji` into `sheet.png` and `names.json`.

python -m tools.demo_model.pack_emoji NotoColorEmoji.ttf src/florence2/demo/emoji
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CELL_SIZE, NUM_COLUMNS, MAX_CORNERS = 72, 12, 10
MIN_AREA_CHANGE = 0.015  # of the outline's area; a corner that changes less is dropped
# Name, color and code point.
EMOJI = """
dog brown 1F436, cat yellow 1F431, pig pink 1F437, frog green 1F438, panda white 1F43C, fox orange 1F98A,
lion yellow 1F981, penguin black 1F427, chick yellow 1F424, owl brown 1F989, snake green 1F40D, turtle green 1F422,
whale blue 1F433, crab red 1F980, octopus pink 1F419, butterfly orange 1F98B, bee yellow 1F41D, ladybug red 1F41E,
snail brown 1F40C, unicorn white 1F984, apple red 1F34E, banana yellow 1F34C, grapes purple 1F347,
watermelon red 1F349, lemon yellow 1F34B, pineapple yellow 1F34D, strawberry red 1F353, cherries red 1F352,
carrot orange 1F955, corn yellow 1F33D, broccoli green 1F966, eggplant purple 1F346, mushroom red 1F344,
pizza yellow 1F355, burger brown 1F354, donut brown 1F369, cookie brown 1F36A, cake white 1F370, egg brown 1F95A,
rose red 1F339, sunflower yellow 1F33B, cactus green 1F335, tree green 1F333, car red 1F697, bus blue 1F68C,
tractor green 1F69C, bicycle blue 1F6B2, rocket white 1F680, sailboat orange 26F5, airplane blue 2708,
football white 26BD, basketball orange 1F3C0, guitar red 1F3B8, drum red 1F941, trumpet yellow 1F3BA,
balloon red 1F388, gift yellow 1F381, umbrella blue 2614, key yellow 1F511, clock red 23F0, book green 1F4D7,
camera black 1F4F7, hammer brown 1F528, crown yellow 1F451, hat black 1F3A9, star yellow 2B50, heart red 2764,
moon yellow 1F319, ghost white 1F47B, robot gray 1F916, pumpkin orange 1F383, snowman white 26C4
"""
DIRECTIONS = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]

Point = tuple[int, int]


def trace_outline(mask: npt.NDArray[np.bool_]) -> list[Point]:
    """Trace the border of the largest region (Moore neighbors), clockwise from its topmost left pixel."""
    padded = np.pad(mask, 1)
    largest: list[Point] = []
    visited: set[Point] = set()
    for y, x in zip(*np.nonzero(padded), strict=True):
        start = (int(x), int(y))
        if padded[y, x - 1] or start in visited:
            continue
        path = _trace_border(padded, start)
        visited.update(path)
        if area(path) > area(largest):
            largest = path
    return [(x - 1, y - 1) for x, y in largest]


def _trace_border(padded: npt.NDArray[np.bool_], start: Point) -> list[Point]:
    path, point, back = [start], start, 4
    while len(path) <= 4000:
        for turn in range(1, 9):
            direction = (back + turn) % 8
            neighbor = (point[0] + DIRECTIONS[direction][0], point[1] + DIRECTIONS[direction][1])
            if padded[neighbor[1], neighbor[0]]:
                break
        else:
            break  # a single pixel
        point, back = neighbor, (direction + 4) % 8
        if point == start:
            break
        path.append(point)
    return path


def area(path: list[Point]) -> float:
    """Return the area of a closed path."""
    rotated = path[1:] + path[:1]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(path, rotated, strict=True))) / 2


def simplify(path: list[Point], max_corners: int, min_area_change: float) -> list[Point]:
    """Drop the corner that changes the area least until few enough are left (Visvalingam)."""
    path, total = list(path), area(path)
    while len(path) > 4:
        changes = [area([path[i - 1], path[i], path[(i + 1) % len(path)]]) for i in range(len(path))]
        smallest = min(range(len(path)), key=changes.__getitem__)
        if len(path) <= max_corners and changes[smallest] > min_area_change * total:
            break
        del path[smallest]
    return path


def pack(font_file: Path, folder: Path) -> None:
    """Render every emoji, crop it, and write its name, color, box in the sheet and outline."""
    font = ImageFont.truetype(str(font_file), 109)
    rows = [row.split() for row in EMOJI.replace("\n", " ").split(",")]
    sheet = Image.new("RGBA", (NUM_COLUMNS * CELL_SIZE, -(-len(rows) // NUM_COLUMNS) * CELL_SIZE))
    records = []
    for index, (name, color, codepoint) in enumerate(rows):
        image = _render(codepoint, font)
        width, height = image.size
        x = index % NUM_COLUMNS * CELL_SIZE + (CELL_SIZE - width) // 2
        y = index // NUM_COLUMNS * CELL_SIZE + (CELL_SIZE - height) // 2
        sheet.paste(image, (x, y))
        corners = simplify(trace_outline(np.asarray(image)[..., 3] >= 128), MAX_CORNERS, MIN_AREA_CHANGE)
        topmost = min(range(len(corners)), key=lambda i: (corners[i][1], corners[i][0]))
        corners = corners[topmost:] + corners[:topmost]
        outline = [[round((cx + 0.5) / width, 3), round((cy + 0.5) / height, 3)] for cx, cy in corners]
        box = [x, y, x + width, y + height]
        records.append({"name": name, "colour": color, "codepoint": codepoint, "box": box, "outline": outline})
    sheet.save(folder / "sheet.png", optimize=True)
    lines = ",\n".join(json.dumps(record) for record in records)
    (folder / "names.json").write_text(f"[\n{lines}\n]\n")


def _render(codepoint: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Render an emoji, crop it to its visible pixels and scale it to the cell."""
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((10, 10), chr(int(codepoint, 16)), font=font, embedded_color=True)
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= 64)).getbbox())
    scale = CELL_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
