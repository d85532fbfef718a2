"""Windows of an image, and the positions of objects inside them.

Coordinates run from 0 to `NUM_BINS` along each side of the image, like location tokens, so the image size is not
needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from florence2.model.answer import Answer, AnswerItem
from florence2.model.tasks import NUM_BINS

BIN_GRID = (NUM_BINS, NUM_BINS)  # the size of an image on which a bin is a pixel
LENGTH = float(NUM_BINS)


@dataclass(frozen=True)
class CropWindow:
    """A window of an image, in fractions of the image's sides, which is optionally flipped left to right.

    Where a side is below 0 or above 1, the window extends beyond the image.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    is_flipped: bool = False

    @property
    def is_full_image(self) -> bool:
        """Return whether the window covers exactly the image."""
        return (self.left, self.top, self.right, self.bottom) == (0.0, 0.0, 1.0, 1.0)

    @property
    def is_identity(self) -> bool:
        """Return whether the window shows the image unchanged."""
        return self.is_full_image and not self.is_flipped

    def __str__(self) -> str:
        sides = f"x {self.left:.0%} to {self.right:.0%}, y {self.top:.0%} to {self.bottom:.0%}"
        return ", ".join([*(["flipped"] if self.is_flipped else []), *([] if self.is_full_image else [sides])])

    def transform_points(self, points: Sequence[float]) -> list[float]:
        """Convert points x, y, x, y, ... of the image to coordinates of the window; they may lie outside it."""
        spans = cycle(((self.left, self.right), (self.top, self.bottom)))
        scaled = [(value - low * LENGTH) / (high - low) for value, (low, high) in zip(points, spans, strict=False)]
        return [LENGTH - value if self.is_flipped and i % 2 == 0 else value for i, value in enumerate(scaled)]


def transform_answer(answer: Answer, window: CropWindow, min_visible: float) -> Answer:
    """Convert the objects of an answer to the window.

    Objects of which less than the fraction `min_visible` is inside the window are removed, others are clipped to it. A
    quad bounds a line of text, which is unreadable in part, and is removed if it is not entirely inside.
    """
    return answer.transformed(window.transform_points, (LENGTH, LENGTH), min_visible, window.is_flipped)


def transform_box(box: Sequence[float], window: CropWindow, min_visible: float) -> list[float] | None:
    """Convert a box to the window; return None if less than the fraction `min_visible` of it is inside."""
    item = AnswerItem.box(box).transformed(window.transform_points, (LENGTH, LENGTH), min_visible, window.is_flipped)
    return None if item is None else item.coordinates
