"""The effect of a change on a row: its text, or its answer in pixels and the text with location tokens of it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from florence2.data.image import Size
from florence2.data.tables import Row
from florence2.errors import UserError
from florence2.model.answer import Answer, AnswerItem, GeometryKind
from florence2.model.locations import decode, encode, from_bin
from florence2.model.tasks import NUM_BINS, OutputType
from florence2.results.editing.editable_row import ACCEPTED, ChangedObject, EditableRow, RowChange

_OF_THE_MODEL = ("num_tokens", "score", "error")
_RING_LENGTHS = {GeometryKind.BBOXES: 4, GeometryKind.QUAD_BOXES: 8}
_UNLABELED = (OutputType.REGIONS, OutputType.POLYGONS)
_KINDS = {
    OutputType.QUADS: {GeometryKind.QUAD_BOXES},
    OutputType.POLYGONS: {GeometryKind.POLYGONS},
    OutputType.BOXES_OR_POLYGONS: {GeometryKind.BBOXES, GeometryKind.POLYGONS},
}


def change_row(row: Row, current: EditableRow, change: RowChange, column: str) -> Row:
    """Return a row of a table with a change; what the model said of the old text is removed.

    `column` is the one of the text. Raises UserError for a change that the row cannot hold.
    """
    changed = dict(row)
    if change.text is not None and change.text != current.text:
        text = check_text(current, change.text)
        changed = _without_model_columns(changed) | {column: text}
        if isinstance(changed.get("answer"), str) or not text:  # "" is an image without text, see `data/columns.py`
            changed["answer"] = text
    if change.objects is not None:
        answer, size = _changed_answer(row, current, change.objects)
        text = encode(current.task, answer, size)
        changed = _without_model_columns(changed) | {column: text, "answer": answer.to_dict()}
    if change.is_accepted is not None:
        changed.pop(ACCEPTED, None)
        if change.is_accepted:
            changed[ACCEPTED] = True
    return changed


def check_text(current: EditableRow, text: str) -> str:
    """Return a text as it is written. Raises UserError for an empty one, and for that of a task with positions."""
    if current.objects is not None:
        raise UserError(f"`{current.task.name}` has objects, whose text follows from them", "change the objects")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("the text holds half of a surrogate pair, which is no character", "remove it") from None
    if not text.strip() and "ocr" not in current.task.name:
        raise UserError("an empty caption cannot be trained on", "write a caption, or remove the image")
    return text.strip()


def _without_model_columns(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in _OF_THE_MODEL}


def _changed_answer(row: Row, current: EditableRow, objects: Iterable[ChangedObject]) -> tuple[Answer, Size]:
    """Return the answer in pixels: objects that did not move keep their own coordinates and scores."""
    if current.objects is None:
        raise UserError(f"`{current.task.name}` answers with text, not with objects", "change the text")
    size, before = current.size(), _answer_items(row, current)
    items = [_item(each, before, size, current) for each in objects]
    has_scores = any(item.score is not None for item in items)
    answer = Answer(current.task.output_type, tuple(items), has_scores=has_scores)
    _check_labels(answer, size)
    is_ordered = current.task.output_type is OutputType.PHRASES  # phrases keep their own order
    return (answer if is_ordered else answer.in_reading_order()), size


def _check_labels(answer: Answer, size: Size) -> None:
    """Raise UserError where the text of the answer would lose a label."""
    if answer.output_type in _UNLABELED:
        return
    found = decode(answer.output_type, encode(answer.output_type, answer, size), size).labels
    for item, label in zip(answer.without_crowds(), found, strict=True):
        if item.label != label:
            raise UserError(f"the label `{item.label}` holds a token of the model", "remove it")


def _answer_items(row: Row, current: EditableRow) -> list[AnswerItem]:
    """Return the objects in pixels, in the order of `current.objects`."""
    value, objects = row.get("answer"), current.objects or ()
    if isinstance(value, dict):
        items = list(Answer.from_dict(value, current.task.output_type))
        if [item.label for item in items] == [each.label for each in objects]:
            return items
    size = current.size()
    return [AnswerItem(each.kind, _to_pixels(each.rings, size), each.label, each.score) for each in objects]


def _item(changed: ChangedObject, before: list[AnswerItem], size: Size, current: EditableRow) -> AnswerItem:
    if changed.kind not in _KINDS.get(current.task.output_type, {GeometryKind.BBOXES}):
        raise UserError(f"`{current.task.name}` has no `{changed.kind}`", "draw a shape of the task")
    label = " ".join(changed.label.split())
    if changed.origin is None and changed.rings is None:
        raise UserError("a new object has no position", "draw it")
    if changed.origin is not None and not 0 <= changed.origin < len(before):
        raise UserError(f"the row has no object {changed.origin}", "reload the page")
    old = before[changed.origin] if changed.origin is not None else None
    if not label and current.task.output_type not in _UNLABELED and (old is None or old.label):
        raise UserError("an object has no label", "write what it is")
    if changed.rings is None and old is not None:
        return replace(old, label=label, score=old.score if label == old.label else None)
    rings: Any = changed.rings
    _check_rings(changed.kind, rings)
    return AnswerItem(changed.kind, _to_pixels(rings, size), label, None, old.is_crowd if old else False)


def _check_rings(kind: GeometryKind, rings: tuple[tuple[int, ...], ...]) -> None:
    length = _RING_LENGTHS.get(kind)
    has_length = all(len(ring) == length if length else len(ring) >= 6 and len(ring) % 2 == 0 for ring in rings)
    if not rings or not has_length or (length and len(rings) != 1):
        raise UserError(f"an object of `{kind}` has a wrong number of coordinates", "draw it again")
    if not all(0 <= value < NUM_BINS for ring in rings for value in ring):
        raise UserError(f"a coordinate is outside of 0 to {NUM_BINS - 1}", "draw the object inside the image")
    if kind is GeometryKind.BBOXES and (rings[0][0] > rings[0][2] or rings[0][1] > rings[0][3]):
        raise UserError("a box has its right or lower side before its left or upper one", "draw it again")


def _to_pixels(rings: Iterable[tuple[int, ...]], size: Size) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(from_bin(value, size[i % 2]) for i, value in enumerate(ring)) for ring in rings)
