"""Run-length masks, as COCO has them, to polygons. pycocotools decodes them; following the outline is ours.

A polygon runs along the edges of pixels and is then thinned, so that no point of the edge is further than a pixel from
it. Florence-2 has no word for holes, so they are filled.
"""

from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from florence2.errors import UserError

Point = tuple[int, int]  # (x, y) of a corner of pixels

_SLACK = 1.0  # pixels that thinning may move the edge by
_TURNS = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}  # each way, turned right
# For each way: the axis and the side on which the neighbour is empty, and the corner of the pixel it sets out from.
_SIDES = {
    (1, 0): (0, -1, (0, 0)),
    (0, 1): (1, 1, (1, 0)),
    (-1, 0): (0, 1, (1, 1)),
    (0, -1): (1, -1, (0, 1)),
}


def mask_to_polygons(rle: dict[str, Any], named: str) -> tuple[list[float], ...]:
    """Give the polygons around a run-length mask, the largest first."""
    if find_spec("pycocotools") is None:
        raise UserError(f"{named} is a run-length mask, which pycocotools reads", "pip install pycocotools")
    masks = import_module("pycocotools.mask")
    try:
        whole = masks.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
        mask = masks.decode(whole).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{named} has a run-length mask that cannot be read: {error}") from None
    loops = sorted((loop for loop in _loops(mask) if _signed(loop) > 0), key=_signed, reverse=True)
    return tuple([float(side) for point in _thinned(loop) for side in point] for loop in loops)


def _loops(mask: np.ndarray) -> list[list[Point]]:
    """Follow the edges of a mask (H x W): outlines run clockwise on the screen, holes the other way."""
    ahead: dict[Point, list[Point]] = defaultdict(list)  # from each corner, the ways on
    for way in _TURNS:
        for start in _edges(mask, way):
            ahead[start].append(way)
    loops = []
    while ahead:
        at = start = next(iter(ahead))
        way = ahead[start][0]
        loop: list[Point] = []
        while True:
            ways = ahead[at]
            turned = _TURNS[way]
            on = turned if turned in ways else way if way in ways else ways[0]  # right turns keep corners apart
            if on != way or not loop:
                loop.append(at)
            ways.remove(on)
            if not ways:
                del ahead[at]
            way, at = on, (at[0] + on[0], at[1] + on[1])
            if at == start:
                break
        loops.append(loop)
    return loops


def _edges(mask: np.ndarray, way: Point) -> list[Point]:
    """Give the corners where an edge sets out in one direction, with the mask at its right hand."""
    along, side, corner = _SIDES[way]
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero((padded & ~np.roll(padded, -side, axis=along))[1:-1, 1:-1])
    return [(int(x) + corner[0], int(y) + corner[1]) for x, y in zip(columns, rows, strict=True)]


def _signed(loop: list[Point]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(loop, [*loop[1:], loop[0]], strict=True)) / 2


def _thinned(loop: list[Point]) -> list[Point]:
    """Leave out points of a closed loop (Douglas and Peucker), in two halves between its farthest points."""
    points = np.array(loop, dtype=np.float64)
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    halves = [np.arange(0, far + 1), np.append(np.arange(far, len(loop)), 0)]
    kept = sorted({int(i) for half in halves for i in _bends(points, half)})
    return [loop[i] for i in kept] if len(kept) > 2 else loop


def _bends(points: np.ndarray, order: np.ndarray) -> list[int]:
    ends, kept = [(0, len(order) - 1)], {0, len(order) - 1}
    while ends:
        a, b = ends.pop()
        if b - a < 2:
            continue
        start, way = points[order[a]], points[order[b]] - points[order[a]]
        offsets = points[order[a + 1 : b]] - start
        length = float(np.hypot(*way))
        apart = np.abs(offsets @ (-way[1], way[0])) / length if length else np.hypot(offsets[:, 0], offsets[:, 1])
        if apart.max() > _SLACK:
            middle = a + 1 + int(apart.argmax())
            kept.add(middle)
            ends += [(a, middle), (middle, b)]
    return [int(order[i]) for i in kept]
