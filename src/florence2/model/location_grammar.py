"""The grammar of Florence-2's answers: labels and bins, to and from text with location tokens.

Bins are 0 to 999; `locations.py` converts them from and to pixels. In the table `n` is one of the tokens `<loc_0>` to
`<loc_999>`, x and y in turn; every other token is itself.

    output type         objects in the text
    boxes, phrases      label nnnn nnnn ...  label nnnn ...             one or several boxes after each label
    regions             nnnn nnnn ...                                   no labels
    quads               label nnnnnnnn  label nnnnnnnn ...              one label for each
    polygons            nn...n <sep> nn...n                             one object; no labels
                        <poly> nn...n <sep> nn...n </poly> ...          several objects
    boxes or polygons   label nnnn ...  label <poly> nn...n </poly> ...   several of either after each label

A label is the text directly before an object's tokens. What matches no row is skipped: tokens without the label that
they need, fewer than four in a row, text without tokens after it. `<s>`, `</s>` and `<pad>` are ignored everywhere.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from florence2.model.geometry import GeometryKind
from florence2.model.tasks import END, PAD, POLYGON_END, POLYGON_START, SEPARATOR, SPECIAL_TOKENS, START, OutputType

MIN_TOKENS = 4
"""An object has at least so many location and polygon tokens in a row."""
Bins = tuple[int, ...]
Span = tuple[int, int]
"""A range [start, end) of characters, or of positions in a shape."""


@dataclass(frozen=True, slots=True)
class LocatedObject:
    """One object of an answer's text, with its character spans in the text that it was decoded from.

    `bins` holds one ring of bins for a box or a quad, and one for each polygon of a mask. Several objects may have the
    same `label_span`.
    """

    kind: GeometryKind
    label: str
    bins: tuple[Bins, ...]
    label_span: Span = (0, 0)
    span: Span = (0, 0)

    @property
    def sides(self) -> tuple[int, int]:
        """Return width and height in bins."""
        xs, ys = ([value for ring in self.bins for value in ring[axis::2]] for axis in (0, 1))
        return max(xs) - min(xs), max(ys) - min(ys)


def encode_objects(output_type: OutputType, objects: Iterable[LocatedObject]) -> str:
    """Return the text of objects in this order; neighbors with one label follow one label."""
    # A space is the text of an empty label, else a box would belong to the label before it.
    parts = [(_clean(obj.label) or " ", obj.kind, tokens) for obj in objects if (tokens := _encode_bins(obj))]
    match output_type:
        case OutputType.REGIONS:
            return "".join(tokens for _, _, tokens in parts)
        case OutputType.POLYGONS:
            bare = parts[0][2][len(POLYGON_START) : -len(POLYGON_END)] if len(parts) == 1 else ""
            return bare if bare.count("<") >= MIN_TOKENS else "".join(tokens for _, _, tokens in parts)
        case OutputType.QUADS:
            return "".join(label + tokens for label, _, tokens in parts)
        case _:
            groups = groupby(parts, key=lambda part: part[:2])
            return "".join(label + "".join(part[2] for part in group) for (label, _), group in groups)


def bins_to_tokens(bins: Iterable[int]) -> str:
    """Return bins as location tokens."""
    return "".join(f"<loc_{bin}>" for bin in bins)  # noqa: A001


def _encode_bins(obj: LocatedObject) -> str:
    rings = [bins_to_tokens(ring) for ring in obj.bins if ring]
    if obj.kind is GeometryKind.POLYGONS and rings:
        return POLYGON_START + SEPARATOR.join(rings) + POLYGON_END
    return "".join(rings)


def _clean(label: str) -> str:
    """Remove special tokens from a label, also those that arise where another is removed."""
    while (shorter := _TOKEN.sub("", label)) != label:
        label = shorter
    return label.strip()


def decode_objects(output_type: OutputType, text: str) -> Iterator[LocatedObject]:
    """Yield the objects of a generated text, in order. Any text is legal."""
    pieces = _scan(text)
    shape = "".join(piece.letter for piece in pieces)
    for match in _PATTERNS[output_type].finditer(shape) if output_type in _PATTERNS else ():
        first = match.start("tokens")
        label = pieces[first - 1] if match["label"] else None
        kind, objects = _split(output_type, match["tokens"])
        for rings in objects:
            yield LocatedObject(
                kind,
                _clean(label.text) if label else "",
                tuple(tuple(piece.bin for piece in pieces[first + a : first + b]) for a, b in rings),
                (label.start, label.end) if label else (pieces[first].start, pieces[first].start),
                (pieces[first + rings[0][0]].start, pieces[first + rings[-1][1] - 1].end),
            )


# A text's shape has one letter for each of its pieces: `t` text, `n` a location, `,` `(` `)` the polygon tokens and `|`
# any other special token. The grammar consists of regular expressions over shapes.
_LETTERS = {SEPARATOR: ",", POLYGON_START: "(", POLYGON_END: ")"}
_PATTERNS = {
    OutputType.BOXES: re.compile("(?P<label>t)(?P<tokens>n{4,})"),
    OutputType.PHRASES: re.compile("(?P<label>t)(?P<tokens>n{4,})"),
    OutputType.REGIONS: re.compile("(?P<label>)(?P<tokens>n{4,})"),
    OutputType.QUADS: re.compile("(?P<label>t)(?P<tokens>n{8})"),
    OutputType.POLYGONS: re.compile("(?P<label>)(?P<tokens>[n,()]{4,})"),
    OutputType.BOXES_OR_POLYGONS: re.compile("(?P<label>t)(?P<tokens>[n,()]{4,})"),
}
_IGNORED_TOKENS = (START, END, PAD)
_TOKEN = re.compile(
    "<loc_([0-9]+)>|" + "|".join(re.escape(t) for t in (*_IGNORED_TOKENS, *SPECIAL_TOKENS) if not t.startswith("<loc_"))
)


def _split(output_type: OutputType, shape: str) -> tuple[GeometryKind, list[list[Span]]]:
    """Split the shape of a label's tokens into objects, each a list of rings."""
    if output_type is OutputType.POLYGONS or "(" in shape:
        return GeometryKind.POLYGONS, [rings for body in _polygon_bodies(shape) if (rings := _polygons(shape, *body))]
    if output_type is OutputType.QUADS:
        return GeometryKind.QUAD_BOXES, [[(0, 8)]]
    count = len(shape) - len(shape.lstrip("n"))
    return GeometryKind.BBOXES, [[box] for box in pairwise(range(0, count + 1, 4))]


