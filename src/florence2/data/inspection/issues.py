"""What is wrong with a dataset, counted by kind and named.

A box may reach over the picture's edge by a pixel, as roundings do; what is further out, turned around or empty is a
finding. Knows rows and tasks; how long a text is for a model is told from outside.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from florence2.data.columns import ColumnMapping, samples_from_row
from florence2.data.formats.annotations import DatasetRow
from florence2.data.image import ImageError, Size
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.answer import Answer
from florence2.model.location_grammar import decode_objects
from florence2.model.locations import encode
from florence2.model.tasks import TASKS, InputType, OutputType, Task, split_prompt

SLACK = 1.0  # pixels
_LOCATION = re.compile(r"<loc_\d+>")
_FORMS = ("bboxes", "quad_boxes", "polygons")


class IssueKind(StrEnum):
    """What can be wrong; the value is how a report counts it, and the key in JSON is the name."""

    ABSENT = "pictures that do not exist"
    UNREADABLE = "pictures that cannot be read"
    SIZE = "pictures whose size is not what the list says"
    MALFORMED = "rows that cannot be read"
    TASK = "unknown tasks"
    INPUT = "inputs that do not fit the task"
    EMPTY = "rows without an answer"
    LABEL = "objects without a label"
    OUTSIDE = "objects outside the picture"
    SWAPPED = "boxes with swapped corners"
    ZERO = "objects without area"
    TEXT = "texts that hold no object where the task asks for objects"
    LONG = "answers too long for the model"
    REPEATED = "objects that are there twice"
    DUPLICATE = "questions that are there twice"
    SAME = "pictures that are there twice under two names"


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong, and where."""

    kind: IssueKind
    where: str
    what: str


@dataclass(frozen=True)
class LengthLimit:
    """How long a text may be: `count` gives its tokens, `<s>` and `</s>` included, or a number that is never more."""

    count: Callable[[str], int]
    limit: int


def min_token_count(text: str) -> int:
    """Count tokens without a tokenizer, never too many: one for each location and for each word between them."""
    words, places = _LOCATION.subn(" ", text)
    return 2 + places + len(words.split())


@dataclass(frozen=True)
class RowReport:
    """What a row turned out to be: its samples, and what is wrong with it."""

    samples: list[Sample]
    issues: list[Issue]
    size: Size | None = None


def check_row(entry: DatasetRow, columns: ColumnMapping, length: LengthLimit) -> RowReport:
    """Try one row: read its picture's size, its answer as training would, and name what is wrong."""
    where = entry.where
    if not entry.exists:
        return RowReport([], [Issue(IssueKind.ABSENT, where, f"`{entry.image.id}` does not exist")])
    try:
        size = entry.image.size()
        task, asked = columns.task_and_input(entry.row, where)
        misfits = [Issue(IssueKind.INPUT, where, what) for what in _misfits(task, asked)]
        samples = [] if misfits else samples_from_row(entry.row, where, columns, entry.image)
    except ImageError as error:
        return RowReport([], [Issue(IssueKind.UNREADABLE, where, error.what)])
    except UserError as error:
        return RowReport([], [Issue(IssueKind.MALFORMED, where, error.what)])
    if misfits:
        return RowReport([], misfits)
    found = [Issue(kind, where, what) for kind, what in _wrong(entry.row, task, asked, samples, size)]
    return RowReport(samples, found + [Issue(IssueKind.LONG, where, what) for what in _long(samples, length)], size)


def _wrong(
    row: Mapping[str, Any], task: Task, asked: Any, samples: list[Sample], size: Size
) -> Iterator[tuple[IssueKind, str]]:
    told = (row.get("width"), row.get("height"))
    if all(isinstance(side, int) for side in told) and told != size:
        yield IssueKind.SIZE, f"the picture is {size[0]} x {size[1]}, the list says {told[0]} x {told[1]}"
    if hint := _misspelt(task):
        yield IssueKind.TASK, f"`{task.token}` is no task and would be learnt as a prompt; did you mean `{hint}`"
    if isinstance(asked, list):
        yield from _places([asked], ["input"], size)
    if not samples:
        yield IssueKind.EMPTY, "there is neither `text` nor `answer`"
    answer = row.get("answer")
    if isinstance(answer, dict):
        yield from _objects(answer, task, size)
    else:
        yield from _texts(task, samples)


