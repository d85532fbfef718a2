"""Drawing of answers on images: boxes, quads and masks with labels; text below the image.

A label has the same color on every image, as long as there are enough colors. Small images are enlarged first, so that
labels are readable.
"""

import textwrap
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from florence2.model.answer import Answer, AnswerItem, GeometryKind
from florence2.model.geometry import Ring, bounding_box

Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]

MIN_SIDE = 640  # pixels of the longer side of an annotated image
_MAX_TEXT_LENGTH = 48
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
    """One object to draw: its outlines, its label, the text beside it, and whether it is filled."""

    outlines: Sequence[Ring]
    label: str
    text: str
    is_filled: bool


def draw_answer(image: Image.Image, answer: Answer | str, *, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a copy of the image with the answer drawn on it; text is written below the image.

    `size` is the (width, height) that the answer's coordinates refer to; the default is the image's size.
    """
    scale = max(1.0, MIN_SIDE / max(image.size))
    canvas = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    if isinstance(answer, str):
        return _with_text(canvas, answer)
    width, height = size or image.size
    shapes = list(_shapes(answer.scaled(canvas.width / width, canvas.height / height)))
    colors = _assign_colors(shapes)
    canvas = _fill(canvas, shapes, colors)
    annotator = _Annotator(ImageDraw.Draw(canvas), canvas.size)
    for shape, color in zip(shapes, colors, strict=True):
        annotator.draw_outline(shape, color)
    for shape, color in zip(shapes, colors, strict=True):
        annotator.draw_label(shape, color)
    return canvas


def _shapes(answer: Answer) -> Iterator[Shape]:
    """Yield masks, then boxes, then quads; large boxes come before small ones, so that both stay visible."""
    boxes = sorted(answer.of_kind(GeometryKind.BBOXES), key=lambda item: -item.area)
    for item in (*answer.of_kind(GeometryKind.POLYGONS), *boxes, *answer.of_kind(GeometryKind.QUAD_BOXES)):
        text = item.label if item.score is None else f"{item.label} {item.score:.2f}".strip()
        text = textwrap.shorten(text, _MAX_TEXT_LENGTH, placeholder="...")
        yield Shape(_outlines(item), item.label, text, item.kind is GeometryKind.POLYGONS)


def _outlines(item: AnswerItem) -> list[Ring]:
    if item.kind is not GeometryKind.BBOXES:
        return [ring for ring in item.rings if len(ring) >= 4]
    x1, y1, x2, y2 = item.rings[0]
    return [(x1, y1, x2, y1, x2, y2, x1, y2)]


def _assign_colors(shapes: Sequence[Shape]) -> list[Color]:
    """Assign each label a color of its own, while there are enough; objects without a label take turns."""
    index_of: dict[str, int] = {}
    keys = [" ".join(shape.label.split()).casefold() or f"\0{number}" for number, shape in enumerate(shapes)]
    for number, (key, shape) in enumerate(zip(keys, shapes, strict=True)):
        if key not in index_of:
            start = zlib.crc32(key.encode()) if shape.label else number
            candidates = [(start + turn) % len(_PALETTE) for turn in range(len(_PALETTE))]
            index_of[key] = next((index for index in candidates if index not in index_of.values()), candidates[0])
    return [_PALETTE[index_of[key]] for key in keys]


def _fill(image: Image.Image, shapes: Sequence[Shape], colors: Sequence[Color]) -> Image.Image:
    if not any(shape.is_filled for shape in shapes):
        return image
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    for shape, color in zip(shapes, colors, strict=True):
        for outline in shape.outlines if shape.is_filled else ():
            if len(outline) >= 6:
                draw.polygon(list(outline), fill=(*color, 110))
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
        for outline in shape.outlines:
            points = [(x, y) for x, y in zip(outline[0::2], outline[1::2], strict=False)]
            for line, width in (((20, 20, 20), self.line_width + 2), (color, self.line_width)):
                self.draw.line([*points, points[0], points[1 % len(points)]], fill=line, width=width, joint="curve")

    def draw_label(self, shape: Shape, color: Color) -> None:
        """Draw a label at its object's top left corner, or near it if another label is there."""
        if not shape.text or not shape.outlines:
            return
        text, font = _text_and_font(shape.text, max(14, round(min(self.size) / 34)))
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        pad = self.line_width + 1
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        box = self._free_box(shape, width, height)
        self.label_boxes.append(box)
        self.draw.rectangle(box, fill=color)
        text_color = "black" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else "white"
        self.draw.text((box[0] + pad - left, box[1] + pad - top), text, fill=text_color, font=font)

    def _free_box(self, shape: Shape, width: float, height: float) -> Rectangle:
        left, top, _, bottom = bounding_box(shape.outlines)
        x = min(max(left, 0), max(self.size[0] - width, 0))
        tops = [top - height, top, bottom, bottom - height]
        tops += [top + step * height for step in range(1, 12)]
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
