"""Issues of dataset rows: what can be wrong with a row, and the check that finds it.

A box may extend one pixel beyond the image, as rounding does; one farther outside, with swapped corners or without area
is an issue. The token count of a text comes from the caller.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from florence2.data.answer_column import has_other_size
from florence2.data.columns import ColumnMapping, DatasetRow, samples_from_row
from florence2.data.image import ImageError, Size
from florence2.data.inspection.target_doubts import (
    Doubt,
    label_doubt,
    ring_doubt,
    text_doubt,
    unknown_location,
)
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.answer import Answer
from florence2.model.geometry import Ring
from florence2.model.locations import encode, to_bin
from florence2.model.tasks import END, PAD, SPECIAL_TOKENS, START, InputType, OutputType, Task, split_prompt

# Raw output of a model begins or ends with a layout token; within a text, `<s>` may be a tag of its own.
_RAW_OUTPUT = rf"^\s*(?:{START}|{END}|{PAD})|(?:{START}|{END}|{PAD})\s*$"
_SPECIAL_TOKEN = re.compile("|".join([_RAW_OUTPUT, *map(re.escape, sorted(SPECIAL_TOKENS, reverse=True))]))
_LOCATION_TOKEN = re.compile(r"<loc_\d+>")


class IssueKind(StrEnum):
    """A kind of issue; the value is its plural in reports, the lower-case name its key in JSON."""

    ABSENT = "images that do not exist"
    UNREADABLE = "images that cannot be read"
    SIZE = "images whose size differs from the annotation"
    MALFORMED = "rows that cannot be read"
    UNLISTED = "annotations of images that are not listed"
    TASK = "unknown tasks"
    INPUT = "inputs that do not fit the task"
    EMPTY = "rows without a target"
    NO_TARGETS = "datasets whose targets are all empty"
    LABEL = "objects without a label"
    OUTSIDE = "objects outside the image"
    SWAPPED = "boxes with swapped corners"
    ZERO = "objects without area"
    TEXT = "texts without an object where the task needs objects"
    TOKENS = "texts with special tokens, which are trained as letters"
    MISSING = "texts that stand for a missing value"
    CHARACTERS = "texts with damaged characters"
    LONG = "targets too long for the model"
    REPEATED = "duplicate objects"
    DUPLICATE = "duplicate samples"
    CONTRARY = "requests with several answers"
    SAME = "duplicate images under two names"


@dataclass(frozen=True)
class Issue:
    """One issue: its kind, the row or file, and a description."""

    kind: IssueKind
    where: str
    what: str


@dataclass(frozen=True)
class LengthLimit:
    """The model's maximum target length; `count_tokens` counts those of a text, `<s>` and `</s>` included.

    Its second argument tells whether special tokens in the text are letters. It may return a lower bound.
    """

    count_tokens: Callable[[str, bool], int]
    limit: int

    def count(self, sample: Sample) -> int:
        """Count the tokens of the target as training encodes it."""
        return self.count_tokens(sample.target or "", split_prompt(sample.task)[0].has_literal_target)


def min_token_count(text: str, is_literal: bool = False) -> int:  # noqa: ARG001
    """Return a lower bound on the tokens of a text: one for each location token and for each word."""
    text_without_locations, num_locations = _LOCATION_TOKEN.subn(" ", text)
    return 2 + num_locations + len(text_without_locations.split())


@dataclass(frozen=True)
class RowReport:
    """The samples of a row and its issues."""

    samples: list[Sample]
    issues: list[Issue]


def check_row(dataset_row: DatasetRow, columns: ColumnMapping, length: LengthLimit) -> RowReport:
    """Check one row: read its image's size and make its samples as training does, and collect its issues."""
    where, error = dataset_row.where, dataset_row.error
    if error is not None:
        return RowReport([], [_malformed(where, error)])
    if not dataset_row.exists:
        return RowReport([], [Issue(IssueKind.ABSENT, where, f"`{dataset_row.image.id}` does not exist")])
    try:
        size = dataset_row.image.size()
        task, task_input = columns.task_and_input(dataset_row.row, where)
        if input_issues := [Issue(IssueKind.INPUT, where, what) for what in _input_issues(task, task_input)]:
            return RowReport([], input_issues)
        samples = samples_from_row(dataset_row.row, where, columns, dataset_row.image)
        row_issues = list(_row_issues(dataset_row.row, task, task_input, samples, size))
    except ImageError as unreadable:
        return RowReport([], [Issue(IssueKind.UNREADABLE, where, unreadable.what)])
    except UserError as malformed:
        return RowReport([], [_malformed(where, malformed)])
    issues = [Issue(kind, where, what) for kind, what in row_issues]
    return RowReport(samples, issues + [Issue(IssueKind.LONG, where, what) for what in _long_targets(samples, length)])


