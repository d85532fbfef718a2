"""What a window onto a picture does to the places in it: boxes, quads, polygons, and regions that are asked about.

Places are points from 0 to `WHOLE` along each side of the picture, as location tokens say them, so no picture's size
matters. An object of which less than a share is left is dropped, and a cut one is clipped; a quad holds a line of
text, which cannot be read in part: cut, it is dropped. Knows nothing of chance and of pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

from florence2.model.tasks import NUM_BINS

WHOLE = float(NUM_BINS)
BINS = (NUM_BINS, NUM_BINS)  # a picture on which a bin is a pixel
SLACK = 1e-6

Points = list[float]  # x, y, x, y, ...


@dataclass(frozen=True)
class CropWindow:
    """A window onto a picture, in parts of its sides, and whether what is seen there is mirrored.

    Sides beyond 0 and 1 reach over the picture's edge, where there is nothing.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    flipped: bool = False

    @property
    def is_full_image(self) -> bool:
        """Tell whether the window is the picture."""
        return (self.left, self.top, self.right, self.bottom) == (0.0, 0.0, 1.0, 1.0)

    @property
    def is_changed(self) -> bool:
        """Tell whether anything looks other than in the picture."""
        return self.flipped or not self.is_full_image

    def __str__(self) -> str:
        sides = f"x {self.left:.0%} to {self.right:.0%}, y {self.top:.0%} to {self.bottom:.0%}"
        return ", ".join([*(["mirrored"] if self.flipped else []), *([] if self.is_full_image else [sides])])

    def transform_points(self, points: Sequence[float]) -> Points:
        """Move points of the picture to where the window shows them, which may be outside."""
        spans = cycle(((self.left, self.right), (self.top, self.bottom)))
        found = [(value - low * WHOLE) / (high - low) for value, (low, high) in zip(points, spans, strict=False)]
        return [WHOLE - value if self.flipped and i % 2 == 0 else value for i, value in enumerate(found)]


def transform_objects(value: Mapping[str, Any], view: CropWindow, keep: float) -> dict[str, Any]:
    """Move the objects of an answer with the picture; `keep` is the least share of an object that stays one."""
    result: dict[str, Any] = dict(value)
    for form, move in _MOVES.items():
        if form not in value:
            continue
        labels = f"{form}_labels" if f"{form}_labels" in value else "labels"
        placed = [(move(place, view, keep), label) for place, label in zip(value[form], value[labels], strict=True)]
        result[form] = [place for place, _ in placed if place is not None]
        result[labels] = [label for place, label in placed if place is not None]
    return result


def transform_box(box: Sequence[float], view: CropWindow, keep: float) -> Points | None:
    """Move and clip a box; None where less than the share `keep` of it is left."""
    x1, y1, x2, y2 = view.transform_points(box)
    if view.flipped:
        x1, x2 = x2, x1
    if _share(x1, x2) * _share(y1, y2) < max(keep, SLACK):
        return None
    return [_inside(side) for side in (x1, y1, x2, y2)]


def _inside(value: float) -> float:
    return min(max(value, 0.0), WHOLE)


def _share(low: float, high: float) -> float:
    """Tell how much of a side is in sight; one without length is in sight or not."""
    if high <= low:
        return float(0 <= low <= WHOLE)
    return max(_inside(high) - _inside(low), 0.0) / (high - low)


def _move_quad(quad: Sequence[float], view: CropWindow, keep: float) -> Points | None:
    del keep
    points = view.transform_points(quad)
    if not all(-SLACK <= value <= WHOLE + SLACK for value in points):
        return None
    # Corners go clockwise from the top left; in a mirror the second is the first.
    return [points[i] for i in (2, 3, 0, 1, 6, 7, 4, 5)] if view.flipped and len(points) == 8 else points


def _move_polygons(polygons: Sequence[Sequence[float]], view: CropWindow, keep: float) -> list[Points] | None:
    moved = [view.transform_points(polygon[: len(polygon) // 2 * 2]) for polygon in polygons]
    kept = [clipped for points in moved if len(clipped := clip(points)) >= 6]
    before, left = (sum(map(area, parts)) for parts in (moved, kept))
    if not kept or left < max(keep, SLACK) * before:
        return None
    return [_backwards(points) for points in kept] if view.flipped else kept


def _backwards(points: Points) -> Points:
    """Turn a polygon around, which a mirror made go the other way."""
    return [side for i in range(len(points) - 2, -1, -2) for side in points[i : i + 2]]


def area(points: Sequence[float]) -> float:
    """Give the area of a polygon."""
    corners = list(zip(points[0::2], points[1::2], strict=True))
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise([*corners, *corners[:1]]))) / 2


def clip(points: Sequence[float]) -> Points:
    """Cut a polygon to what is in sight, side by side (Sutherland and Hodgman); one that is inside stays as it is."""
    corners = list(zip(points[0::2], points[1::2], strict=True))
    for axis in (0, 1):
        for edge, sign in ((0.0, 1.0), (WHOLE, -1.0)):
            corners = _clip_side(corners, axis, edge, sign)
    return [side for corner in corners for side in corner]


def _clip_side(corners: list[tuple[float, float]], axis: int, edge: float, sign: float) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for before, here in pairwise([*corners[-1:], *corners]):
        was, now = (sign * (corner[axis] - edge) for corner in (before, here))
        if (was < 0) != (now < 0):
            part = was / (was - now)
            kept.append((before[0] + part * (here[0] - before[0]), before[1] + part * (here[1] - before[1])))
        if now >= 0:
            kept.append(here)
    return kept


_MOVES: dict[str, Callable[[Any, CropWindow, float], Any]] = {
    "bboxes": transform_box,
    "quad_boxes": _move_quad,
    "polygons": _move_polygons,
}
