"""Boxes, quads and polygons in pixels, to and from the text that Florence-2 speaks: both directions side by side.

Pure Python: it knows no model, no tokenizer and no picture, only a picture's size. The grammar of the text is in
`wire.py`. The values have the keys of transformers' `post_process_generation`:

    answers            value, in pixels
    text               str
    boxes, phrases     {"bboxes": [[x1, y1, x2, y2]], "labels": [str]}
    regions            the same, every label ""
    quads              {"quad_boxes": [[x1, y1, ..., x4, y4]], "labels": [str]}
    polygons           {"polygons": [[[x, y, x, y, ...], ...]], "labels": [""]}   an object is a list of polygons
    boxes or polygons  {"bboxes", "bboxes_labels", "polygons", "polygons_labels"}

`read(write(value))` is `value` to half a bin. What the text cannot say is lost: a label's outer white space and any
special token in it, the labels of regions and polygons, an object without a whole point.

Policy: `write` keeps the order it is given, and duplicates; `reading_order` and `shuffled` give another order.

`read` never raises. On ASCII text it gives what transformers gives, except on purpose:

1. Numbers are the exact middles of bins (floats); transformers cuts them down to whole pixels.
2. Labels keep every script and inner line breaks; transformers drops non-ASCII letters, and what holds a line break.
3. A label keeps its `<`; for transformers a label starts after its last `<` (but not in quads).
4. A special token is never part of a label, nor is half of one: `<od>cat` is `cat`, for transformers `od>cat`. Boxes in
   front of every label are dropped; transformers may take `loc_5>` for their label and read the rest shifted by one.
5. `<loc_1000>` and above, which only ordinary pieces can spell, read as 999; transformers goes past the picture's edge.
6. Boxes or polygons is settled label by label, not once for the whole text.
7. Phrases such as "it" and "the image" are kept unless `banned` names them; transformers' list is in its processor.
8. `<pad>` is stripped from plain text too. A polygon without a whole point is dropped; transformers keeps it, empty.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from florence2.errors import UserError
from florence2.model.location_grammar import LocatedObject, bins_to_tokens, decode_objects, encode_objects
from florence2.model.tasks import END, NUM_BINS, PAD, START, OutputType, Task

Value = str | Mapping[str, Any]
Size = tuple[int, int]
"""(width, height) in pixels."""

# The result keys of each kind: where its objects go, and their labels.
_KEYS: dict[OutputType, dict[str, str]] = {
    OutputType.TEXT: {},
    OutputType.BOXES: {"bboxes": "labels"},
    OutputType.PHRASES: {"bboxes": "labels"},
    OutputType.REGIONS: {"bboxes": "labels"},
    OutputType.QUADS: {"quad_boxes": "labels"},
    OutputType.POLYGONS: {"polygons": "labels"},
    OutputType.BOXES_OR_POLYGONS: {"bboxes": "bboxes_labels", "polygons": "polygons_labels"},
}
_UNLABELLED = (OutputType.REGIONS, OutputType.POLYGONS)


def to_bin(value: float, size: float) -> int:
    """Return the bin, 0 to 999, that holds the pixel coordinate `value` of a side `size` pixels long."""
    return min(max(math.floor(value * NUM_BINS / size), 0), NUM_BINS - 1)


def from_bin(bin: int, size: float) -> float:  # noqa: A002  there is no better word
    """Return the pixel coordinate of the middle of a bin."""
    return (bin + 0.5) * size / NUM_BINS


def encode_region(box: Sequence[float], size: Size) -> str:
    """Return a box (or any run of x, y pixels) as location tokens: the input of the region tasks."""
    return bins_to_tokens(_to_bins(box, size))


def parse_box(text: str) -> list[float] | None:
    """Read a box that is written as `x1,y1,x2,y2`; None for anything else."""
    numbers = re.fullmatch(r"\s*\[?\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]?\s*", text)
    return [float(number) for number in numbers.groups()] if numbers else None


def _to_bins(points: Sequence[float], size: Size) -> tuple[int, ...]:
    whole = points[: len(points) // 2 * 2]
    return tuple(to_bin(value, size[i % 2]) for i, value in enumerate(whole))


def _to_pixels(bins: Sequence[int], size: Size) -> list[float]:
    return [from_bin(bin, size[i % 2]) for i, bin in enumerate(bins)]  # noqa: A001


def encode(asked: Task | OutputType, value: Value, size: Size) -> str:
    """Return the text the model should say for `value`, whose coordinates are pixels of a picture of `size`.

    A string stands for itself under every task. Where it has one kind of object, "labels" may hold their labels.
    Raises UserError where `value` holds no object of the kind asked for, or not one label for each.
    """
    if isinstance(value, str):
        return _plain(value)
    answers = asked.output_type if isinstance(asked, Task) else asked
    return encode_objects(answers, _to_objects(answers, value, size))


def _to_objects(answers: OutputType, value: Mapping[str, Any], size: Size) -> Iterator[LocatedObject]:
    wanted = _KEYS[answers]
    if not any(form in value for form in wanted):
        names = " or ".join(f"`{form}`" for form in wanted) or "a text"
        raise UserError(f"the answer holds {', '.join(f'`{key}`' for key in value)}, not {names}", f"give {names}")
    for form in (form for form in wanted if form in value):
        places = value[form]
        labels = [""] * len(places) if answers in _UNLABELLED else value.get(wanted[form], value.get("labels", ()))
        if len(labels) != len(places):
            raise UserError(f"{len(labels)} labels for {len(places)} `{form}`", "give one label for each")
        for place, label in zip(places, labels, strict=True):
            runs = place if form == "polygons" else [place]
            yield LocatedObject(form, label, tuple(_to_bins(run, size) for run in runs))


def decode(
    asked: Task | OutputType,
    text: str,
    size: Size,
    *,
    banned: Collection[str] = (),
    score: Callable[[LocatedObject], float | None] | None = None,
) -> Any:
    """Return the value that a model's `text` stands for, in pixels of a picture of `size`: see the table above.

    `banned` are phrases that grounding should leave out. Text that is no answer gives an empty value, never an error.
    With `score`, each list of labels has a list of scores beside it: `scores`, `bboxes_scores`, `polygons_scores`.
    """
    answers = asked.output_type if isinstance(asked, Task) else asked
    if answers is OutputType.TEXT:
        return _plain(text)
    value: dict[str, list[Any]] = {key: [] for keys in _KEYS[answers].items() for key in keys}
    if score:
        value |= {_scores_beside(labels): [] for labels in _KEYS[answers].values()}
    for placed in decode_objects(answers, text):
        if answers is OutputType.PHRASES and placed.label in banned:
            continue
        runs = [_to_pixels(run, size) for run in placed.bins]
        value[placed.kind].append(runs if placed.kind == "polygons" else runs[0])
        labels = _KEYS[answers][placed.kind]
        value[labels].append(placed.label)
        if score:
            value[_scores_beside(labels)].append(score(placed))
    return value


def _scores_beside(labels: str) -> str:
    return labels.replace("labels", "scores")


def _plain(text: str) -> str:
    while (shorter := text.replace(START, "").replace(END, "").replace(PAD, "")) != text:
        text = shorter
    return text.strip()


def reading_order(value: Any) -> Any:
    """Return the value with its objects in reading order: row by row from the top, each from left to right.

    A row holds the objects whose middle is above the bottom of the row's highest. Boxes and polygons of one value are
    put in order each among themselves.
    """
    return _rearranged(value, lambda places: _rows([_extent(place) for place in places]))


def shuffled(value: Any, rng: Random) -> Any:
    """Return the value with its objects in a random order."""
    return _rearranged(value, lambda places: rng.sample(range(len(places)), len(places)))


def truncate(
    asked: Task | OutputType, value: Value, size: Size, max_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[Value, int]:
    """Drop whole objects at the end until the written text has at most `max_tokens`, and tell how many were dropped.

    Words are never cut, nor is the bare answer if even no object is too long for `max_tokens`.
    """
    if isinstance(value, str):
        return value, 0
    total = sum(len(places) for places, _ in _columns(value))

    def length(kept: int) -> int:
        return count_tokens(encode(asked, _first(value, kept), size))

    kept = max(bisect_right(range(total + 1), max_tokens, key=length) - 1, 0)
    return _first(value, kept), total - kept


def _columns(value: Mapping[str, Any]) -> Iterator[tuple[Sequence[Any], list[str]]]:
    """Yield each list of objects with all the keys whose lists go along with it."""
    for form in ("bboxes", "quad_boxes", "polygons"):
        if form in value:
            own = [f"{form}_labels", f"{form}_scores"]
            beside = own if own[0] in value else ["labels", "scores"]
            yield value[form], [form, *(key for key in beside if key in value)]


def _rearranged(value: Any, order: Callable[[Sequence[Any]], Iterable[int]]) -> Any:
    if isinstance(value, str):
        return value
    result = dict(value)
    for places, keys in _columns(value):
        indices = list(order(places))
        result |= {key: [value[key][i] for i in indices] for key in keys}
    return result


def _first(value: Mapping[str, Any], kept: int) -> dict[str, Any]:
    result = dict(value)
    for places, keys in _columns(value):
        result |= {key: list(value[key][:kept]) for key in keys}
        kept = max(kept - len(places), 0)
    return result


def _extent(place: Sequence[Any]) -> tuple[float, float, float]:
    """Return (left, top, bottom) of a box, a quad or a mask."""
    runs = place if place and isinstance(place[0], Sequence) else [place]
    xs = [x for run in runs for x in run[0::2]]
    ys = [y for run in runs for y in run[1::2]]
    return min(xs, default=0.0), min(ys, default=0.0), max(ys, default=0.0)


def _rows(extents: Sequence[tuple[float, float, float]]) -> list[int]:
    def middle(i: int) -> float:
        return (extents[i][1] + extents[i][2]) / 2

    rows: list[list[int]] = []
    for i in sorted(range(len(extents)), key=lambda i: (extents[i][1], extents[i][0])):
        if rows and middle(i) < extents[rows[-1][0]][2]:
            rows[-1].append(i)
        else:
            rows.append([i])
    return [i for row in rows for i in sorted(row, key=lambda i: extents[i][:2])]
