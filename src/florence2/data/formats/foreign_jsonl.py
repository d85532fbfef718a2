"""JSONL as other trainers write it, row by row in the words of ours. What is ours already passes through.

maestro      image, prefix, suffix           known to `metadata.py`; its `round` makes bin 1000, which is put right
ms-swift     messages | query, response; images; objects {ref, bbox, bbox_type}
DocVQA       image, question, answers        asks `<DocVQA>question`, as the known fine-tunes do
OCR lines    image, lines [{text, points}]   four corners, or a box, for each line of text
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from florence2.data.columns import IMAGE_COLUMNS, TASK_COLUMNS, TEXT_COLUMNS, ColumnMapping, ImageLocator
from florence2.data.image import ImageError, Size, image_size
from florence2.data.tables import NamedRow, Row
from florence2.errors import UserError
from florence2.model.locations import encode_region
from florence2.model.tasks import NUM_BINS, TASKS, OutputType, split_prompt

QUESTION_PROMPT = "<DocVQA>"
_BEYOND = re.compile(rf"<loc_{NUM_BINS}>")
_SWIFT_ROW = ("messages", "query", "objects")
_REF = "<ref-object>"
_PLACE = re.compile(f"{_REF}|<bbox>")
_ONLY_PLACES = re.compile(r"(?:<ref-object>(?:<bbox>)+[\s,;]*)+")
_IMAGE = "<image>"
_DO_NOT_CARE = "###"  # how OCR lists mark a line that nobody can read


def translate_rows(rows: Iterator[NamedRow], columns: ColumnMapping, locate: ImageLocator) -> Iterator[NamedRow]:
    """Give rows in our words; `locate` finds a picture whose size is needed to place boxes."""
    for where, row in rows:
        yield where, _ours(row, where, columns, locate)


def _ours(row: Row, where: str, columns: ColumnMapping, locate: ImageLocator) -> Row:
    if any(key in row for key in _SWIFT_ROW) and not any(row.get(key) for key in TEXT_COLUMNS):
        return _swift(row, where, locate)
    if "question" in row and not any(row.get(key) for key in TASK_COLUMNS):
        answers = row.get("answers", row.get("answer"))
        rest = {key: value for key, value in row.items() if key not in ("question", "answers", "answer")}
        return {**rest, "prompt": QUESTION_PROMPT, "input": str(row["question"]), "text": answers}
    if isinstance(row.get("lines"), list) and not row.get("answer"):
        return _lines(row, where)
    named = (columns.text,) if columns.text else TEXT_COLUMNS
    texts = {key: _mended(row[key]) for key in named if isinstance(row.get(key), str)}
    return {**row, **texts} if texts else row


def _mended(text: str) -> str:
    """Put the bin that no token stands for into the last one."""
    return _BEYOND.sub(f"<loc_{NUM_BINS - 1}>", text)


def _swift(row: Row, where: str, locate: ImageLocator) -> Row:
    asked, answered = _turns(row, where)
    images = row.get("images") or [next((row[key] for key in IMAGE_COLUMNS if row.get(key)), None)]
    images = images if isinstance(images, list) else [images]
    image = images[0] if images else None
    image = image.get("path") if isinstance(image, dict) else image
    if len(images) != 1 or not isinstance(image, str):
        raise UserError(f"{where} has {len(images)} pictures", "Florence-2 looks at one picture at a time")

    def size() -> Size:
        try:
            return image_size(locate(row, image, where).path)
        except ImageError:
            return (1, 1)  # nobody sees it: a picture that cannot be read is left out

    task, words = split_prompt(asked.replace(_IMAGE, "").strip())
    ours: Row = {"file_name": image, "task": task.token}
    objects = _Objects.of(row, where, size)
    if words:
        ours["input"] = objects.filled(words)
    if task.output_type in (OutputType.BOXES, OutputType.PHRASES) and _ONLY_PLACES.fullmatch(answered.strip()):
        return {**ours, "answer": objects.answer(answered)}
    return {**ours, "text": _mended(objects.filled(answered))}


def _turns(row: Row, where: str) -> tuple[str, str]:
    """Give the first question and its answer."""
    if "query" in row:
        return str(row["query"]), str(row.get("response") or "")
    turns = row.get("messages")
    said = [(turn.get("role"), turn.get("content")) for turn in turns or [] if isinstance(turn, dict)]
    asked = [str(content) for role, content in said if role == "user"]
    answered = [str(content) for role, content in said if role == "assistant"]
    if len(asked) != 1 or len(answered) != 1:
        raise UserError(f"{where} has {len(asked)} questions and {len(answered)} answers", "write one of each in a row")
    return asked[0], answered[0]


@dataclass(frozen=True, eq=False)
class _Objects:
    """What the marks `<ref-object>` and `<bbox>` stand for, in the order of the marks."""

    refs: Iterator[Any]
    boxes: Iterator[list[float]]
    in_parts: bool
    size: Callable[[], Size]
    where: str

    @classmethod
    def of(cls, row: Row, where: str, size: Callable[[], Size]) -> "_Objects":
        objects = row.get("objects") or {}
        refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
        if not all(isinstance(box, list) and all(isinstance(side, int | float) for side in box) for box in boxes):
            raise UserError(f"{where} has an `objects.bbox` that is no list of boxes", "write [[x1, y1, x2, y2], ...]")
        kind = objects.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            raise UserError(f"{where} has boxes of type `{kind}`", "write `real` (pixels) or `norm1` (0 to 1)")
        return cls(iter(refs), iter(boxes), kind == "norm1", size, where)

    def filled(self, text: str) -> str:
        """Put names and location tokens where the marks are."""
        return _PLACE.sub(
            lambda mark: self._ref() if mark[0] == _REF else encode_region(self._box(), self.size()), text
        )

    def answer(self, text: str) -> dict[str, list[Any]]:
        """Read a text of nothing but marks as boxes with labels."""
        value: dict[str, list[Any]] = {"bboxes": [], "labels": []}
        label = ""
        for mark in _PLACE.findall(text):
            if mark == _REF:
                label = self._ref()
            else:
                value["bboxes"].append(self._box())
                value["labels"].append(label)
        return value

    def _ref(self) -> str:
        return str(self._next(self.refs, _REF))

    def _box(self) -> list[float]:
        box = self._next(self.boxes, "<bbox>")
        return [side * self.size()[i % 2] for i, side in enumerate(box)] if self.in_parts else list(box)

    def _next(self, places: Iterator[Any], mark: str) -> Any:
        for place in places:
            return place
        raise UserError(f"{self.where} has more `{mark}` than `objects` names", "give one object for each")


def _lines(row: Row, where: str) -> Row:
    """Read lines of text, each with four corners (nested or flat) or a box."""
    quads, labels = [], []
    for line in row["lines"]:
        text = next((line[key] for key in ("text", "transcription", "label") if key in line), None)
        place = next((line[key] for key in ("points", "quad", "polygon", "box", "bbox") if key in line), None)
        if text is None or not isinstance(place, list):
            raise UserError(f"{where} has a line without text or without corners", 'write {"text": ..., "points": ...}')
        flat = [side for point in place for side in (point if isinstance(point, list) else [point])]
        if len(flat) == 4:
            flat = [flat[0], flat[1], flat[2], flat[1], flat[2], flat[3], flat[0], flat[3]]
        if len(flat) != 8:
            raise UserError(f"{where}: line `{text}` has {len(flat)} numbers", "four corners are 8 numbers, a box is 4")
        if text != _DO_NOT_CARE:
            quads.append(flat)
            labels.append(str(text))
    task = next(each for each in TASKS if each.output_type is OutputType.QUADS)
    rest = {key: value for key, value in row.items() if key != "lines"}
    return {"task": task.token, **rest, "answer": {"quad_boxes": quads, "labels": labels}}
