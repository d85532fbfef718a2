"""What the columns of a row mean: which picture, what is asked, what shall be answered.

    picture   file_name | image | image_path      inside the row's folder, never outside it
    asked     task | prompt | prefix              a task by name, any words, or `<TASK>some input`
    input     input                               words, or a region: location tokens, or [x1, y1, x2, y2] in pixels,
                                                  which a CSV writes as x1,y1,x2,y2
    answer    text | caption | suffix             words, or a list of several answers
              answer                              boxes, quads or polygons in pixels, keys as in `model/locations.py`

Where a row has `text` and `answer`, the text is learnt: it is what `answer` was read from. Where a text is to be read,
an `answer` of "" says that there is none; elsewhere nothing said is no answer. A row with `error` is a
prediction that failed and is left out; `image_dir` leads from a list to its pictures, as predictions write it.
"""
# ruff: noqa: PTH118 - pathlib costs too much where a million rows each name a picture

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from florence2.data.folder import display_path
from florence2.data.image import IMAGE_EXTENSIONS, ImageError, Size, is_image_name
from florence2.data.sample import Sample, Skipped, SkipReason
from florence2.data.tables import NamedRow, Row
from florence2.errors import UserError
from florence2.model.answer import Answer
from florence2.model.locations import encode, encode_region, parse_box
from florence2.model.tasks import InputType, OutputType, Task, split_prompt

IMAGE_COLUMNS = ("file_name", "image", "image_path")
TASK_COLUMNS = ("task", "prompt", "prefix")
TEXT_COLUMNS = ("text", "caption", "suffix")
OTHER_COLUMNS = ("input", "answer", "error")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "annotations.jsonl")

_PLACES = ("bboxes", "quad_boxes", "polygons")


@dataclass(frozen=True)
class ColumnMapping:
    """What is asked where a row does not say, and columns that the user named."""

    task: str
    input: str = ""
    image: str | None = None
    text: str | None = None
    with_targets: bool = True

    def image_of(self, row: Row, where: str) -> str:
        """Give the name of the picture, as the row has it."""
        names = (self.image,) if self.image else IMAGE_COLUMNS
        name = _first(row, names)
        if not isinstance(name, str):
            raise UserError(f"{where} names no picture", f"its columns are {_listed(row)}; it needs `{names[0]}`")
        return name

    def texts(self, row: Row, where: str) -> list[str]:
        """Give the answers in words; none if there are only blanks."""
        value = _first(row, (self.text,) if self.text else TEXT_COLUMNS)
        texts = [_words(each, where) for each in (value if isinstance(value, list) else [value])]
        return [text for text in texts if text]

    def task_and_input(self, row: Row, where: str) -> tuple[Task, Any]:
        """Give the task and its input; the input may still be a region in pixels."""
        said, given = _first(row, TASK_COLUMNS), row.get("input")
        if said is not None and not isinstance(said, str):
            raise UserError(f"{where} asks `{said}`, which is no task and no prompt", "write a task's name or a prompt")
        task, rest = split_prompt(self.task if said is None else said)
        if given is None or given == "":
            given = rest or (self.input if said is None else "")
        return task, given


def _first(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _listed(row: Row) -> str:
    return ", ".join(f"`{name}`" for name in row) or "none"


def _words(value: Any, where: str) -> str:
    if isinstance(value, dict | list):
        raise UserError(f"{where} has no plain words as its text", "put boxes and polygons under `answer`")
    return "" if value is None else str(value).strip()


def samples_from_row(row: Row, where: str, columns: ColumnMapping, image: Sample) -> list[Sample]:
    """Make the samples of one row about a picture: one for each answer, none if it has no answer."""
    task, said = columns.task_and_input(row, where)
    if task.input_type is InputType.REGION and isinstance(said, str):
        said = parse_box(said) or said
    region = said if isinstance(said, str) else _region(said, where, image.size)
    _refuse_unasked(task, region, where)
    asked = replace(image, task=task.token, input=region)
    if not columns.with_targets:
        return [asked]
    texts = columns.texts(row, where)
    if not texts and row.get("answer") not in (None, ""):
        texts = [answer_text(task, row["answer"], where, image.size)]
    elif not texts and row.get("answer") == "" and "ocr" in task.name:
        texts = [""]
    return [replace(asked, target=text) for text in texts]


def _refuse_unasked(task: Task, said: str, where: str) -> None:
    if task.input_type is InputType.NOTHING:
        try:
            task.format_prompt(said)
        except UserError as error:
            raise UserError(f"{where}: {error.what}", error.hint) from None
    elif not said.strip():
        raise UserError(
            f"{where} asks `{task.name}` of no {task.input_type}", f"give it an `input`, the {task.input_type}"
        )


def _region(box: Any, where: str, size: Callable[[], Size]) -> str:
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)):
        raise UserError(f"{where} has an input that is neither words nor a box", "write a box as [x1, y1, x2, y2]")
    return encode_region(box, size())


