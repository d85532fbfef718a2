"""Columns of a dataset row: the image, the task, its input and the target.

    image     file_name | image | image_path      a file inside the row's folder
    task      task | prompt | prefix              a task by name, a custom prompt, or `<TASK>some input`
    input     input                               text, or a region: location tokens or [x1, y1, x2, y2] in pixels
    target    text | caption | suffix             text, or a list of several targets
              answer                              boxes, quads or polygons in pixels, keys as in `model/locations.py`

Where a row has `text` and `answer`, the text is the target: `answer` was decoded from it. For the OCR tasks an `answer`
of "" is an image without text; for other tasks an empty target is a missing one. A row with `error` is skipped.
`image_dir` is the path from a table to its images.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from florence2.data.answer_column import encode_answer, parse_answer
from florence2.data.image import ImageError, Size
from florence2.data.inspection.target_doubts import reject_fractions, reject_surrogates, text_doubts
from florence2.data.sample import Sample, Skipped, SkipReason
from florence2.data.tables import Row
from florence2.errors import DatasetError, UserError
from florence2.model.geometry import is_finite_number
from florence2.model.locations import encode_region, parse_box
from florence2.model.tasks import InputType, Task, split_prompt

IMAGE_COLUMNS = ("file_name", "image", "image_path")
TASK_COLUMNS = ("task", "prompt", "prefix")
TEXT_COLUMNS = ("text", "caption", "suffix")
OTHER_COLUMNS = ("input", "answer", "error")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "annotations.jsonl")


@dataclass(frozen=True)
class ColumnMapping:
    """The columns that the user named, and the task and input of rows that have none.

    With `keep_answers` a sample keeps its `answer` in pixels as its `reference`.
    """

    task: str
    input: str = ""
    image: str | None = None
    text: str | None = None
    with_targets: bool = True
    keep_answers: bool = False

    def image_name(self, row: Row, where: str) -> str:
        """Return the name of the image as the row has it."""
        names = (self.image,) if self.image else IMAGE_COLUMNS
        name = _first_value(row, names)
        images = row.get("images") if name is None and not self.image else name
        if isinstance(images, list):
            if len(images) > 1:
                raise DatasetError(f"{where} has {len(images)} images", "write one image in each row")
            name = images[0] if images and name is None else None
        if isinstance(name, dict):
            name = name.get("path")
        if not isinstance(name, str):
            columns = ", ".join(f"`{name}`" for name in row) or "none"
            raise DatasetError(f"{where} names no image; its columns are {columns}", f"add `{names[0]}`")
        return name

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Return the columns of targets, the first of which is used that has a value."""
        return (self.text,) if self.text else TEXT_COLUMNS

    def has_text(self, row: Row) -> bool:
        """Return whether a row has a value in a column of targets."""
        return _first_value(row, self.text_columns) is not None

    def has_prompt(self, row: Row) -> bool:
        """Return whether a row has a task or a prompt of its own."""
        return _first_value(row, TASK_COLUMNS) is not None

    def texts(self, row: Row, where: str) -> list[str]:
        """Return the targets that are text, without blank ones."""
        value = _first_value(row, self.text_columns)
        texts = [_to_text(each, where) for each in (value if isinstance(value, list) else [value])]
        return [text for text in texts if text]

    def task_and_input(self, row: Row, where: str) -> tuple[Task, Any]:
        """Return the task and its input; the input may still be a region in pixels."""
        prompt, task_input = _first_value(row, TASK_COLUMNS), row.get("input")
        if prompt is not None and not isinstance(prompt, str):
            raise DatasetError(
                f"{where} has the task `{prompt}`, which is not a string", "write a task's name or a prompt"
            )
        task, prompt_input = split_prompt(self.task if prompt is None else prompt)
        if task_input is None or task_input == "":
            task_input = prompt_input or (self.input if prompt is None else "")
        return task, task_input


def _first_value(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if not is_missing(row.get(name))), None)


def is_missing(value: Any) -> bool:
    """Return whether a value is null, empty text or NaN, which tables of numbers have in place of null."""
    return value is None or value == "" or value != value


def _to_text(value: Any, where: str) -> str:
    if isinstance(value, str):
        reject_surrogates(value, where)
        return value.strip()
    if is_missing(value):
        return ""
    if isinstance(value, dict | list):
        raise DatasetError(
            f"{where} has a text that is not a string",
            "write a string or a list of strings; put boxes and polygons under `answer`",
        )
    raise DatasetError(
        f"{where} has the text `{value}`, which is not a string",
        "write a number in quotes, and the name of a class in place of its number",
    )