def _polygon_bodies(shape: str) -> list[Span]:
    """Return the spans between `(` and `)`; the complete shape where either is missing, as in a truncated text."""
    if "(" in shape and ")" in shape:
        return [match.span(1) for match in re.finditer(r"\(([^)]*+)\)", shape)]
    return [(0, len(shape))]


def _polygons(shape: str, start: int, end: int) -> list[Span]:
    """Return the rings that a separator or the body's end closes, without a last x that has no y."""
    closed = re.compile(r"(?<!n)n++(?=,|$)").finditer(shape, start, end)
    return [(a, b - (b - a) % 2) for a, b in (match.span() for match in closed) if b - a > 1]


@dataclass(frozen=True, slots=True)
class _Piece:
    letter: str
    start: int
    end: int
    text: str = ""
    bin: int = 0


def _scan(text: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    position = 0
    for match in _TOKEN.finditer(text):
        _add_text(pieces, text, position, match.start())
        position = match.end()
        if match[1]:
            pieces.append(_Piece("n", *match.span(), bin=_parse_bin(match[1])))
        elif match[0] not in _IGNORED_TOKENS:
            pieces.append(_Piece(_LETTERS.get(match[0], "|"), *match.span()))
    _add_text(pieces, text, position, len(text))
    return pieces


def _add_text(pieces: list[_Piece], text: str, start: int, end: int) -> None:
    """Add a piece of text, or join it to the piece before where only an ignored token is between them."""
    content = text[start:end]
    if content and pieces and pieces[-1].letter == "t":
        last = pieces.pop()
        content, start = last.text + content, last.start
    if content:
        pieces.append(_Piece("t", start, end, content))


def _parse_bin(digits: str) -> int:
    """Return the number, 999 at most; `int` refuses thousands of digits."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 3 else 999
