"""Answers drawn on their pictures: boxes, quads and masks with labels, words underneath.

Knows no model and no files. What is drawn follows from the answer's keys, which are those of `model/locations.py`.
A label has one colour, the same on every picture as far as colours last. Small pictures are enlarged first, so that
labels can be read.
"""

import textwrap
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Run = Sequence[float]  # x, y, x, y, ... in pixels
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

LEAST_SIDE = 640  # pixels of the longer side of what is drawn on
_MOST_LETTERS = 48
_PALETTE: tuple[Colour, ...] = (
    (230, 57, 70),
    (29, 132, 219),
    (42, 157, 74),
    (244, 162, 30),
    (142, 68, 207),
    (0, 172, 193),
    (216, 67, 163),
    (121, 85, 60),
    (255, 214, 10),
    (84, 110, 122),
    (124, 179, 20),
    (63, 81, 181),
)
# Pillow's own font has ASCII only; the others are looked for where the system keeps fonts.
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "msyh.ttc", "NotoSans-Regular.ttf")


@dataclass(frozen=True)
class Shape:
    """One object to draw: its outlines, its label, whether it is filled."""

    runs: Sequence[Run]
    label: str
    filled: bool


def draw_answer(image: Image.Image, answer: Any, *, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a copy of the picture with the answer on it.

    `size` is (width, height) of the pixels that the answer counts in, if that is not the picture's own. Words are
    written under the picture.
    """
    scale = max(1.0, LEAST_SIDE / max(image.size))
    shown = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    if not isinstance(answer, Mapping):
        return _with_words(shown, str(answer or ""))
    own = size or image.size
    marks = [_scaled(mark, shown.width / own[0], shown.height / own[1]) for mark in _shapes(answer)]
    colours = _colours(marks)
    shown = _filled(shown, marks, colours)
    pen = _Annotator(ImageDraw.Draw(shown), shown.size)
    for mark, colour in zip(marks, colours, strict=True):
        pen.outline(mark, colour)
    for mark, colour in zip(marks, colours, strict=True):
        pen.label(mark, colour)
    return shown


def _shapes(answer: Mapping[str, Any]) -> Iterator[Shape]:
    """List the objects of an answer, the largest boxes first, so that small ones stay in sight."""
    for form in ("polygons", "bboxes", "quad_boxes"):
        places = answer.get(form) or []
        labels = answer.get(f"{form}_labels", answer.get("labels")) or [""] * len(places)
        scores = answer.get(f"{form}_scores", answer.get("scores")) or [None] * len(places)
        rows = list(zip(places, labels, scores, strict=False))
        if form == "bboxes":
            rows.sort(key=lambda row: -abs((row[0][2] - row[0][0]) * (row[0][3] - row[0][1])))
        for place, label, score in rows:
            said = label if score is None else f"{label} {score:.2f}".strip()
            yield Shape(
                _runs(form, place), textwrap.shorten(said, _MOST_LETTERS, placeholder="..."), form == "polygons"
            )


def _runs(form: str, place: Any) -> list[Run]:
    if form == "polygons":
        return [run for run in place if len(run) >= 4]
    if form == "quad_boxes":
        return [place]
    x1, y1, x2, y2 = place
    return [(x1, y1, x2, y1, x2, y2, x1, y2)]


def _scaled(mark: Shape, across: float, down: float) -> Shape:
    runs = [[value * (across, down)[i % 2] for i, value in enumerate(run)] for run in mark.runs]
    return Shape(runs, mark.label, mark.filled)


def _colours(marks: Sequence[Shape]) -> list[Colour]:
    """Give each label its colour, while there are enough of them; unlabelled objects take turns."""
    chosen: dict[str, int] = {}
    for number, mark in enumerate(marks):
        key = _plain(mark.label) or f"\0{number}"
        if key not in chosen:
            start = zlib.crc32(key.encode()) if mark.label else number
            turns = [(start + turn) % len(_PALETTE) for turn in range(len(_PALETTE))]
            chosen[key] = next((turn for turn in turns if turn not in chosen.values()), turns[0])
    return [_PALETTE[chosen[_plain(mark.label) or f"\0{number}"]] for number, mark in enumerate(marks)]


def _plain(label: str) -> str:
    """Leave the score off a label."""
    words = label.split()
    return " ".join(words[:-1] if words and words[-1].replace(".", "").isdigit() else words).casefold()


def _filled(image: Image.Image, marks: Sequence[Shape], colours: Sequence[Colour]) -> Image.Image:
    if not any(mark.filled for mark in marks):
        return image
    layer = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(layer)
    for mark, colour in zip(marks, colours, strict=True):
        for run in mark.runs if mark.filled else ():
            if len(run) >= 6:
                pen.polygon(list(run), fill=(*colour, 110))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


@dataclass
class _Annotator:
    """Draws on one picture, and remembers where labels stand."""

    draw: ImageDraw.ImageDraw
    size: tuple[int, int]
    taken: list[Rectangle] = field(default_factory=list)

    @property
    def unit(self) -> int:
        """Give the width of a line."""
        return max(3, round(min(self.size) / 220))

    def outline(self, mark: Shape, colour: Colour) -> None:
        """Draw the outlines of one object, with a dark edge that shows on any ground."""
        for run in mark.runs:
            points = [(x, y) for x, y in zip(run[0::2], run[1::2], strict=False)]
            for line, width in (((20, 20, 20), self.unit + 2), (colour, self.unit)):
                self.draw.line([*points, points[0], points[1 % len(points)]], fill=line, width=width, joint="curve")

    def label(self, mark: Shape, colour: Colour) -> None:
        """Write one label at its object's top left corner, or near by where that is taken."""
        if not mark.label or not mark.runs:
            return
        text, font = _font(mark.label, max(14, round(min(self.size) / 34)))
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        pad = self.unit + 1
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        box = self._place(mark, width, height)
        self.taken.append(box)
        self.draw.rectangle(box, fill=colour)
        ink = "black" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else "white"
        self.draw.text((box[0] + pad - left, box[1] + pad - top), text, fill=ink, font=font)

    def _place(self, mark: Shape, width: float, height: float) -> Rectangle:
        xs, ys = [x for run in mark.runs for x in run[0::2]], [y for run in mark.runs for y in run[1::2]]
        x = min(max(min(xs), 0), max(self.size[0] - width, 0))
        wanted = [min(ys) - height, min(ys), max(ys), max(ys) - height]
        wanted += [min(ys) + step * height for step in range(1, 12)]
        spots = [(x, min(max(y, 0), self.size[1] - height)) for y in wanted]
        boxes = [(left, top, left + width, top + height) for left, top in spots]
        return next((box for box in boxes if not any(_overlap(box, other) for other in self.taken)), boxes[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _font(text: str, size: int) -> tuple[str, Font]:
    """Choose a font for a text; without one that knows its letters, accents are left off."""
    if text.isascii():
        return text, ImageFont.load_default(size)
    for name in _FONTS:
        try:
            return text, ImageFont.truetype(name, size)
        except OSError:
            continue
    bare = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(bare), ImageFont.load_default(size)


def _with_words(image: Image.Image, text: str) -> Image.Image:
    """Put a strip with the words under a picture."""
    size = max(16, round(min(image.size) / 28))
    text, font = _font(text, size)
    letters = max(10, int(image.width / (size * 0.5)) - 2)
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, letters)] or [""]
    step = round(size * 1.35)
    page = Image.new("RGB", (image.width, image.height + step * len(lines) + size), "white")
    page.paste(image, (0, 0))
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((size // 2, image.height + size // 2 + number * step), line, fill="black", font=font)
    return page
