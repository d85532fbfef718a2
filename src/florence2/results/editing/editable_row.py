"""One row of an edited dataset, and the change of a row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from florence2.data.columns import ColumnMapping, is_missing
from florence2.data.folders.foreign_jsonl import FOREIGN_TARGETS
from florence2.data.image import Size, image_size
from florence2.data.tables import Row
from florence2.errors import DatasetError, UserError
from florence2.model.answer import Answer, GeometryKind
from florence2.model.location_grammar import decode_objects
from florence2.model.locations import to_bin
from florence2.model.tasks import OutputType, Task

ACCEPTED = "accepted"
Rings = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RowObject:
    """One object of a row: its rings in bins from 0 to 999, its label, and its score where it has one."""

    kind: GeometryKind
    label: str
    rings: Rings
    score: float | None = None


@dataclass(frozen=True)
class ChangedObject:
    """One object of a change; `origin` is the index of the object that it was, and `rings` None where it stays."""

    kind: GeometryKind
    label: str
    rings: Rings | None = None
    origin: int | None = None


@dataclass(frozen=True)
class RowChange:
    """New values of a row; None leaves a value. `version` is that of the row that the change was made from."""

    row: int
    version: int
    text: str | None = None
    objects: tuple[ChangedObject, ...] | None = None
    is_accepted: bool | None = None


@dataclass(frozen=True)
class EditableRow:
    """A row as a person sees it; `locked` is the reason why it cannot be edited, or "".

    `objects` is None for a task whose output is text. `line` is the index in the table, `caption_file` the file of a
    caption beside the image.
    """

    index: int
    file_name: str
    image: Path | None
    task: Task
    input: str = ""
    text: str = ""
    objects: tuple[RowObject, ...] | None = None
    score: float | None = None
    error: str = ""
    is_accepted: bool = False
    locked: str = ""
    version: int = 0
    line: int | None = None
    caption_file: Path | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """Return what a search reads: the text, or the labels of objects."""
        return (self.text,) if self.objects is None else tuple(each.label for each in self.objects)

    def size(self) -> Size:
        """Read the size of the image. Raises DatasetError where it cannot be read."""
        if self.image is None:
            raise DatasetError(f"{self.file_name} has no image", "correct the row's `file_name`")
        return image_size(self.image)

    def proposal(self, text: str, answer: Answer | None, error: str) -> dict[str, Any]:
        """Return another answer to the row's request as JSON, without a change of the row."""
        row = {} if answer is None else {"answer": answer.to_dict()}
        objects = row_objects(row, text, self.task, self.image)
        other = replace(self, text=text, objects=objects, error=error)
        return {name: value for name, value in other.to_json().items() if name in ("text", "objects", "error")}

    def to_json(self) -> dict[str, Any]:
        """Return the row for a page."""
        objects = None
        if self.objects is not None:
            objects = [
                {"kind": each.kind.value, "label": each.label, "rings": each.rings, "score": each.score}
                for each in self.objects
            ]
        return {
            "index": self.index,
            "version": self.version,
            "file_name": self.file_name,
            "task": self.task.name,
            "output": self.task.output_type.value,
            "input": self.input,
            "text": self.text,
            "objects": objects,
            "score": self.score,
            "error": self.error,
            "accepted": self.is_accepted,
            "locked": self.locked,
        }


def is_marked(value: Any) -> bool:
    """Return whether a value of the column `accepted` is a mark; a CSV has it as text."""
    return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)


def text_column(row: Row, columns: ColumnMapping) -> str:
    """Return the column of a row that has its target text, or that a new text is written to."""
    names = columns.text_columns
    named = next((name for name in names if name in row), names[0])
    return next((name for name in names if not is_missing(row.get(name))), named)


def lock_reason(row: Row, columns: ColumnMapping) -> str:
    """Return why a row cannot be edited, or ""."""
    value = row.get(text_column(row, columns))
    if not is_missing(value) and not isinstance(value, str):
        return f"its `{text_column(row, columns)}` is not a string; edit the file, or run `florence2 data convert`"
    foreign = [name for name in FOREIGN_TARGETS if name in row]
    if is_missing(value) and is_missing(row.get("answer")) and foreign:
        return f"its text is in `{foreign[0]}`, as another trainer writes it; run `florence2 data convert` first"
    return ""


def row_objects(row: Row, text: str, task: Task, image: Path | None) -> tuple[RowObject, ...] | None:
    """Return the objects of a row: decoded from its text, else from its answer in pixels; None for a text task."""
    if task.output_type is OutputType.TEXT:
        return None
    value = row.get("answer")
    answer = Answer.from_dict(value, task.output_type) if isinstance(value, dict) else None
    if not text and answer is not None and len(answer):
        if image is None:
            raise UserError("the answer is in pixels, and the image does not exist", "restore the image")
        return _from_pixels(answer, image_size(image))
    located = list(decode_objects(task.output_type, text))
    located.sort(key=lambda each: list(GeometryKind).index(each.kind))  # as an answer orders them
    is_same = answer is not None and [each.label for each in located] == answer.labels
    scores: Sequence[float | None] = answer.scores if answer is not None and is_same else [None] * len(located)
    return tuple(
        RowObject(each.kind, each.label, each.bins, score) for each, score in zip(located, scores, strict=True)
    )


def _from_pixels(answer: Answer, size: Size) -> tuple[RowObject, ...]:
    return tuple(
        RowObject(
            item.kind,
            item.label,
            tuple(tuple(to_bin(value, size[i % 2]) for i, value in enumerate(ring)) for ring in item.rings),
            item.score,
        )
        for item in answer
    )
