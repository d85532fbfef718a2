"""Conversion of COCO's run-length masks to polygons: pycocotools decodes them, and this module traces the edges.

A polygon follows the edges of pixels and is then simplified; every edge point is at most one pixel from it. Florence-2
has no tokens for holes, so they are filled.
"""

from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from florence2.errors import DatasetError, MissingPackageError

Point = tuple[int, int]  # (x, y) of a pixel's corner
Direction = tuple[int, int]  # (dx, dy) of a pixel's edge

_TOLERANCE = 1.0  # pixels that simplification may move an edge
_RIGHT_TURN = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}
# For each direction: the axis and side of the empty neighbour, and the pixel's corner where the edge starts.
_EDGES = {
    (1, 0): (0, -1, (0, 0)),
    (0, 1): (1, 1, (1, 0)),
    (-1, 0): (0, 1, (1, 1)),
    (0, -1): (1, -1, (0, 1)),
}


def mask_to_polygons(rle: dict[str, Any], where: str) -> tuple[list[float], ...]:
    """Return the polygons of a run-length mask, the largest first."""
    if find_spec("pycocotools") is None:
        raise MissingPackageError(
            f"{where} is a run-length mask, which needs pycocotools", "install it with `pip install pycocotools`"
        )
    masks = import_module("pycocotools.mask")
    try:
        compressed = masks.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
        mask = masks.decode(compressed).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where} has a run-length mask that cannot be read: {error}") from None
    loops = (loop for loop in _trace_loops(mask) if _signed_area(loop) > 0)
    largest_first = sorted(loops, key=_signed_area, reverse=True)
    return tuple([float(side) for point in _simplify(loop) for side in point] for loop in largest_first)


def _trace_loops(mask: np.ndarray) -> list[list[Point]]:
    """Trace the edges of a mask (H x W): outer edges run clockwise on the screen, those of holes counterclockwise."""
    outgoing: dict[Point, list[Direction]] = defaultdict(list)
    for direction in _RIGHT_TURN:
        for start in _edge_starts(mask, direction):
            outgoing[start].append(direction)
    loops = []
    while outgoing:
        corner = start = next(iter(outgoing))
        direction = outgoing[start][0]
        loop: list[Point] = []
        while True:
            options = outgoing[corner]
            right = _RIGHT_TURN[direction]
            # right turns separate regions that touch at a corner
            chosen = right if right in options else direction if direction in options else options[0]
            if chosen != direction or not loop:
                loop.append(corner)
            options.remove(chosen)
            if not options:
                del outgoing[corner]
            direction, corner = chosen, (corner[0] + chosen[0], corner[1] + chosen[1])
            if corner == start:
                break
        loops.append(loop)
    return loops


def _edge_starts(mask: np.ndarray, direction: Direction) -> list[Point]:
    """Return the corners where an edge in a direction starts, with the mask on its right."""
    axis, side, corner = _EDGES[direction]
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero((padded & ~np.roll(padded, -side, axis=axis))[1:-1, 1:-1])
    return [(int(x) + corner[0], int(y) + corner[1]) for x, y in zip(columns, rows, strict=True)]


def _signed_area(loop: list[Point]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(loop, [*loop[1:], loop[0]], strict=True)) / 2


def _simplify(loop: list[Point]) -> list[Point]:
    """Simplify a closed loop (Douglas and Peucker), in two halves between the first point and the one farthest away."""
    points = np.array(loop, dtype=np.float64)
    farthest = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    halves = [np.arange(0, farthest + 1), np.append(np.arange(farthest, len(loop)), 0)]
    indices = sorted({int(i) for half in halves for i in _significant_points(points, half)})
    return [loop[i] for i in indices] if len(indices) > 2 else loop


def _significant_points(points: np.ndarray, order: np.ndarray) -> list[int]:
    pending, significant = [(0, len(order) - 1)], {0, len(order) - 1}
    while pending:
        a, b = pending.pop()
        if b - a < 2:
            continue
        start, chord = points[order[a]], points[order[b]] - points[order[a]]
        offsets = points[order[a + 1 : b]] - start
        length = float(np.hypot(*chord))
        if length:
            distances = np.abs(offsets @ (-chord[1], chord[0])) / length
        else:
            distances = np.hypot(offsets[:, 0], offsets[:, 1])
        if distances.max() > _TOLERANCE:
            middle = a + 1 + int(distances.argmax())
            significant.add(middle)
            pending += [(a, middle), (middle, b)]
    return [int(order[i]) for i in significant]
