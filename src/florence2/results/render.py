"""Drawing of answers on images: boxes, quads and masks with labels; text below the image.

The keys of an answer are those of `model/locations.py`. A label has the same color on every image, as long as there
are enough colors. Small images are enlarged first, so that labels are readable.
"""

import textwrap
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Polygon = Sequence[float]  # x, y, x, y, ... in pixels
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]

MIN_SIDE = 640  # pixels of the longer side of an annotated image
_MAX_LABEL_LENGTH = 48
_PALETTE: tuple[Color, ...] = (
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
# Pillow's own font has ASCII only; these are fonts of the system.
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "msyh.ttc", "NotoSans-Regular.ttf")


@dataclass(frozen=True)
class Shape:
    """One object to draw: its outlines, its label, and whether it is filled."""

    polygons: Sequence[Polygon]
    label: str
    is_filled: bool


def draw_answer(image: Image.Image, answer: Any, *, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a copy of the image with the answer drawn on it; text is written below the image.

    `size` is the (width, height) that the answer's coordinates refer to; the default is the image's size.
    """
    scale = max(1.0, MIN_SIDE / max(image.size))
    canvas = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    if not isinstance(answer, Mapping):
        return _with_text(canvas, str(answer or ""))
    width, height = size or image.size
    shapes = [_scale(shape, canvas.width / width, canvas.height / height) for shape in _shapes(answer)]
    colors = _assign_colors(shapes)
    canvas = _fill(canvas, shapes, colors)
    annotator = _Annotator(ImageDraw.Draw(canvas), canvas.size)
    for shape, color in zip(shapes, colors, strict=True):
        annotator.draw_outline(shape, color)
    for shape, color in zip(shapes, colors, strict=True):
        annotator.draw_label(shape, color)
    return canvas


def _shapes(answer: Mapping[str, Any]) -> Iterator[Shape]:
    """Yield the objects of an answer; large boxes come first, so that small ones stay visible."""
    for kind in ("polygons", "bboxes", "quad_boxes"):
        geometry = answer.get(kind) or []
        labels = answer.get(f"{kind}_labels", answer.get("labels")) or [""] * len(geometry)
        scores = answer.get(f"{kind}_scores", answer.get("scores")) or [None] * len(geometry)
        rows = list(zip(geometry, labels, scores, strict=False))
        if kind == "bboxes":
            rows.sort(key=lambda row: -abs((row[0][2] - row[0][0]) * (row[0][3] - row[0][1])))
        for each, label, score in rows:
            text = label if score is None else f"{label} {score:.2f}".strip()
            text = textwrap.shorten(text, _MAX_LABEL_LENGTH, placeholder="...")
            yield Shape(_polygons(kind, each), text, kind == "polygons")


def _polygons(kind: str, geometry: Any) -> list[Polygon]:
    if kind == "polygons":
        return [polygon for polygon in geometry if len(polygon) >= 4]
    if kind == "quad_boxes":
        return [geometry]
    x1, y1, x2, y2 = geometry
    return [(x1, y1, x2, y1, x2, y2, x1, y2)]


def _scale(shape: Shape, x_scale: float, y_scale: float) -> Shape:
    polygons = [[value * (x_scale, y_scale)[i % 2] for i, value in enumerate(polygon)] for polygon in shape.polygons]
    return Shape(polygons, shape.label, shape.is_filled)


def _assign_colors(shapes: Sequence[Shape]) -> list[Color]:
    """Assign each label a color of its own, while there are enough; objects without a label take turns."""
    indices: dict[str, int] = {}
    for number, shape in enumerate(shapes):
        key = _label_without_score(shape.label) or f"\0{number}"
        if key not in indices:
            start = zlib.crc32(key.encode()) if shape.label else number
            candidates = [(start + turn) % len(_PALETTE) for turn in range(len(_PALETTE))]
            indices[key] = next((index for index in candidates if index not in indices.values()), candidates[0])
    return [
        _PALETTE[indices[_label_without_score(shape.label) or f"\0{number}"]] for number, shape in enumerate(shapes)
    ]


def _label_without_score(label: str) -> str:
    words = label.split()
    return " ".join(words[:-1] if words and words[-1].replace(".", "").isdigit() else words).casefold()


def _fill(image: Image.Image, shapes: Sequence[Shape], colors: Sequence[Color]) -> Image.Image:
    if not any(shape.is_filled for shape in shapes):
        return image
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    for shape, color in zip(shapes, colors, strict=True):
        for polygon in shape.polygons if shape.is_filled else ():
            if len(polygon) >= 6:
                draw.polygon(list(polygon), fill=(*color, 110))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


@dataclass
class _Annotator:
    """Draws outlines and labels on one image, and avoids labels that overlap."""

    draw: ImageDraw.ImageDraw
    size: tuple[int, int]
    label_boxes: list[Rectangle] = field(default_factory=list)

    @property
    def line_width(self) -> int:
        """The width of a line in pixels."""
        return max(3, round(min(self.size) / 220))

    def draw_outline(self, shape: Shape, color: Color) -> None:
        """Draw the outlines of one object, with a dark edge that is visible on any background."""
        for polygon in shape.polygons:
            points = [(x, y) for x, y in zip(polygon[0::2], polygon[1::2], strict=False)]
            for line, width in (((20, 20, 20), self.line_width + 2), (color, self.line_width)):
                self.draw.line([*points, points[0], points[1 % len(points)]], fill=line, width=width, joint="curve")

    def draw_label(self, shape: Shape, color: Color) -> None:
        """Draw a label at its object's top left corner, or near it if another label is there."""
        if not shape.label or not shape.polygons:
            return
        text, font = _text_and_font(shape.label, max(14, round(min(self.size) / 34)))
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        pad = self.line_width + 1
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        box = self._free_box(shape, width, height)
        self.label_boxes.append(box)
        self.draw.rectangle(box, fill=color)
        text_color = "black" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else "white"
        self.draw.text((box[0] + pad - left, box[1] + pad - top), text, fill=text_color, font=font)

    def _free_box(self, shape: Shape, width: float, height: float) -> Rectangle:
        xs = [x for polygon in shape.polygons for x in polygon[0::2]]
        ys = [y for polygon in shape.polygons for y in polygon[1::2]]
        x = min(max(min(xs), 0), max(self.size[0] - width, 0))
        tops = [min(ys) - height, min(ys), max(ys), max(ys) - height]
        tops += [min(ys) + step * height for step in range(1, 12)]
        tops = [min(max(y, 0), self.size[1] - height) for y in tops]
        boxes = [(x, top, x + width, top + height) for top in tops]
        return next((box for box in boxes if not any(_overlap(box, other) for other in self.label_boxes)), boxes[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_and_font(text: str, size: int) -> tuple[str, Font]:
    """Choose a font for a text; if no font of the system is found, remove the accents."""
    if text.isascii():
        return text, ImageFont.load_default(size)
    for name in _FONTS:
        try:
            return text, ImageFont.truetype(name, size)
        except OSError:
            continue
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters), ImageFont.load_default(size)


def _with_text(image: Image.Image, text: str) -> Image.Image:
    """Add a strip with the text below the image."""
    size = max(16, round(min(image.size) / 28))
    text, font = _text_and_font(text, size)
    line_length = max(10, int(image.width / (size * 0.5)) - 2)
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, line_length)] or [""]
    line_height = round(size * 1.35)
    canvas = Image.new("RGB", (image.width, image.height + line_height * len(lines) + size), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((size // 2, image.height + size // 2 + number * line_height), line, fill="black", font=font)
    return canvas