def _misfits(task: Task, asked: Any) -> Iterator[str]:
    if task.input_type is InputType.NOTHING and asked and not task.is_custom:
        yield f"`{task.name}` takes no input and has `{asked}`"
    if task.input_type is not InputType.NOTHING and not asked:
        yield f"`{task.name}` needs {task.input_type} as its input"


def _misspelt(task: Task) -> str:
    if not task.is_custom:
        return ""
    bare = task.token.strip("<> ").lower()
    close = difflib.get_close_matches(bare, [row.name for row in TASKS], n=1, cutoff=0.8)
    return close[0] if close else "od" if bare.startswith("od") and len(bare) <= 4 else ""


def _texts(task: Task, samples: list[Sample]) -> Iterator[tuple[IssueKind, str]]:
    if task.output_type is OutputType.TEXT:
        return
    for sample in samples:
        text = sample.target or ""
        if text and next(decode_objects(task.output_type, text), None) is None:
            yield IssueKind.TEXT, f"`{text[:60]}` says no object that `{task.name}` could answer"


def _objects(answer: Mapping[str, Any], task: Task, size: Size) -> Iterator[tuple[IssueKind, str]]:
    for form in _FORMS:
        places = answer.get(form) or []
        labels = answer.get(f"{form}_labels", answer.get("labels")) or []
        names = [f"`{label}`" if label else "an object" for label in labels] + ["an object"] * len(places)
        yield from _places(places, names, size)
        if task.output_type not in (OutputType.REGIONS, OutputType.POLYGONS):
            for place, label in zip(places, labels, strict=False):
                if not str(label).strip():
                    yield IssueKind.LABEL, f"the object at {_short(place)} has no label"
        yield from _repeated(form, places, labels, task, size)


def _places(places: list[Any], names: list[str], size: Size) -> Iterator[tuple[IssueKind, str]]:
    for place, name in zip(places, names, strict=False):
        runs = place if place and isinstance(place[0], list) else [place]
        for run in runs:
            if kind := _fault(run, size):
                yield kind, f"{name} at {_short(run)} in a picture of {size[0]} x {size[1]}"
                break


def _fault(run: list[float], size: Size) -> IssueKind | None:
    xs, ys = run[0::2], run[1::2]
    if len(run) == 4 and (xs[0] > xs[1] or ys[0] > ys[1]):
        return IssueKind.SWAPPED
    low, high = (min(xs), min(ys)), (max(xs), max(ys))
    if min(low) < -SLACK or high[0] > size[0] + SLACK or high[1] > size[1] + SLACK:
        return IssueKind.OUTSIDE
    if high[0] <= low[0] or high[1] <= low[1] or (len(run) != 4 and len(run) < 6):
        return IssueKind.ZERO
    return None


def _repeated(
    form: str, places: list[Any], labels: list[str], task: Task, size: Size
) -> Iterator[tuple[IssueKind, str]]:
    seen: set[str] = set()
    padded = list(labels) + [""] * (len(places) - len(labels))
    for place, label in zip(places, padded, strict=False):
        answer = Answer.from_dict({form: [place], f"{form}_labels": [label], "labels": [label]}, task.output_type)
        said = encode(task, answer, size)
        if said in seen:
            yield IssueKind.REPEATED, f"`{label or 'an object'}` at {_short(place)} is there twice"
        seen.add(said)


def _short(place: Any) -> str:
    text = str(place)
    return text if len(text) <= 60 else text[:57] + "..."


def _long(samples: list[Sample], length: LengthLimit) -> Iterator[str]:
    for sample in samples:
        count = length.count(sample.target or "")
        if count > length.limit:
            asked, _ = split_prompt(sample.task)
            rest = "is cut" if asked.output_type is OutputType.TEXT else "is cut behind its last whole object"
            yield f"{count:,} tokens, the model has places for {length.limit:,}; what is more {rest}"
