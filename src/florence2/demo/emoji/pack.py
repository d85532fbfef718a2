"""Pack the chosen emoji from the Debian font into `sheet.png` and `names.json`: pictures, names, outlines."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, COLUMNS, MOST_CORNERS = 72, 12, 10
CHOSEN = """
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
STEPS = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]


def outline(inside: np.ndarray) -> list[tuple[int, int]]:
    """Walk the border of the largest piece once (Moore neighbours), clockwise from its topmost left pixel."""
    padded = np.pad(inside, 1)
    best: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()
    for y, x in zip(*np.nonzero(padded), strict=True):
        if padded[y, x - 1] or (int(x), int(y)) in seen:
            continue
        path, here, back = [(int(x), int(y))], (int(x), int(y)), 4
        while True:
            for turn in range(1, 9):
                way = (back + turn) % 8
                near = (here[0] + STEPS[way][0], here[1] + STEPS[way][1])
                if padded[near[1], near[0]]:
                    break
            else:
                break
            here, back = near, (way + 4) % 8
            if here == path[0] or len(path) > 4000:
                break
            path.append(here)
        seen.update(path)
        if area(path) > area(best):
            best = path
    return [(x - 1, y - 1) for x, y in best]


def area(path: list[tuple[int, int]]) -> float:
    """Say how much a closed path surrounds."""
    turned = path[1:] + path[:1]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(path, turned, strict=True))) / 2


def simplify(path: list[tuple[int, int]], most: int, least_share: float) -> list[tuple[int, int]]:
    """Drop the corner that changes the area least, until few enough are left (Visvalingam)."""
    path, whole = list(path), area(path)
    while len(path) > 4:
        costs = [area([path[i - 1], path[i], path[(i + 1) % len(path)]]) for i in range(len(path))]
        cheapest = min(range(len(path)), key=costs.__getitem__)
        if len(path) <= most and costs[cheapest] > least_share * whole:
            break
        del path[cheapest]
    return path


def pack(font_file: Path, folder: Path) -> None:
    """Draw every emoji, crop it to what shows, and note its name, colour, place in the sheet and outline."""
    font = ImageFont.truetype(str(font_file), 109)
    chosen = [row.split() for row in CHOSEN.replace("\n", " ").split(",")]
    sheet = Image.new("RGBA", (COLUMNS * SIDE, -(-len(chosen) // COLUMNS) * SIDE))
    rows = []
    for index, (name, colour, codepoint) in enumerate(chosen):
        drawn = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(drawn).text((10, 10), chr(int(codepoint, 16)), font=font, embedded_color=True)
        drawn = drawn.crop(drawn.getchannel("A").point(lambda alpha: 255 * (alpha >= 64)).getbbox())
        scale = SIDE / max(drawn.size)
        width, height = (max(1, round(side * scale)) for side in drawn.size)
        drawn = drawn.resize((width, height), Image.Resampling.LANCZOS)
        x, y = index % COLUMNS * SIDE + (SIDE - width) // 2, index // COLUMNS * SIDE + (SIDE - height) // 2
        sheet.paste(drawn, (x, y))
        corners = simplify(outline(np.asarray(drawn)[..., 3] >= 128), MOST_CORNERS, 0.015)
        top = min(range(len(corners)), key=lambda i: (corners[i][1], corners[i][0]))
        corners = corners[top:] + corners[:top]
        unit = [[round((cx + 0.5) / width, 3), round((cy + 0.5) / height, 3)] for cx, cy in corners]
        box = [x, y, x + width, y + height]
        rows.append({"name": name, "colour": colour, "codepoint": codepoint, "box": box, "outline": unit})
    sheet.save(folder / "sheet.png", optimize=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (folder / "names.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