class DatasetRow(NamedTuple):
    """A row with its name for errors and its image; an image that does not exist is known by its path alone.

    `ignored_shapes` names the kinds of the image's shapes that the reader does not read, on the first of its rows.
    `unlisted_annotations` names annotations of the row's file whose image is not listed.
    `annotations` are the objects that the row was made from. `error` says why the row could not be read; such a row may
    have no image, whose id is then "". `ignored_files` are files of the row's folder that are not read as images, on
    one row; `unread_columns` are columns without a meaning here.
    """

    where: str
    row: Row
    image: Sample
    exists: bool = True
    ignored_shapes: Sequence[str] = ()
    unlisted_annotations: Sequence[str] = ()
    error: UserError | None = None
    annotations: Sequence[Any] | None = None
    ignored_files: Sequence[tuple[str, str]] = ()
    unread_columns: frozenset[str] = frozenset()
    ignored_elsewhere: Sequence[tuple[str, str]] = ()  # places and kinds, of images without a row

    @classmethod
    def unreadable(cls, where: str, error: UserError) -> "DatasetRow":
        """Make a row that has an error and no image."""
        return cls(where, {}, Sample("", b"", ""), error=error)


def samples_from_rows(
    rows: Iterable[DatasetRow], columns: ColumnMapping, absent_hint: str
) -> Iterator[Sample | Skipped]:
    """Turn rows into samples; a failed prediction, a malformed row, a missing image and a missing target are skipped.

    Without targets no row is skipped: a malformed one raises, and an image that cannot be read when it is opened.
    """
    for each in rows:
        where, row, image, exists = each[:4]
        if columns.with_targets and row.get("error") not in (None, ""):
            yield Skipped(image.id, SkipReason.FAILED, str(image.image), "caption it again")
        elif columns.with_targets and not exists:
            yield Skipped(image.id, SkipReason.ABSENT, str(image.image), absent_hint)
        else:
            try:
                if each.error is not None:
                    raise each.error
                yield from _samples_or_skipped(row, where, columns, image)
            except UserError as error:
                if not columns.with_targets:
                    raise
                yield Skipped(image.id or where, SkipReason.MALFORMED, error.what, error.hint)


def _samples_or_skipped(row: Row, where: str, columns: ColumnMapping, image: Sample) -> Iterator[Sample | Skipped]:
    """Make the samples of one row, or the reason why it has none."""
    name = str(image.image) if isinstance(image.image, Path) else where
    try:
        samples = samples_from_row(row, where, columns, image)
    except ImageError as error:
        if not columns.with_targets:
            task, task_input = columns.task_and_input(row, where)
            yield replace(image, task=task.token, input=str(task_input))
        else:
            yield Skipped(image.id, SkipReason.UNREADABLE, error.what, error.hint)
        return
    yield from samples
    if not samples:
        yield Skipped(image.id, SkipReason.NO_CAPTION, name, f"add `{columns.text_columns[0]}` to {where}")


def count_columns(rows: Iterable[DatasetRow], counts: Counter[str]) -> Iterator[DatasetRow]:
    """Yield rows, and at their end add to `counts` how many have each column that is not read."""
    by_columns: Counter[frozenset[str]] = Counter()
    for row in rows:
        if row.unread_columns:
            by_columns[row.unread_columns] += 1
        yield row
    for names, number in by_columns.items():
        counts.update(dict.fromkeys(names, number))


def partition_samples(items: Iterable[Sample | Skipped]) -> tuple[list[Sample], list[Skipped]]:
    """Separate samples from skipped rows."""
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for item in items:
        if isinstance(item, Sample):
            samples.append(item)
        else:
            skipped.append(item)
    return samples, skipped


def samples_from_row(row: Row, where: str, columns: ColumnMapping, image: Sample) -> list[Sample]:
    """Make one sample for each target of a row; none if the row has no target."""
    task, task_input = columns.task_and_input(row, where)
    if task.input_type is InputType.REGION and isinstance(task_input, str):
        task_input = parse_box(task_input) or task_input
    input_text = task_input if isinstance(task_input, str) else _region_tokens(task_input, where, image.size)
    _check_input(task, input_text, where)
    reject_surrogates(task.token + input_text, where)
    make = partial(replace, image, task=task.token, input=input_text)
    if not columns.with_targets:
        return [make()]
    texts = columns.texts(row, where)
    doubts, reference = text_doubts(task, texts), image.reference
    if not texts and not is_missing(row.get("answer")):
        if columns.keep_answers and isinstance(row["answer"], dict):
            reference = parse_answer(task, row["answer"], where)
        text, doubts = encode_answer(task, row, where, image.size)
        texts = [text]
    elif not texts and row.get("answer") == "" and "ocr" in task.name:
        texts = [""]
    return [make(target=text, reference=reference, doubts=() if at else doubts) for at, text in enumerate(texts)]


def _check_input(task: Task, input_text: str, where: str) -> None:
    if task.input_type is InputType.NOTHING:
        try:
            task.format_prompt(input_text)
        except UserError as error:
            raise DatasetError(f"{where}: {error.what}", error.hint) from None
    elif not input_text.strip():
        what = f"{where} has the task `{task.name}` without {task.input_type}"
        raise DatasetError(what, f"add `input` with the {task.input_type}")


def _region_tokens(box: Any, where: str, size: Callable[[], Size]) -> str:
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box))):
        raise DatasetError(f"{where} has an `input` that is neither text nor a box", "write a box as [x1, y1, x2, y2]")
    image_size = size()
    reject_fractions([box], image_size, where)
    return encode_region(box, image_size)