def _malformed(where: str, error: UserError) -> Issue:
    return Issue(IssueKind.MALFORMED, where, error.what.removeprefix(where).lstrip(" :,"))


def _row_issues(
    row: Mapping[str, Any], task: Task, task_input: Any, samples: list[Sample], size: Size
) -> Iterator[tuple[IssueKind, str]]:
    if has_other_size(row, size):
        annotated = f"{row['width']} x {row['height']}"
        yield IssueKind.SIZE, f"the image is {size[0]} x {size[1]}, the annotation has {annotated}"
    if close := task.closest_name():
        yield IssueKind.TASK, f"`{task.token}` is not a task and would be a custom prompt; did you mean `{close}`"
    if isinstance(task_input, list):
        yield from _geometry_issues([task_input], "input", size)
    if not samples:
        yield IssueKind.EMPTY, "there is neither `text` nor `answer`"
    answer = row.get("answer")
    if isinstance(answer, dict) and task.output_type is not OutputType.TEXT:
        yield from _answer_issues(Answer.from_dict(answer, task.output_type).without_crowds(), task, size)
    else:
        yield from _text_issues(task, samples)


def _input_issues(task: Task, task_input: Any) -> Iterator[str]:
    if task.input_type is InputType.NOTHING and task_input and not task.is_custom:
        yield f"`{task.name}` takes no input and has `{task_input}`"
    if task.input_type is not InputType.NOTHING and not task_input:
        yield f"`{task.name}` needs {task.input_type} as its input"


def _text_issues(task: Task, samples: list[Sample]) -> Iterator[tuple[IssueKind, str]]:
    for sample in samples:
        text = sample.target or ""
        doubt = text_doubt(task, text)
        if doubt is Doubt.TEXT:
            yield IssueKind.TEXT, f"`{text[:60]}` has no object, and `{task.name}` needs objects"
        elif doubt is not None:
            damage = unknown_location(text) if doubt is Doubt.TOKENS else ascii(text[:60])[1:-1]
            yield IssueKind[doubt.name], f"its target contains `{damage}`"
        has_letters = task.output_type is OutputType.TEXT and not task.is_custom
        if found := _SPECIAL_TOKEN.search(text) if has_letters and "<" in text else None:
            yield IssueKind.TOKENS, f"`{task.name}` answers text, and its target contains `{found[0].strip()}`"


def _answer_issues(answer: Answer, task: Task, size: Size) -> Iterator[tuple[IssueKind, str]]:
    for item in answer:
        yield from _geometry_issues(item.rings, f"`{item.label}`" if item.label else "an object", size)
    if task.output_type not in (OutputType.REGIONS, OutputType.POLYGONS):
        for item in answer:
            if not item.label.strip():
                yield IssueKind.LABEL, f"the object at {_shorten(item.coordinates)} has no label"
            elif doubt := label_doubt(item.label):
                yield IssueKind[doubt.name], f"the label {item.label!a} at {_shorten(item.coordinates)}"
    yield from _repeated_objects(answer, task, size)


def _geometry_issues(rings: Iterable[Ring], name: str, size: Size) -> Iterator[tuple[IssueKind, str]]:
    """Yield the first issue of an object's rings."""
    for ring in rings:
        if doubt := ring_doubt(ring, size):
            yield IssueKind[doubt.name], f"{name} at {_shorten(list(ring))} in an image of {size[0]} x {size[1]}"
            return


def _repeated_objects(answer: Answer, task: Task, size: Size) -> Iterator[tuple[IssueKind, str]]:
    texts: set[str] = set()
    # only objects that begin and end in the same bins can have the same text
    ends = [tuple(to_bin(ring[at], size[at]) for ring in item.rings[:1] for at in (0, -1) if ring) for item in answer]
    counts = Counter(ends)
    for item in (item for item, end in zip(answer, ends, strict=True) if counts[end] > 1):
        text = encode(task, Answer(answer.output_type, (item,)), size)
        if text in texts:
            yield IssueKind.REPEATED, f"`{item.label or 'an object'}` at {_shorten(item.coordinates)} occurs twice"
        texts.add(text)


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _long_targets(samples: list[Sample], length: LengthLimit) -> Iterator[str]:
    for sample in samples:
        count = length.count(sample)
        if count > length.limit:
            task, _ = split_prompt(sample.task)
            effect = "it is truncated" if task.output_type is OutputType.TEXT else "objects that do not fit are dropped"
            yield f"{count:,} tokens, the model has positions for {length.limit:,}; {effect}"
