"""Labels and bins, to and from the text that Florence-2 speaks: the grammar, both directions side by side.

It knows bins (0 to 999), but no pixels and no values a user sees: those are made in `locations.py`. In the table `n` is
one of the tokens `<loc_0>` to `<loc_999>`, x and y in turn; the rest stands for itself.

    answers             objects on the wire
    boxes, phrases      label nnnn nnnn ...  label nnnn ...             one box or several behind each label
    regions             nnnn nnnn ...                                   no labels
    quads               label nnnnnnnn  label nnnnnnnn ...              always a label for each
    polygons            nn...n <sep> nn...n                             one object; no labels
                        <poly> nn...n <sep> nn...n </poly> ...          several objects
    boxes or polygons   label nnnn ...  label <poly> nn...n </poly> ...   several of either behind each label

A label is the words right before an object's tokens. What fits no row is skipped: tokens without the label they need,
fewer than four in a row, words with no tokens behind them. `<s>`, `</s>` and `<pad>` count for nothing anywhere.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from florence2.model.geometry import GeometryKind
from florence2.model.tasks import END, PAD, POLYGON_END, POLYGON_START, SEPARATOR, SPECIAL_TOKENS, START, OutputType

MIN_TOKENS = 4
"""Fewer layout tokens in a row are no object."""
Bins = tuple[int, ...]
Span = tuple[int, int]
"""A [start, end) of characters, or of places in a shape."""


@dataclass(frozen=True, slots=True)
class LocatedObject:
    """One object on the wire; its spans say where it stands in the text that it was found in.

    `form` is the result key it goes under: bboxes, quad_boxes or polygons. `bins` holds one run of bins for a box or a
    quad, and one for each polygon of a mask. Several objects may share one `label_span`.
    """

    kind: GeometryKind
    label: str
    bins: tuple[Bins, ...]
    label_span: Span = (0, 0)
    span: Span = (0, 0)


def encode_objects(answers: OutputType, objects: Iterable[LocatedObject]) -> str:
    """Return the text that says these objects in this order, neighbours of one label behind one label."""
    # A space stands for an empty label, lest a box go to the label before it.
    said = [(_clean(placed.label) or " ", placed.kind, text) for placed in objects if (text := _write_bins(placed))]
    match answers:
        case OutputType.REGIONS:
            return "".join(text for _, _, text in said)
        case OutputType.POLYGONS:
            bare = said[0][2][len(POLYGON_START) : -len(POLYGON_END)] if len(said) == 1 else ""
            return bare if bare.count("<") >= MIN_TOKENS else "".join(text for _, _, text in said)
        case OutputType.QUADS:
            return "".join(label + text for label, _, text in said)
        case _:
            groups = groupby(said, key=lambda one: one[:2])
            return "".join(label + "".join(one[2] for one in group) for (label, _), group in groups)


def bins_to_tokens(bins: Iterable[int]) -> str:
    """Return bins as location tokens."""
    return "".join(f"<loc_{bin}>" for bin in bins)  # noqa: A001


def _write_bins(placed: LocatedObject) -> str:
    runs = [bins_to_tokens(run) for run in placed.bins if run]
    if placed.kind is GeometryKind.POLYGONS and runs:
        return POLYGON_START + SEPARATOR.join(runs) + POLYGON_END
    return "".join(runs)


def _clean(label: str) -> str:
    """Return the label without special tokens, nor any that comes about when another goes."""
    while (shorter := _TOKEN.sub("", label)) != label:
        label = shorter
    return label.strip()


def decode_objects(answers: OutputType, text: str) -> Iterator[LocatedObject]:
    """Yield the objects in a model's text, in order. Any text is legal."""
    marks = _scan(text)
    shape = "".join(mark.kind for mark in marks)
    for match in _PATTERNS[answers].finditer(shape) if answers in _PATTERNS else ():
        first = match.start("places")
        label = marks[first - 1] if match["label"] else None
        form, objects = _split(answers, match["places"])
        for runs in objects:
            yield LocatedObject(
                form,
                _clean(label.text) if label else "",
                tuple(tuple(mark.bin for mark in marks[first + a : first + b]) for a, b in runs),
                (label.start, label.end) if label else (marks[first].start, marks[first].start),
                (marks[first + runs[0][0]].start, marks[first + runs[-1][1] - 1].end),
            )


