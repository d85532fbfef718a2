"""Signs that a target is wrong: boxes that do not fit their image, words for a missing value, damaged characters.

A training counts the targets that have one, `florence2 data check` lists them. Fractions of the image's sides in place
of pixels, and text that is no Unicode, are errors.
"""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum

from florence2.errors import DatasetError
from florence2.model.answer import Answer
from florence2.model.geometry import Ring, bounding_box
from florence2.model.location_grammar import decode_objects
from florence2.model.tasks import NUM_BINS, OutputType, Task

UNLABELED = (OutputType.REGIONS, OutputType.POLYGONS)  # outputs whose objects have no label
TOLERANCE = 1.0  # pixels that a box may extend beyond the image
_FRACTIONS_END = 2.0  # x + width of a box that is given in fractions
_SMALLEST_SIDE = 8  # of an image in which nobody marks objects of two pixels
_MISSING = frozenset(
    "nan NaN NAN None NONE null NULL N/A n/a NA <NA> #N/A #REF! #VALUE! #NAME? #DIV/0! undefined".split()
)
_DAMAGED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_UNKNOWN_LOCATION = re.compile(r"<loc_?0*(\d{1,6})>")


class Doubt(StrEnum):
    """A sign that a target is wrong; the value is what a training counts, the name that of the kind of issue."""

    SIZE = "image of another size than its annotation"
    OUTSIDE = "object outside its image"
    SWAPPED = "box with swapped corners"
    ZERO = "object without area"
    LABEL = "object without a label"
    TEXT = "text without an object where the task needs objects"
    MISSING = "word for a missing value, such as `nan`"
    CHARACTERS = "text with damaged characters"
    TOKENS = "text with location tokens that do not exist"


def object_doubts(answer: Answer, size: tuple[int, int]) -> Iterator[Doubt]:
    """Yield the first doubt about each object of an answer."""
    for item in answer:
        doubt = next((doubt for ring in item.rings if (doubt := ring_doubt(ring, size))), None)
        doubt = doubt or (label_doubt(item.label) if answer.output_type not in UNLABELED else None)
        if doubt is not None:
            yield doubt


def ring_doubt(ring: Ring, size: tuple[int, int]) -> Doubt | None:
    """Return the doubt about a box [x1, y1, x2, y2] or a polygon in an image of `size`."""
    is_box = len(ring) == 4
    left, top, right, bottom = ring if is_box else bounding_box([ring])
    if is_box and (left > right or top > bottom):
        return Doubt.SWAPPED
    if left < -TOLERANCE or top < -TOLERANCE or right > size[0] + TOLERANCE or bottom > size[1] + TOLERANCE:
        return Doubt.OUTSIDE
    if right <= left or bottom <= top or (not is_box and len(ring) < 6):
        return Doubt.ZERO
    return None


def label_doubt(label: str) -> Doubt | None:
    """Return the doubt about the label of an object."""
    if not label.strip():
        return Doubt.LABEL
    if label in _MISSING:
        return Doubt.MISSING
    return Doubt.CHARACTERS if _DAMAGED.search(label) else None


def text_doubts(task: Task, texts: Iterable[str]) -> tuple[Doubt, ...]:
    """Return the doubts about targets that are text."""
    return tuple(doubt for text in texts if (doubt := text_doubt(task, text)))


def text_doubt(task: Task, text: str) -> Doubt | None:
    """Return the doubt about a target that is text."""
    if text in _MISSING and task.name.endswith("caption"):
        return Doubt.MISSING
    if _DAMAGED.search(text):
        return Doubt.CHARACTERS
    if "<loc" in text and unknown_location(text):
        return Doubt.TOKENS
    has_objects = task.output_type is OutputType.TEXT or next(decode_objects(task.output_type, text), None) is not None
    return None if has_objects or not text else Doubt.TEXT


def unknown_location(text: str) -> str:
    """Return the first location token that the model does not have, such as PaliGemma's `<loc0100>`, "" for none."""
    found = (match for match in _UNKNOWN_LOCATION.finditer(text))
    return next((each[0] for each in found if each[0] != f"<loc_{each[1]}>" or int(each[1]) >= NUM_BINS), "")


def reject_fractions(rings: Iterable[Ring], size: tuple[int, int], where: str) -> None:
    """Raise a DatasetError where all coordinates are so near to the corner that they are fractions of the sides."""
    first: Ring | None = None
    has_fraction = False
    for ring in rings:
        for side in ring:
            if not -_FRACTIONS_END <= side <= _FRACTIONS_END:
                return
            has_fraction = has_fraction or 0 < side < 1
        first = first or ring
    if first is not None and has_fraction and min(size) >= _SMALLEST_SIDE:
        numbers = ", ".join(f"{side:.4g}" for side in first[:8])
        raise DatasetError(
            f"{where} has coordinates that are fractions of the image's sides, where pixels belong: {numbers}",
            "multiply x by the width of the image, and y by its height",
        )


def reject_surrogates(text: str, where: str) -> None:
    """Raise a DatasetError for half of a character, which JSON can write and no encoding has."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"{where} has half of a character: `{ascii(text[error.start])[1:-1]}`", "write the text again, as UTF-8"
            ) from None
