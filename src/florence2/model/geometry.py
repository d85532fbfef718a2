"""The located object, and geometry in the plane: bounding boxes, areas, clipping, cropping, reading order.

A ring is a flat list of coordinates x, y, x, y, ...: the two corners of a box, the four corners of a quad or the
points of a polygon. The y axis points down. A window is the rectangle from (0, 0) to its size.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from florence2.errors import UserError

Ring = Sequence[float]
Point = tuple[float, float]

EPSILON = 1e-6
"""The visible fraction below which an object counts as invisible, and the distance that a quad may lie outside."""


class GeometryKind(StrEnum):
    """How an object is located; the value is its key in transformers' dictionary."""

    BBOXES = "bboxes"
    QUAD_BOXES = "quad_boxes"
    POLYGONS = "polygons"


_RING_LENGTHS = {GeometryKind.BBOXES: 4, GeometryKind.QUAD_BOXES: 8}
# Where each coordinate of a mirrored box or quad comes from, so that it starts at its top left corner again.
_MIRRORED = {GeometryKind.BBOXES: (2, 1, 0, 3), GeometryKind.QUAD_BOXES: (2, 3, 0, 1, 6, 7, 4, 5)}


@dataclass(frozen=True, slots=True)
class AnswerItem:
    """One object of an answer: its position in pixels, its label, its score from 0 to 1 where it has one.

    `rings` holds one ring for a box [x1, y1, x2, y2] or a quad of four corners, and one for each polygon of a mask.
    A crowd (`iscrowd` of COCO) is an area of many objects: no target of training, neither right nor wrong in scores.
    `annotated_area` is the area of an object of which only the box is given, in pixels (`area` of COCO).
    """

    kind: GeometryKind
    rings: tuple[tuple[float, ...], ...]
    label: str = ""
    score: float | None = None
    is_crowd: bool = False
    annotated_area: float | None = None

    @classmethod
    def box(cls, box: Ring, label: str = "", score: float | None = None) -> "AnswerItem":
        """Make an object of a box [x1, y1, x2, y2]."""
        return cls(GeometryKind.BBOXES, (tuple(box),), label, score)

    @classmethod
    def quad(cls, quad: Ring, label: str = "", score: float | None = None) -> "AnswerItem":
        """Make an object of a quad [x1, y1, ..., x4, y4]."""
        return cls(GeometryKind.QUAD_BOXES, (tuple(quad),), label, score)

    @classmethod
    def mask(cls, polygons: Iterable[Ring], label: str = "", score: float | None = None) -> "AnswerItem":
        """Make an object of polygons [x, y, x, y, ...]."""
        return cls(GeometryKind.POLYGONS, tuple(map(tuple, polygons)), label, score)

    @classmethod
    def parse(
        cls,
        kind: GeometryKind,
        position: Any,
        label: Any = "",
        score: Any = None,
        is_crowd: Any = False,
        area: Any = None,
    ) -> "AnswerItem":
        """Check a position as transformers' dictionary has it, with its label and score, and make an object of it."""
        rings = position if kind is GeometryKind.POLYGONS else [position]
        length = _RING_LENGTHS.get(kind)
        if not isinstance(rings, list | tuple) or not all(_is_ring(ring, length) for ring in rings):
            expected = f"{length} numbers" if length else "a list of polygons [x, y, x, y, ...]"
            raise UserError(f"`{kind}` holds `{str(position)[:60]}`, not {expected}", "write coordinates in pixels")
        for name, number in (("a score", score), ("an area", area)):
            if number is not None and not _is_ring([number], 1):
                raise UserError(f"{name} is `{str(number)[:60]}`, not a number", "write a number, or null")
        return cls(kind, tuple(map(tuple, rings)), "" if label is None else str(label), score, bool(is_crowd), area)

    @property
    def coordinates(self) -> list[Any]:
        """Return the position as transformers' dictionary has it: a list of polygons, else a list of numbers."""
        rings: list[Any] = [list(ring) for ring in self.rings]
        return rings if self.kind is GeometryKind.POLYGONS else rings[0]

    @property
    def bounding_box(self) -> list[float]:
        """Return the box [left, top, right, bottom] around the object."""
        return bounding_box(self.rings)

    @property
    def area(self) -> float:
        """Return the area in pixels: of the box, else the sum of the polygons' areas."""
        if self.kind is GeometryKind.BBOXES:
            x1, y1, x2, y2 = self.rings[0]
            return abs((x2 - x1) * (y2 - y1))
        return sum(map(polygon_area, self.rings))

    def coco_geometry(self) -> dict[str, Any]:
        """Return the columns `bbox` [x, y, width, height], `area`, `segmentation`, `iscrowd` and `score` of COCO."""
        left, top, right, bottom = self.bounding_box
        outlines = [] if self.kind is GeometryKind.BBOXES else [list(ring) for ring in self.rings if len(ring) >= 6]
        row = {"bbox": [left, top, right - left, bottom - top], "area": self.area, "segmentation": outlines}
        return {**row, "iscrowd": int(self.is_crowd)} | ({} if self.score is None else {"score": self.score})

    def transformed(
        self,
        transform: Callable[[Ring], Ring],
        size: tuple[float, float] | None = None,
        min_visible: float = 0.0,
        is_mirrored: bool = False,
    ) -> "AnswerItem | None":
        """Apply `transform` to each ring, then crop to `size`; None where the object is cut away.

        See `Answer.transformed`.
        """
        rings: Sequence[Ring] = [transform(ring[: len(ring) // 2 * 2]) for ring in self.rings]
        if is_mirrored and self.kind is not GeometryKind.POLYGONS:
            rings = [[ring[i] for i in _MIRRORED[self.kind]] for ring in rings]
        visible = rings if size is None else self._crop(rings, size, min_visible)
        if visible is None:
            return None
        if is_mirrored and self.kind is GeometryKind.POLYGONS:
            visible = [reversed_polygon(ring) for ring in visible]
        return replace(self, rings=tuple(map(tuple, visible)), annotated_area=None)

    def _crop(self, rings: Sequence[Ring], size: tuple[float, float], min_visible: float) -> Sequence[Ring] | None:
        if self.kind is GeometryKind.POLYGONS:
            return crop_polygons(rings, size, min_visible)
        if self.kind is GeometryKind.QUAD_BOXES:
            return rings if is_inside(rings[0], size) else None
        box = crop_box(rings[0], size, min_visible)
        return None if box is None else [box]

    def clipped(self, size: tuple[float, float]) -> "AnswerItem | None":
        """Clip the object to an image of `size`; None where nothing of it is inside."""
        if self.kind is not GeometryKind.QUAD_BOXES:
            return self.transformed(tuple, size)
        clamped = replace(self, rings=(tuple(clamp_ring(self.rings[0], size)),))
        return clamped if clamped.area > 0 else None


def _is_ring(ring: Any, length: int | None) -> bool:
    return isinstance(ring, list | tuple) and length in (None, len(ring)) and all(map(is_finite_number, ring))


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number that a float can have: not NaN, infinite, or an integer beyond all floats."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def bounding_box(rings: Sequence[Ring]) -> list[float]:
    """Return the box [left, top, right, bottom] around all points; zeros where there is no point."""
    xs = [x for ring in rings for x in ring[0::2]]
    ys = [y for ring in rings for y in ring[1::2]]
    return [min(xs, default=0.0), min(ys, default=0.0), max(xs, default=0.0), max(ys, default=0.0)]


def polygon_area(ring: Ring) -> float:
    """Return the area of a polygon by the shoelace formula."""
    corners = list(zip(ring[0::2], ring[1::2], strict=False))
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise([*corners, *corners[:1]]))) / 2


def clip_polygon(ring: Ring, size: tuple[float, float]) -> list[float]:
    """Clip a polygon to the window (Sutherland and Hodgman's algorithm); a polygon inside it does not change."""
    corners = list(zip(ring[0::2], ring[1::2], strict=False))
    for axis in (0, 1):
        for edge, sign in ((0.0, 1.0), (size[axis], -1.0)):
            corners = _clip_at_edge(corners, axis, edge, sign)
    return [coordinate for corner in corners for coordinate in corner]


def _clip_at_edge(corners: Sequence[Point], axis: int, edge: float, sign: float) -> list[Point]:
    clipped: list[Point] = []
    for previous, current in pairwise([*corners[-1:], *corners]):
        before, after = (sign * (corner[axis] - edge) for corner in (previous, current))
        if (before < 0) != (after < 0):
            part = before / (before - after)
            x, y = (previous[i] + part * (current[i] - previous[i]) for i in (0, 1))
            clipped.append((x, y))
        if after >= 0:
            clipped.append(current)
    return clipped


def clamp_ring(ring: Ring, size: tuple[float, float]) -> list[float]:
    """Move the points outside the window to its nearest edge."""
    return [_clamp(value, size[i % 2]) for i, value in enumerate(ring)]


def crop_box(box: Ring, size: tuple[float, float], min_visible: float = 0.0) -> list[float] | None:
    """Clip a box to the window; return None where less than the fraction `min_visible` of its area remains."""
    x1, y1, x2, y2 = box
    if _visible_fraction(x1, x2, size[0]) * _visible_fraction(y1, y2, size[1]) < max(min_visible, EPSILON):
        return None
    return clamp_ring(box, size)


def is_inside(ring: Ring, size: tuple[float, float]) -> bool:
    """Return whether all points are inside the window."""
    return all(-EPSILON <= value <= size[i % 2] + EPSILON for i, value in enumerate(ring))


def crop_polygons(
    polygons: Sequence[Ring], size: tuple[float, float], min_visible: float = 0.0
) -> list[list[float]] | None:
    """Clip a mask to the window; return None where less than the fraction `min_visible` of its area remains."""
    visible = [clipped for polygon in polygons if len(clipped := clip_polygon(polygon, size)) >= 6]
    area, visible_area = (sum(map(polygon_area, parts)) for parts in (polygons, visible))
    return visible if visible and visible_area >= max(min_visible, EPSILON) * area else None


def _clamp(value: float, length: float) -> float:
    return min(max(value, 0.0), length)


def _visible_fraction(low: float, high: float, length: float) -> float:
    """Return the fraction of a side inside the window; a side without length is inside or outside."""
    if high <= low:
        return float(0 <= low <= length)
    return max(_clamp(high, length) - _clamp(low, length), 0.0) / (high - low)


def reversed_polygon(ring: Ring) -> list[float]:
    """Return the points of a polygon in reverse order, which restores the orientation of a mirrored one."""
    return [coordinate for i in range(len(ring) - 2, -1, -2) for coordinate in ring[i : i + 2]]


def reading_order(boxes: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of boxes row by row from the top, each row from left to right.

    A row holds the boxes whose vertical center is above the bottom of the row's highest box.
    """

    def center(i: int) -> float:
        return (boxes[i][1] + boxes[i][3]) / 2

    rows: list[list[int]] = []
    for i in sorted(range(len(boxes)), key=lambda i: (boxes[i][1], boxes[i][0])):
        if rows and center(i) < boxes[rows[-1][0]][3]:
            rows[-1].append(i)
        else:
            rows.append([i])
    return [i for row in rows for i in sorted(row, key=lambda i: (boxes[i][0], boxes[i][1]))]