def answer_text(task: Task, answer: Any, where: str, size: Callable[[], Size]) -> str:
    """Write a structured answer as the text to be learnt, its objects in reading order (phrases in their own)."""
    if isinstance(answer, str):
        return answer.strip()
    if task.output_type is OutputType.TEXT or not (isinstance(answer, dict) and any(key in answer for key in _PLACES)):
        raise UserError(
            f"{where} has an `answer` that `{task.token}` does not give",
            "name the task in `task`, and give " + " or ".join(f"`{key}`" for key in _PLACES) + " with `labels`",
        )
    whole = size()
    try:
        value = Answer.from_dict(answer, task.output_type)
        return encode(task, value if task.output_type is OutputType.PHRASES else value.in_reading_order(), whole)
    except UserError as error:
        raise UserError(f"{where} has an `answer` that cannot be written: {error.what}", error.hint) from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{where} has an `answer` that cannot be written: {error}") from None


class LocatedImage(NamedTuple):
    """A picture that a row names: its id, where it lies, whether it is there."""

    id: str
    path: Path
    exists: bool


ImageLocator = Callable[
    [Row, str, str], LocatedImage
]  # of a row, the picture it names, and the words that name the row


def confine_to(root: Path, mend: str) -> Callable[[str, str], LocatedImage]:
    """Return a function that finds a named picture inside `root`.

    Names that lead out of `root`, by `..`, as an absolute path or through a link, are refused.
    """
    plain_root, real_root = os.path.abspath(root), os.path.realpath(root)  # noqa: PTH100
    real_folder = cache(os.path.realpath)

    def locate(name: str, where: str) -> LocatedImage:
        if os.sep == "/" and "\\" in name and not _kind(os.path.join(plain_root, name)):
            name = name.replace("\\", "/")
        plain = os.path.normpath(os.path.join(plain_root, name))
        kind = _kind(plain)
        folder, last = os.path.split(plain)
        real = os.path.realpath(plain) if stat.S_ISLNK(kind) else os.path.join(real_folder(folder), last)
        if not _within(real, real_root) or "\0" in name:
            raise UserError(f"{where}: `{name}` leads out of {display_path(root)}", mend)
        inside = plain[len(plain_root) :] if _within(plain, plain_root) else real[len(real_root) :]
        inside = inside.lstrip(os.sep)
        return LocatedImage(Path(inside).as_posix(), root / inside, kind != 0)

    return locate


def _within(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)


def _kind(path: str) -> int:
    """Give the mode of a file or link, 0 if there is none."""
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0


def samples_from_table(
    rows: Iterator[NamedRow], columns: ColumnMapping, locate: ImageLocator, absent: str
) -> Iterator[Sample | Skipped]:
    """Turn rows into samples; rows without an answer, without a picture, or that failed before are skipped.

    Without targets nothing is skipped: what is wrong with a picture shows when it is opened.
    """
    for where, row in rows:
        found = _found(columns.image_of(row, where), where, row, locate)
        if columns.with_targets and row.get("error") not in (None, ""):
            yield Skipped(found.id, SkipReason.FAILED, str(found.path), "caption it again")
        elif columns.with_targets and not found.exists:
            yield Skipped(found.id, SkipReason.ABSENT, str(found.path), absent)
        else:
            yield from samples_or_skipped(row, where, columns, Sample(found.id, found.path, ""))


def _found(name: str, where: str, row: Row, locate: ImageLocator) -> LocatedImage:
    found = locate(row, name, where)
    if found.exists or is_image_name(name):
        return found
    # kohya leaves the extension out
    more = (locate(row, name + extension, where) for extension in sorted(IMAGE_EXTENSIONS))
    return next((other for other in more if other.exists), found)


def samples_or_skipped(row: Row, where: str, columns: ColumnMapping, image: Sample) -> Iterator[Sample | Skipped]:
    """Make the samples of one row, or say why there is none."""
    named = str(image.image) if isinstance(image.image, Path) else where
    try:
        samples = samples_from_row(row, where, columns, image)
    except ImageError as error:
        if not columns.with_targets:
            task, said = columns.task_and_input(row, where)
            yield replace(image, task=task.token, input=str(said))
        else:
            yield Skipped(image.id, SkipReason.UNREADABLE, error.what, error.hint)
        return
    yield from samples
    if not samples:
        yield Skipped(image.id, SkipReason.NO_CAPTION, named, f"give {where} a `{columns.text or TEXT_COLUMNS[0]}`")
