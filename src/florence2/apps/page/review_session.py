"""The dataset of a review, as the page reads and changes it: JSON in, JSON out, one change at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from florence2 import ChangedObject, EditableDataset, EditableRow, GeometryKind, RowChange, WordReplacement

PREVIEW_ROWS = 50


class ObjectBody(BaseModel):
    """One object of a changed row; `rings` are bins from 0 to 999, and absent where the object did not move."""

    model_config = ConfigDict(extra="forbid")
    kind: GeometryKind
    label: str = Field(max_length=10_000)
    rings: list[list[int]] | None = None
    origin: int | None = None


class ChangeBody(BaseModel):
    """New values of one row."""

    model_config = ConfigDict(extra="forbid")
    row: int
    version: int
    text: str | None = None
    objects: list[ObjectBody] | None = None
    accepted: bool | None = None

    def to_change(self) -> RowChange:
        """Return the change."""
        objects = self.objects
        shapes = None if objects is None else tuple(map(_to_object, objects))
        return RowChange(self.row, self.version, self.text, shapes, self.accepted)


class ChangesBody(BaseModel):
    """Changes that are one step of undo, and their name."""

    model_config = ConfigDict(extra="forbid")
    name: str = "edit"
    changes: list[ChangeBody]


class ReplaceBody(BaseModel):
    """Words to replace in some rows; without `apply` the changes are only shown."""

    model_config = ConfigDict(extra="forbid")
    search: str
    replacement: str = ""
    match_case: bool = True
    full_words: bool = False
    rows: list[int]
    apply: bool = False


class ReviewSession:
    """A dataset with a lock around it; `reload` reads the files again, and forgets the steps of undo."""

    def __init__(self, open_dataset: Callable[[], EditableDataset]) -> None:
        self._open = open_dataset
        self._lock = threading.Lock()
        self._dataset = open_dataset()

    @property
    def name(self) -> str:
        """Return the name of the dataset."""
        return self._dataset.name

    @property
    def note(self) -> str:
        """Return what is not shown, or ""."""
        return self._dataset.note

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return len(self._dataset.rows)

    def row(self, index: int) -> EditableRow | None:
        """Return a row, or None where there is none."""
        rows = self._dataset.rows
        return rows[index] if 0 <= index < len(rows) else None

    def rows(self) -> dict[str, Any]:
        """Return all rows."""
        with self._lock:
            return {"name": self.name, "note": self.note, **self._answer(self._dataset.rows)}

    def reload(self) -> dict[str, Any]:
        """Read the files again."""
        with self._lock:
            self._dataset = self._open()
        return self.rows()

    def change(self, body: ChangesBody) -> dict[str, Any]:
        """Write changes."""
        with self._lock:
            return self._answer(self._dataset.change([each.to_change() for each in body.changes], body.name))

    def undo(self) -> dict[str, Any]:
        """Revert the last change."""
        with self._lock:
            name, rows = self._dataset.undo()
            return {"undone": name, **self._answer(rows)}

    def replace(self, body: ReplaceBody) -> dict[str, Any]:
        """Show what a replacement changes, or write it."""
        replacement = WordReplacement(body.search, body.replacement, body.match_case, body.full_words)
        with self._lock:
            rows = [row for index in dict.fromkeys(body.rows) if (row := self.row(index))]
            found = list(replacement.changes(rows))
            answer: dict[str, Any] = {
                "num_rows": len(found),
                "num_occurrences": sum(each.number for each in found),
                "num_left_out": sum(bool(row.locked or row.error) for row in rows),
                "examples": [
                    {"row": each.change.row, "before": each.before, "after": each.after}
                    for each in found[:PREVIEW_ROWS]
                ],
            }
            if not body.apply or not found:
                return answer
            name = f"replace `{body.search}` by `{body.replacement}`"
            return answer | self._answer(self._dataset.change([each.change for each in found], name))

    def _answer(self, rows: Sequence[EditableRow]) -> dict[str, Any]:
        return {"rows": [row.to_json() for row in rows], "undo": self._dataset.undo_name}


def _to_object(body: ObjectBody) -> ChangedObject:
    rings = None if body.rings is None else tuple(map(tuple, body.rings))
    return ChangedObject(body.kind, body.label, rings, body.origin)
