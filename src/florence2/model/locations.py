"""The codec between answers in pixels and the location tokens of Florence-2: `encode` and `decode`.

Pure Python without a model, a tokenizer or an image: an image's size is enough. The grammar of the text is in
`location_grammar.py`, the answer in `answer.py`.

`decode(encode(answer))` equals `answer` to half a bin. What the text cannot hold is lost: the outer white space of a
label and special tokens in it, the labels of regions and polygons, an object without a complete point.

`encode` keeps the order of the objects, and duplicates. `decode` never raises. On ASCII text it returns what
transformers returns, except on purpose:

1. Coordinates are the exact centers of bins (floats); transformers truncates them to integers.
2. Labels keep every script and inner line breaks; transformers drops non-ASCII letters, and labels with a line break.
3. A label keeps its `<`; in transformers a label starts after its last `<` (but not in quads).
4. No special token, nor a part of one, is in a label: `<od>cat` is `cat`, in transformers `od>cat`. Boxes before the
   first label are dropped; transformers may read `loc_5>` as their label and the following boxes shifted by one token.
5. `<loc_1000>` and above, which only ordinary tokens can spell, count as 999; transformers exceeds the image.
6. Each label has boxes or polygons; in transformers the whole text has either.
7. Phrases such as "it" and "the image" remain unless `banned` names them; transformers' list is in its processor.
8. `<pad>` is removed from plain text too. A polygon without a complete point is dropped; transformers keeps it, empty.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence

from florence2.model.answer import Answer, AnswerItem
from florence2.model.location_grammar import LocatedObject, bins_to_tokens, decode_objects, encode_objects
from florence2.model.tasks import END, NUM_BINS, PAD, START, OutputType, Task

Size = tuple[int, int]
"""(width, height) in pixels."""


def to_bin(value: float, size: float) -> int:
    """Return the bin, 0 to 999, of the pixel coordinate `value` on a side `size` pixels long."""
    return min(max(math.floor(value * NUM_BINS / size), 0), NUM_BINS - 1)


def from_bin(bin: int, size: float) -> float:  # noqa: A002
    """Return the pixel coordinate of the center of a bin."""
    return (bin + 0.5) * size / NUM_BINS


def encode_region(box: Sequence[float], size: Size) -> str:
    """Return a box (or any ring of x, y in pixels) as location tokens: the input of the region tasks."""
    return bins_to_tokens(_to_bins(box, size))


def parse_box(text: str) -> list[float] | None:
    """Read a box that is written as `x1,y1,x2,y2`; return None for anything else."""
    numbers = re.fullmatch(r"\s*\[?\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]?\s*", text)
    return [float(number) for number in numbers.groups()] if numbers else None


def _to_bins(ring: Sequence[float], size: Size) -> tuple[int, ...]:
    even = len(ring) // 2 * 2  # a last x without a y is dropped
    return tuple(to_bin(value, size[i % 2]) for i, value in enumerate(ring[:even]))


def _to_pixels(bins: Sequence[int], size: Size) -> list[float]:
    return [from_bin(bin, size[i % 2]) for i, bin in enumerate(bins)]  # noqa: A001


def encode(task: Task | OutputType, answer: Answer, size: Size) -> str:
    """Return the text that the model should generate for an answer in pixels of an image of `size`, without crowds."""
    items = answer.without_crowds()
    objects = (LocatedObject(item.kind, item.label, tuple(_to_bins(r, size) for r in item.rings)) for item in items)
    return encode_objects(_output_type(task), objects)


def decode(
    task: Task | OutputType,
    text: str,
    size: Size,
    *,
    banned: Collection[str] = (),
    score: Callable[[LocatedObject], float | None] | None = None,
) -> Answer:
    """Return the answer that a generated text holds, in pixels of an image of `size`; a text task has no objects.

    `banned` are phrases that grounding drops. Text without an object gives an empty answer, never an error.
    `score` returns the score of each object.
    """
    output_type = _output_type(task)
    items = []
    for located in decode_objects(output_type, text):
        if output_type is OutputType.PHRASES and located.label in banned:
            continue
        rings = tuple(tuple(_to_pixels(ring, size)) for ring in located.bins)
        items.append(AnswerItem(located.kind, rings, located.label, score(located) if score else None))
    return Answer(output_type, tuple(items), has_scores=score is not None)


def _output_type(task: Task | OutputType) -> OutputType:
    return task.output_type if isinstance(task, Task) else task


def clean_text(text: str) -> str:
    """Return the plain text of a text task: without `<s>`, `</s>`, `<pad>` and outer white space."""
    while (shorter := text.replace(START, "").replace(END, "").replace(PAD, "")) != text:
        text = shorter
    return text.strip()


def truncate(
    task: Task | OutputType, answer: Answer, size: Size, max_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[Answer, int]:
    """Drop complete objects at the end until the text has at most `max_tokens`; return the rest and the number dropped.

    The empty answer remains even where its text is too long for `max_tokens`.
    """

    def token_count(num_objects: int) -> int:
        return count_tokens(encode(task, answer.first(num_objects), size))

    fitting = max(bisect_right(range(len(answer) + 1), max_tokens, key=token_count) - 1, 0)
    return answer.first(fitting), len(answer) - fitting