# A text's shape has one letter for each of its parts: `t` words, `n` a location, `,` `(` `)` the polygon tokens and `|`
# any other special token. All grammar is regular expressions over shapes.
_KINDS = {SEPARATOR: ",", POLYGON_START: "(", POLYGON_END: ")"}
_PATTERNS = {
    OutputType.BOXES: re.compile("(?P<label>t)(?P<places>n{4,})"),
    OutputType.PHRASES: re.compile("(?P<label>t)(?P<places>n{4,})"),
    OutputType.REGIONS: re.compile("(?P<label>)(?P<places>n{4,})"),
    OutputType.QUADS: re.compile("(?P<label>t)(?P<places>n{8})"),
    OutputType.POLYGONS: re.compile("(?P<label>)(?P<places>[n,()]{4,})"),
    OutputType.BOXES_OR_POLYGONS: re.compile("(?P<label>t)(?P<places>[n,()]{4,})"),
}
_MARKERS = (START, END, PAD)
_TOKEN = re.compile(
    "<loc_([0-9]+)>|" + "|".join(re.escape(t) for t in (*_MARKERS, *SPECIAL_TOKENS) if not t.startswith("<loc_"))
)


def _split(answers: OutputType, shape: str) -> tuple[GeometryKind, list[list[Span]]]:
    """Split the shape of a label's places into objects: for each the runs of locations it is made of."""
    if answers is OutputType.POLYGONS or "(" in shape:
        return GeometryKind.POLYGONS, [runs for body in _bodies(shape) if (runs := _polygons(shape, *body))]
    if answers is OutputType.QUADS:
        return GeometryKind.QUAD_BOXES, [[(0, 8)]]
    count = len(shape) - len(shape.lstrip("n"))
    return GeometryKind.BBOXES, [[box] for box in pairwise(range(0, count + 1, 4))]


def _bodies(shape: str) -> list[Span]:
    """Return what stands between `(` and `)`; everything where either is missing: a text may have been cut short."""
    if "(" in shape and ")" in shape:
        return [match.span(1) for match in re.finditer(r"\(([^)]*+)\)", shape)]
    return [(0, len(shape))]


def _polygons(shape: str, start: int, end: int) -> list[Span]:
    """Return the runs that a separator or the body's end closes, without a last x that has no y."""
    closed = re.compile(r"(?<!n)n++(?=,|$)").finditer(shape, start, end)
    return [(a, b - (b - a) % 2) for a, b in (match.span() for match in closed) if b - a > 1]


@dataclass(frozen=True, slots=True)
class _Mark:
    kind: str
    start: int
    end: int
    text: str = ""
    bin: int = 0


def _scan(text: str) -> list[_Mark]:
    marks: list[_Mark] = []
    at = 0
    for match in _TOKEN.finditer(text):
        _add_words(marks, text, at, match.start())
        at = match.end()
        if match[1]:
            marks.append(_Mark("n", *match.span(), bin=_bin(match[1])))
        elif match[0] not in _MARKERS:
            marks.append(_Mark(_KINDS.get(match[0], "|"), *match.span()))
    _add_words(marks, text, at, len(text))
    return marks


def _add_words(marks: list[_Mark], text: str, start: int, end: int) -> None:
    """Add words, or join them to the words before where only a marker stood between."""
    words = text[start:end]
    if words and marks and marks[-1].kind == "t":
        last = marks.pop()
        words, start = last.text + words, last.start
    if words:
        marks.append(_Mark("t", start, end, words))


def _bin(digits: str) -> int:
    """Return the number, 999 at most; `int` alone refuses thousands of digits."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 3 else 999
